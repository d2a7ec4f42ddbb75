"""New versions arrive under load: every call is answered, by one version or the other, and by no mixture."""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest

from glowserve.messages import images_array, images_message
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.soak.callers import NO_RETRIES, SEEDS, TEMPERATURE, TOLERANCE, WELL_BEHAVED, Caller, Known
from tests.soak.conftest import MakeVersion, Serve, Service, known_of, table

SWAPS = 8
POLL = ("--poll-seconds", "0.2", "--canary-seconds", "1")
USUAL_SECONDS = 3.0
# Calls that begin so long after the swap are the first that the new version answers.
AFTER_SECONDS = 0.1


@dataclass(frozen=True)
class Ended:
    """A call that has ended with OK; all others raise."""

    began: float
    ended: float


@pytest.fixture
def models(repository: Path, tmp_path: Path) -> Path:
    """A repository of one's own, with version 1 of the digits."""
    shutil.copytree(repository / "digits" / "1", tmp_path / "models" / "digits" / "1")
    return tmp_path / "models"


@asynccontextmanager
async def load(service: Service, known: dict[int, Known], rate: float = 0.0) -> AsyncIterator[list[Ended]]:
    """Calls of all well-behaved kinds while the block runs; those that have ended. One that is not OK raises.

    Args:
        service: whom to ask.
        known: the versions that may answer.
        rate: calls a second, at random; 0: as many as 32 callers get answered.
    """
    ends, luck = list[Ended](), random.Random(0)
    running = True

    async def ask(caller: Caller) -> None:
        began = time.monotonic()
        code = await caller.call(luck.choice(WELL_BEHAVED), luck)
        assert code == "OK", caller.reasons
        ends.append(Ended(began, time.monotonic()))

    async def again(caller: Caller) -> None:
        while running:
            await ask(caller)

    async def arrive(caller: Caller, group: asyncio.TaskGroup) -> None:
        due = time.monotonic()
        while running:
            group.create_task(ask(caller))
            due += luck.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async with grpc.aio.insecure_channel(service.target, NO_RETRIES) as channel, asyncio.TaskGroup() as group:
        caller = Caller(channel, known)
        if rate:
            group.create_task(arrive(caller, group))
        else:
            for _ in range(32):
                group.create_task(again(caller))
        yield ends
        running = False


def test_versions_are_swapped_in_under_load_and_no_call_fails(
    serve: Serve, models: Path, known: Known, make_version: MakeVersion
) -> None:
    versions = {1: known} | {n: known_of(make_version(n), known.images) for n in range(2, 2 + SWAPS)}
    folder = models / "digits"

    async def saturated(service: Service) -> float:
        async with load(service, versions) as ends:
            await asyncio.sleep(1)
            ends.clear()
            await asyncio.sleep(3)
            return len(ends) / 3

    async def swap_often(service: Service, rate: float) -> tuple[list[Ended], list[tuple[float, float]]]:
        windows = []
        async with load(service, versions, rate) as ends:
            await asyncio.sleep(1)
            ends.clear()  # the first ones opened the connection
            for number in range(2, 2 + SWAPS):
                staging = folder / f".staging-{number}"
                await asyncio.to_thread(shutil.copytree, make_version(number), staging)
                await asyncio.sleep(USUAL_SECONDS)
                began = time.monotonic()
                staging.rename(folder / f"{number}")
                await until_served(service, lambda listed, number=number: listed[0].model.version == number)
                windows.append((began, time.monotonic()))
        return ends, windows

    with serve(*POLL, models=models) as service:
        rate = asyncio.run(saturated(service)) / 2
        ends, windows = asyncio.run(swap_often(service, rate))
        loaded = service.total("glowserve_model_loads_total")
        log = service.log.read_text()
    spans = [(began, ended + AFTER_SECONDS) for began, ended in windows]
    in_swap = np.array([any(a <= end.began <= b for a, b in spans) for end in ends])
    took = 1000 * np.array([end.ended - end.began for end in ends])
    usual, during = (float(np.quantile(took[mask], 0.99)) for mask in (~in_swap, in_swap))
    table(
        f"{SWAPS} versions are swapped in, {rate:.0f} calls a second (half of what can be answered)",
        [
            ("calls, of them during swaps, failed", f"{len(ends)}, {in_swap.sum()}, 0"),
            ("seconds from the folder's arrival to its service", f"{np.mean(np.diff(windows)):.2f}"),
            ("p99 as usual, ms", f"{usual:.1f}"),
            ("p99 during swaps, ms", f"{during:.1f}"),
            ("ratio (the bound is 2, on a quiet machine)", f"{during / usual:.2f}"),
            ("worst as usual, during swaps, ms", f"{took[~in_swap].max():.1f}, {took[in_swap].max():.1f}"),
        ],
    )
    assert "Traceback" not in log
    assert loaded == 1 + SWAPS
    assert in_swap.sum() > 100


def test_a_bundle_that_is_replaced_while_it_is_read_is_never_served_by_halves(
    serve: Serve, models: Path, known: Known, make_version: MakeVersion
) -> None:
    """Files of the served version itself are swapped, truncated and grow; all the while it is asked.

    Once a caller has been answered by the new files, nobody is answered by the old ones, forward or reverse.
    """
    place = models / "digits" / "1"
    contents = [make_version(number) for number in (2, 3, 4)]
    answers = [known, *(known_of(content, known.images) for content in contents)]

    async def replace_often(service: Service) -> tuple[int, list[int]]:
        watcher = Halves(service.target, answers)
        async with watcher.asking():
            for number, content in enumerate(contents, 1):
                await asyncio.sleep(1)
                for spoil in (swap_graphs, truncate, grow):
                    await asyncio.to_thread(spoil, content, place)
                    await asyncio.sleep(0.5)
                    assert watcher.newest == number - 1
                await asyncio.to_thread(copy_slowly, content, place)
                await eventually(lambda number=number: watcher.newest == number)
        return watcher.calls, watcher.by_content

    with serve(*POLL, models=models) as service:
        calls, by_content = asyncio.run(replace_often(service))
        log = service.log.read_text()
    table(
        "The files of the served version are swapped, cut, grown, and replaced bit by bit, three times",
        [
            ("calls, failed, answered by halves", f"{calls}, 0, 0"),
            ("answered by each content", ", ".join(map(str, by_content))),
        ],
    )
    assert "Traceback" not in log
    assert min(by_content) > 0


class Halves:
    """Asks for scores and samples, and notices which content answers each.

    Args:
        target: HOST:PORT.
        answers: of the contents, in the order in which they are served.
    """

    def __init__(self, target: str, answers: list[Known]) -> None:
        self._target = target
        self._answers = answers
        self.newest = 0
        """The index of the newest content that has answered."""
        self.calls = 0
        self.by_content = [0] * len(answers)

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """Asks while the block runs."""
        running = True

        async def again(ask: Callable[[GlowServiceStub], Awaitable[int]], stub: GlowServiceStub) -> None:
            while running:
                least = self.newest
                index = await ask(stub)
                assert index >= least, (
                    f"content {index} answered a call that began after {least} had answered"
                )
                self.newest = max(self.newest, index)
                self.calls += 1
                self.by_content[index] += 1

        async with (
            grpc.aio.insecure_channel(self._target, NO_RETRIES) as channel,
            asyncio.TaskGroup() as group,
        ):
            stub = GlowServiceStub(channel)
            for _ in range(4):
                group.create_task(again(self._score, stub))
                group.create_task(again(self._sample, stub))
            yield
            running = False

    async def _score(self, stub: GlowServiceStub) -> int:
        images = self._answers[0].images[:8]
        response = await stub.Score(pb.ScoreRequest(images=images_message(images)))
        nats = np.array([score.log_likelihood for score in response.scores])
        return self._index(lambda known: bool(np.allclose(nats, known.nats[:8], rtol=TOLERANCE, atol=0)))

    async def _sample(self, stub: GlowServiceStub) -> int:
        request = pb.SampleRequest(n=8, seed=SEEDS[0], temperature=TEMPERATURE, format=pb.IMAGE_FORMAT_RAW)
        images = images_array((await stub.Sample(request).read()).images)
        return self._index(lambda known: bool(np.array_equal(images, known.samples[SEEDS[0]][:8])))

    def _index(self, matches: Callable[[Known], bool]) -> int:
        (index,) = [index for index, known in enumerate(self._answers) if matches(known)]
        return index


def swap_graphs(source: Path, place: Path) -> None:
    """Another version's graph beside a manifest that does not know it."""
    shutil.copy(source / "forward.onnx", place / "forward.onnx")


def truncate(source: Path, place: Path) -> None:
    """Half a file."""
    data = (source / "reverse.onnx").read_bytes()
    (place / "reverse.onnx").write_bytes(data[: len(data) // 2])


def grow(source: Path, place: Path) -> None:
    """A file that grows for as long as it takes to look at it several times."""
    data = (source / "manifest.json").read_bytes()
    with (place / "manifest.json").open("wb") as file:
        for i in range(20):
            file.write(data[len(data) * i // 20 : len(data) * (i + 1) // 20])
            file.flush()
            time.sleep(0.05)


def copy_slowly(source: Path, place: Path) -> None:
    """All of it, file by file, with pauses."""
    for path in sorted(source.iterdir()):
        shutil.copy(path, place / path.name)
        time.sleep(0.15)


@pytest.fixture
def small_disk(tmp_path: Path, repository: Path) -> Iterator[Path]:
    """A disk with room for one and a half bundles of the digits."""
    bundle = sum(path.stat().st_size for path in (repository / "digits" / "1").iterdir())
    place = tmp_path / "disk"
    place.mkdir()
    with mounted(place, f"{bundle * 3 // 2 // 4096 * 4}k"):
        yield place


@contextmanager
def mounted(place: Path, size: str) -> Iterator[None]:
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here; that takes root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_fills_up_while_a_version_is_copied_leaves_the_old_one_in_service(
    serve: Serve, small_disk: Path, repository: Path, known: Known, make_version: MakeVersion
) -> None:
    folder = small_disk / "digits"
    shutil.copytree(repository / "digits" / "1", folder / "1")
    versions = {1: known, 2: known_of(make_version(2), known.images)}

    async def fill(service: Service) -> tuple[int, str]:
        async with load(service, versions) as ends:
            await asyncio.sleep(1)
            with pytest.raises((OSError, shutil.Error), match="No space left on device"):
                await asyncio.to_thread(shutil.copytree, make_version(2), folder / "2")
            refused = await until_not_served(service, pb.MODEL_STATE_REFUSED)
            await asyncio.sleep(1)
            assert (await listed(service)).models[0].model.version == 1
            # Room is made, and the copy is tried again: version 1 is in memory, and needs its files no more.
            await asyncio.to_thread(shutil.rmtree, folder / "2")
            await asyncio.to_thread(shutil.rmtree, folder / "1")
            await asyncio.to_thread(shutil.copytree, make_version(2), folder / "2")
            await until_served(service, lambda models: models[0].model.version == 2)
            await asyncio.sleep(1)
        return len(ends), refused.reason

    with serve(*POLL, models=small_disk) as service:
        calls, reason = asyncio.run(fill(service))
        log = service.log.read_text()
    table(
        "The disk fills up while version 2 is copied",
        [("calls, failed", f"{calls}, 0"), ("what ListModels says of version 2", reason)],
    )
    assert "Traceback" not in log


async def listed(service: Service) -> pb.ListModelsResponse:
    async with grpc.aio.insecure_channel(service.target, NO_RETRIES) as channel:
        return await GlowServiceStub(channel).ListModels(pb.ListModelsRequest())


async def until_served(service: Service, holds: Callable[[list[pb.ModelSummary]], bool]) -> None:
    end = time.monotonic() + 60
    while not holds(list((await listed(service)).models)):
        assert time.monotonic() < end, "the version is not served"
        await asyncio.sleep(0.02)


async def until_not_served(service: Service, state: int) -> pb.ModelSummary:
    end = time.monotonic() + 60
    while True:
        for summary in (await listed(service)).not_served:
            if summary.state == state:
                return summary
        assert time.monotonic() < end, "the version is not refused"
        await asyncio.sleep(0.02)


async def eventually(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, "what was waited for did not come"
        await asyncio.sleep(0.02)
