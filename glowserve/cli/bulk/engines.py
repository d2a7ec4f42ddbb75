"""What computes the rows of a file of scores: the client of the command, or a cluster."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

import glowserve
from glowserve.cli.bulk.journal import Header
from glowserve.cli.bulk.rows import Row, rows_of
from glowserve.cli.failure import Failure
from glowserve.cli.picture_tables import open_picture
from glowserve.cli.target import Target


def check_engine(engine: str) -> None:
    """Imports what an engine needs, before anything else is opened.

    Raises:
        Failure: it is not installed.
    """
    if engine != "ray":
        return
    try:
        import glowserve.cli.bulk.ray_engine  # noqa: F401
    except ModuleNotFoundError as error:
        raise Failure(
            f"--engine ray needs {error.name}, which is not installed: pip install 'glowserve[ray]'", 2
        ) from None


def rows_from(
    args: argparse.Namespace, target: Target, files: Iterable[str], header: Header
) -> Iterator[list[Row]]:
    """The rows of some pictures at a time, from the engine that the flags select.

    Raises:
        RequestError: a call was refused or failed.
        Failure: the cluster failed.
    """
    if args.engine == "local":
        return client_rows(target.client, files, header)
    from glowserve.cli.bulk.ray_engine import ray_rows

    if args.server:
        return ray_rows(lambda: target.client, files, header, on_gpu=False)
    bundle = Path(args.model).resolve()
    return ray_rows(lambda: _open_for_one_core(bundle), files, header, on_gpu=True)


def client_rows(client: glowserve.Client, files: Iterable[str], header: Header) -> Iterator[list[Row]]:
    """The rows of some pictures at a time, in order.

    Raises:
        RequestError: a call was refused or failed.
    """
    pictures = map(open_picture, files)
    for scored in client.iter_scores(pictures, model=header.model, version=header.version, **header.wanted):
        yield list(rows_of(scored, header.columns))


def _open_for_one_core(bundle: Path) -> glowserve.Client:
    """Opens a bundle in an actor, of which each has one core or one GPU."""
    from glowserve.client.transports.embedded import EmbeddedTransport
    from glowserve.runtime.config import RuntimeConfig

    return glowserve.Client(transport=EmbeddedTransport(bundle, RuntimeConfig(threads=1)))
