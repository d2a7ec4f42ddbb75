"""The processes that decode pictures: what they answer, and every way in which their work ends early."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from glowserve_service.scheduling import decoder, decoders
from glowserve_service.scheduling.decoder import DecoderError
from glowserve_service.scheduling.decoders import Decoders
from PIL import Image

from glowserve.images import Preparation, encode_png
from glowserve.pictures import InvalidPictureError, Pictures
from tests.service.decoder_processes import decoder_processes, lives, processor_seconds, slow_pictures
from tests.service.scheduling.batching import PATIENCE
from tests.service.wire import file_of

MAX_PIXELS = 10**7
FAILURES: list[str] = []
OF_OTHERS: set[int] = set()
"""Processes of a server that another test has started in this process."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")


@pytest_asyncio.fixture
async def pool() -> AsyncIterator[Decoders]:
    """Two processes."""
    FAILURES.clear()
    OF_OTHERS.clear()
    OF_OTHERS.update(processes())
    pool = Decoders(2, MAX_PIXELS, 2**26, FAILURES.append)
    await pool.ready()
    yield pool
    await pool.close()
    assert not processes()


def processes() -> set[int]:
    return decoder_processes(os.getpid()) - OF_OTHERS


def pictures(*files: bytes, max_pixels: int = MAX_PIXELS) -> Pictures:
    return Pictures(files, (8, 8, 3), Preparation(background=9), max_pixels)


def good(n: int = 1) -> Pictures:
    rng = np.random.default_rng(0)
    return pictures(*(encode_png(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)) for _ in range(n)))


async def busy_process() -> int:
    """The process that works. Returns once there is one."""
    before = {process: processor_seconds(process) for process in processes()}
    async with asyncio.timeout(PATIENCE):
        while True:
            await asyncio.sleep(0.05)
            for process, seconds in before.items():
                if processor_seconds(process) > seconds + 0.1:
                    return process


async def assert_ended_and_replaced(pool: Decoders, process: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while lives(process):
            await asyncio.sleep(0.01)
        np.testing.assert_array_equal(await pool.decode(good()), good().decode())
        await pool.ready()
    others = processes()
    assert len(others - {process}) == 2


async def test_images_are_those_that_this_process_decodes(pool: Decoders) -> None:
    for each in (good(), good(300), pictures(file_of(Image.effect_noise((2000, 1500), 90), "PNG"))):
        np.testing.assert_array_equal(await pool.decode(each), each.decode())
    together = await asyncio.gather(*(pool.decode(good(n)) for n in range(1, 30)))
    assert [len(images) for images in together] == list(range(1, 30))


async def test_an_invalid_picture_is_named_and_ends_no_process(pool: Decoders) -> None:
    before = processes()
    for files, index, words in (
        ((b"?",), 0, "1 bytes are not a picture"),
        ((*good(2).files, file_of(Image.new("L", (4000, 4000)), "PNG")), 2, "at most 10000000 are accepted"),
        ((*good(1).files, file_of(Image.effect_noise((90, 90), 90), "PNG")[:900]), 1, "damaged"),
    ):
        with pytest.raises(InvalidPictureError, match=words) as caught:
            await pool.decode(pictures(*files))
        assert caught.value.index == index
    assert processes() == before
    assert FAILURES == []


async def test_pillows_own_limit_of_pixels_gives_way_to_ours(pool: Decoders) -> None:
    large = file_of(Image.new("1", (30_000, 6_000)), "PNG")
    images = await pool.decode(Pictures([large], (8, 8, 1), Preparation(), max_pixels=2 * 10**8))
    assert images.shape == (1, 8, 8, 1)


async def test_a_cancelled_caller_ends_the_process(pool: Decoders) -> None:
    call = asyncio.ensure_future(pool.decode(pictures(*slow_pictures())))
    process = await busy_process()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    began = time.monotonic()
    await assert_ended_and_replaced(pool, process)
    assert time.monotonic() - began < PATIENCE
    assert FAILURES == []


async def test_pictures_that_take_too_long_are_given_up(
    pool: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "_MOST_SECONDS", 2.5)
    call = asyncio.ensure_future(pool.decode(pictures(*slow_pictures())))
    process = await busy_process()
    with pytest.raises(
        InvalidPictureError, match=r"not decoded within 10 s of CPU time and 2\.5 s in all; "
    ) as caught:
        await call
    assert caught.value.index is None
    await assert_ended_and_replaced(pool, process)
    monkeypatch.setattr(decoders, "_MOST_SECONDS", 0.01)
    with pytest.raises(InvalidPictureError, match=r" and 0\.01 s in all") as caught:
        await pool.decode(pictures(*slow_pictures(1)))
    assert caught.value.index == 0
    assert FAILURES == ["late", "late"]


async def test_pictures_that_take_too_much_cpu_time_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    FAILURES.clear()
    monkeypatch.setattr(decoders, "_MOST_CPU_SECONDS", 0.5)
    pool = Decoders(1, MAX_PIXELS, 2**26, FAILURES.append)
    try:
        with pytest.raises(InvalidPictureError, match=r"not decoded within 0\.5 s of CPU time"):
            await pool.decode(pictures(*slow_pictures()))
        assert FAILURES == ["late"]
        assert len(await pool.decode(good(3))) == 3
        await asyncio.sleep(0.6)
        assert len(await pool.decode(good(3))) == 3  # the time of each request counts alone
        assert FAILURES == ["late"]
    finally:
        await pool.close()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
async def test_a_process_that_crashes_fails_its_own_call_alone(pool: Decoders, number: int) -> None:
    call = asyncio.ensure_future(pool.decode(pictures(*slow_pictures())))
    process = await busy_process()
    os.kill(process, number)
    with pytest.raises(DecoderError, match=f"ended: exit code -{number:d}$"):
        await call
    assert FAILURES == ["crashed"]
    await assert_ended_and_replaced(pool, process)


async def test_a_process_that_crashes_while_it_waits_fails_no_call(pool: Decoders) -> None:
    for process in processes():
        os.kill(process, signal.SIGKILL)
    await asyncio.sleep(0.3)
    for _ in range(3):
        assert len(await pool.decode(good())) == 1
    assert FAILURES == []


async def test_a_process_has_a_limit_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    FAILURES.clear()
    monkeypatch.setattr(decoders, "_BYTES_PER_PIXEL", 1)
    pool = Decoders(1, 3 * 10**7, 2**20, FAILURES.append)
    greedy = pictures(file_of(Image.new("RGB", (5400, 5400)), "PNG"), max_pixels=3 * 10**7)
    with pytest.raises(InvalidPictureError, match=r"takes more than 158 MiB of memory; send a smaller"):
        await pool.decode(greedy)
    assert FAILURES == ["memory"]
    assert len(await pool.decode(good())) == 1
    await pool.close()


async def test_a_process_inherits_nothing_and_is_none_of_the_terminals(pool: Decoders) -> None:
    for process in processes():
        folder = Path(f"/proc/{process}")
        targets = {file.name: str(file.readlink()) for file in (folder / "fd").iterdir()}
        assert targets.keys() == {"0", "1", "2"}
        assert (targets["1"], targets["2"]) == ("/dev/null", "/dev/null")
        assert os.getsid(process) == process
        mapped = (folder / "maps").read_text()
        assert not [name for name in ("torch", "onnxruntime", "grpc") if name in mapped]
        assert resource.prlimit(process, resource.RLIMIT_DATA)[0] < 2**29


async def test_processes_ignore_the_signals_that_stop_a_service(pool: Decoders) -> None:
    before = processes()
    for process in before:
        os.kill(process, signal.SIGTERM)
        os.kill(process, signal.SIGINT)
    assert len(await pool.decode(good(9))) == 9
    assert processes() == before


async def test_a_pool_ends_at_once_whatever_its_processes_do(pool: Decoders) -> None:
    call = asyncio.ensure_future(pool.decode(pictures(*slow_pictures())))
    await busy_process()
    began = time.monotonic()
    await pool.close()
    assert time.monotonic() - began < 5
    with pytest.raises(DecoderError):
        await call
    await asyncio.sleep(0.1)
    assert not processes()


async def test_a_process_that_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder.decoder_main, "__name__", "glowserve_service.no_such_module")
    pool = Decoders(1, MAX_PIXELS, 2**20, FAILURES.append)
    with pytest.raises(DecoderError, match="does not start: exit code 1"):
        await pool.ready()
    monkeypatch.undo()
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(DecoderError, match="does not start"):
        await pool.decode(good())
    monkeypatch.undo()
    assert len(await pool.decode(good())) == 1
    await pool.close()


async def test_a_process_keeps_nothing_of_a_long_request_and_is_ended_before_the_service(
    pool: Decoders,
) -> None:
    before = {process: resident_mib(process) for process in processes()}
    for _ in range(4):
        with pytest.raises(InvalidPictureError, match="not a picture"):
            await pool.decode(pictures(bytes(64 * 2**20)))
    for process, size in before.items():
        async with asyncio.timeout(PATIENCE):  # it frees them after it has answered
            while resident_mib(process) > size + 32:
                await asyncio.sleep(0.01)
        assert Path(f"/proc/{process}/oom_score_adj").read_text() == "1000\n"


def resident_mib(process: int) -> float:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
