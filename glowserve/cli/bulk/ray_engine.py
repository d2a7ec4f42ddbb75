"""The rows of a file of scores, computed on a cluster by Ray Data. Its actors read and score pictures.

The cluster is the one of $RAY_ADDRESS, else one on this machine. Its workers need glowserve, and the pictures and the
bundle under the same paths. An actor that dies is replaced, and what it had not finished is computed again. Everything
here imports Ray by this module, lint forbids other imports: Ray reports to its makers unless it finds a variable.
"""

from __future__ import annotations

import json
import logging
import os

if not os.environ.get("RAY_USAGE_STATS_ENABLED"):
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data

import glowserve
from glowserve.cli.bulk.journal import Header
from glowserve.cli.bulk.rows import Row, rows_of
from glowserve.cli.failure import Failure
from glowserve.cli.picture_tables import open_picture

# Pictures that an actor is given at a time.
_BLOCK = 256
# How often they are given again after their actor died. By default for ever, also if they are what it dies of.
_RETRIES = 3


def ray_rows(
    open_client: Callable[[], glowserve.Client], files: Iterable[str], header: Header, *, on_gpu: bool
) -> Iterator[list[Row]]:
    """The rows of some files at a time, in the order in which they are known.

    Args:
        open_client: makes the client of an actor, in its process.
        files: the paths of the pictures.
        header: the model, its version, the seed and the columns.
        on_gpu: give each actor a GPU, if the cluster has any.

    Raises:
        RequestError: a call was refused or failed.
        Failure: Ray failed.
    """
    if not (blocks := list(_blocks(files))):
        return
    with _cluster():
        resources = ray.cluster_resources()
        kind = "GPU" if on_gpu and resources.get("GPU", 0) >= 1 else "CPU"
        most = min(len(blocks), max(1, int(resources.get(kind, 1))))
        scored = ray.data.from_arrow(blocks).map_batches(
            _Scorer,
            fn_constructor_args=(open_client, header),
            batch_format="pyarrow",
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
            max_task_retries=_RETRIES,
            **{f"num_{kind.lower()}s": 1},
        )
        for batch in scored.iter_batches(batch_format="pyarrow", batch_size=None):
            yield [Row(*json.loads(row)) for row in batch["row"].to_pylist()]


class _Scorer:
    """An actor: scores the pictures of a block.

    Args:
        open_client: makes its client.
        header: the model, its version, the seed and the columns.
    """

    def __init__(self, open_client: Callable[[], glowserve.Client], header: Header) -> None:
        self._client, self._header = open_client(), header

    def __call__(self, block: pa.Table) -> pa.Table:
        names, files = (
            [os.fsdecode(path) for path in block[column].to_pylist()] for column in ("path", "file")
        )
        header, pictures = self._header, map(open_picture, files)
        parts = self._client.iter_scores(
            pictures, model=header.model, version=header.version, **header.wanted
        )
        rows = [json.dumps(row) for scored in parts for row in rows_of(scored, header.columns, names)]
        return pa.table({"row": pa.array(rows, pa.string())})


@contextmanager
def _cluster() -> Iterator[None]:
    """Connects to the cluster, or starts one. Its errors become ours."""
    # Of one's own: nothing that listens but what Ray needs.
    own: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **own)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False  # ours counts pictures
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        yield
    except (ConnectionError, ray.exceptions.RayError) as error:
        raise _cause(error) from None
    finally:
        ray.shutdown()


def _cause(error: BaseException) -> Exception:
    """The error of a call that failed in an actor; else Ray's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, glowserve.RequestError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return Failure(f"Ray failed: {str(error).strip().splitlines()[-1]}", 1)


def _blocks(files: Iterable[str]) -> Iterator[pa.Table]:
    """The paths, as they were given and from the root: actors work in folders of their own."""
    here, remaining = Path.cwd(), iter(files)
    while some := list(itertools.islice(remaining, _BLOCK)):
        given = [os.fsencode(path) for path in some]
        yield pa.table({"path": given, "file": [os.fsencode(here / path) for path in some]})
