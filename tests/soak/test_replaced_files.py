"""The files of a served version change under load: every answer is one of the old files, or of the new ones, whole."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np

from glowserve.messages import images_array, images_message
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.soak.callers import NO_RETRIES
from tests.soak.conftest import MakeVersion, Serve
from tests.soak.known_answers import SEEDS, TEMPERATURE, TOLERANCE, KnownAnswers
from tests.soak.report import print_table
from tests.soak.service import Service
from tests.soak.waiting import until

CALLERS = 4
"""Of each kind."""


class Watcher:
    """Calls Score and Sample, and notes which content of the files gave each answer.

    Args:
        target: HOST:PORT.
        contents: the known answers of each content, in the order in which the contents are served.
    """

    def __init__(self, target: str, contents: list[KnownAnswers]) -> None:
        self._target = target
        self._contents = contents
        self.newest = 0
        """The newest content that has answered."""
        self.by_content = [0] * len(contents)
        """The number of answers."""

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        """Calls while the block runs. An answer that is older than an earlier one raises AssertionError in it."""
        running = True

        async def repeat(call: Callable[[GlowServiceStub], Awaitable[int]], stub: GlowServiceStub) -> None:
            while running:
                before = self.newest
                content = await call(stub)
                assert content >= before, (
                    f"content {content} answered a call that began after one of {before}"
                )
                self.newest = max(self.newest, content)
                self.by_content[content] += 1

        async with (
            grpc.aio.insecure_channel(self._target, NO_RETRIES) as channel,
            asyncio.TaskGroup() as group,
        ):
            stub = GlowServiceStub(channel)
            for _ in range(CALLERS):
                group.create_task(repeat(self._score, stub))
                group.create_task(repeat(self._sample, stub))
            yield
            running = False

    async def _score(self, stub: GlowServiceStub) -> int:
        images = self._contents[0].images[:8]
        response = await stub.Score(pb.ScoreRequest(images=images_message(images)))
        nats = np.array([score.log_likelihood for score in response.scores])
        return self._content(
            lambda known: bool(np.allclose(nats, known.log_likelihood_nats[:8], rtol=TOLERANCE, atol=0))
        )

    async def _sample(self, stub: GlowServiceStub) -> int:
        request = pb.SampleRequest(n=8, seed=SEEDS[0], temperature=TEMPERATURE, format=pb.IMAGE_FORMAT_RAW)
        images = images_array((await stub.Sample(request).read()).images)
        return self._content(lambda known: bool(np.array_equal(images, known.samples[SEEDS[0]][:8])))

    def _content(self, matches: Callable[[KnownAnswers], bool]) -> int:
        (index,) = [index for index, known in enumerate(self._contents) if matches(known)]
        return index


async def test_a_bundle_that_changes_while_it_is_read_never_answers_from_a_mixture_of_files(
    serve: Serve, models: Path, known: KnownAnswers, make_version: MakeVersion
) -> None:
    """Once the new files have answered, forward or in reverse, the old ones never do."""
    folder, versions = models / "digits" / "1", [make_version(number) for number in (2, 3, 4)]
    contents = [known, *(KnownAnswers.of_version(version, known.images) for version in versions)]
    with serve("--poll-seconds", "0.2", "--canary-seconds", "1", models=models) as service:
        watcher = Watcher(service.target, contents)
        async with watcher.calling():
            for content, version in enumerate(versions, 1):
                for damage in (swap_graphs, truncate, grow):
                    await refuse(service, damage, version, folder)
                    assert watcher.newest == content - 1
                await asyncio.to_thread(copy_slowly, version, folder)
                await until(lambda content=content: watcher.newest == content, f"content {content} is served")
        log = service.log.read_text()
    print_table(
        "The files of the served version are swapped, truncated, grown, and replaced one by one, three times",
        [
            ("calls, failed, answered from a mixture", f"{sum(watcher.by_content)}, 0, 0"),
            ("answered by each content", ", ".join(map(str, watcher.by_content))),
        ],
    )
    assert "Traceback" not in log
    assert min(watcher.by_content) > 0


async def refuse(service: Service, damage: Callable[[Path, Path], None], source: Path, folder: Path) -> None:
    """Damages the served version, and waits until the service has refused the damaged files."""

    def refused() -> float:
        return service.total("glowserve_model_loads_total", outcome="refused")

    before = refused()
    await asyncio.to_thread(damage, source, folder)
    await until(lambda: refused() > before, f"the service refuses the files after {damage.__name__}")


def swap_graphs(source: Path, folder: Path) -> None:
    """Copies another version's graph next to a manifest with another checksum."""
    shutil.copy(source / "forward.onnx", folder / "forward.onnx")


def truncate(source: Path, folder: Path) -> None:
    """Writes half a graph."""
    data = (source / "reverse.onnx").read_bytes()
    (folder / "reverse.onnx").write_bytes(data[: len(data) // 2])


def grow(source: Path, folder: Path) -> None:
    """Writes a manifest so slowly that the service polls several times meanwhile."""
    data = (source / "manifest.json").read_bytes()
    cuts = [len(data) * i // 20 for i in range(21)]
    with (folder / "manifest.json").open("wb") as file:
        for first, last in itertools.pairwise(cuts):
            file.write(data[first:last])
            file.flush()
            time.sleep(0.05)


def copy_slowly(source: Path, folder: Path) -> None:
    """Copies every file, with pauses."""
    for path in sorted(source.iterdir()):
        shutil.copy(path, folder / path.name)
        time.sleep(0.15)
