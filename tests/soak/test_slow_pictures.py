"""Callers who send pictures that are large work do not hold up other callers, nor take the machine's memory."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from PIL import Image

from glowserve.images import UInt8Array, encode_png
from glowserve.messages import images_message
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.glowserve.pictures import encoded
from tests.service.decoder_processes import decoder_processes
from tests.soak.attack_pictures import ATTACKS
from tests.soak.conftest import Serve
from tests.soak.report import print_table
from tests.soak.service import Service
from tests.soak.waiting import wait_until

SECONDS = 8.0
ATTACKERS = 4
MOST_SECONDS_OF_OTHERS = 60.0
"""Of a caller whose picture goes to a decoder: two of them are busy, each for at most 10 s at a time."""
MOST_MEMORY = 4 * 2**30
"""Of the service and its processes together, which two pictures of 64,000,000 pixels fill."""


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_leaves_others_their_answers(serve: Serve, digits: UInt8Array, name: str) -> None:
    attack = ATTACKS[name]()
    small = pb.ScoreRequest(images=images_message([encode_png(digits[0])]))
    photo = encoded(Image.effect_noise((640, 480), 60), "JPEG")
    others = {
        "tensor": pb.ScoreRequest(images=images_message(digits[:1])),
        "small PNG": small,
        "photo": pb.ScoreRequest(images=images_message([photo])),
    }
    with serve("--log-level", "error", "--drain-seconds", "1") as service:
        statuses = Counter[str]()
        with peak_memory(service) as peak, attacked(service, attack, statuses):
            time.sleep(0.5)
            worst = {kind: worst_seconds(service, request) for kind, request in others.items()}
        failed = service.total("glowserve_failed_decodes_total")
        began = time.monotonic()
        service.process.terminate()
        assert service.process.wait(60) == 0
        stopped = time.monotonic() - began
        assert "Traceback" not in service.log.read_text()
    print_table(
        f"{name}: {sum(map(len, attack)):,} bytes, {ATTACKERS} callers for {3 * SECONDS:g} s",
        [
            ("their statuses", ", ".join(f"{count} {status}" for status, count in statuses.items())),
            ("calls whose pictures were given up", f"{failed:g}"),
            *((f"worst answer to others, {kind}, s", f"{seconds:.2f}") for kind, seconds in worst.items()),
            ("peak of the service, MiB", f"{peak['service'] >> 20}"),
            ("peak of the service and its decoders together, MiB", f"{peak['all'] >> 20}"),
            ("time to stop, s", f"{stopped:.1f}"),
        ],
    )
    assert max(worst.values()) < MOST_SECONDS_OF_OTHERS
    assert peak["all"] < MOST_MEMORY
    assert statuses.keys() <= {"OK", "INVALID_ARGUMENT", "CANCELLED"}


def worst_seconds(service: Service, request: pb.ScoreRequest) -> float:
    """The longest that a caller waits who calls again and again."""
    worst, end = 0.0, time.monotonic() + SECONDS
    with grpc.insecure_channel(service.target) as channel:
        stub = GlowServiceStub(channel)
        while time.monotonic() < end:
            began = time.monotonic()
            stub.Score(request, timeout=MOST_SECONDS_OF_OTHERS)
            worst = max(worst, time.monotonic() - began)
            time.sleep(0.01)
    return worst


@contextmanager
def attacked(service: Service, attack: list[bytes], statuses: Counter[str]) -> Iterator[None]:
    """Callers who send the picture again and again; at the end they leave, and their decoding ends."""
    request, over = pb.ScoreRequest(images=images_message(attack)), threading.Event()
    channels = [
        grpc.insecure_channel(service.target, [("grpc.use_local_subchannel_pool", 1)])
        for _ in range(ATTACKERS)
    ]

    def send(channel: grpc.Channel) -> None:
        while not over.is_set():
            call = GlowServiceStub(channel).Score.future(request)
            while not call.done() and not over.wait(0.01):
                pass
            call.cancel()
            statuses[call.code().name] += 1

    threads = [threading.Thread(target=send, args=(channel,)) for channel in channels]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
        for channel in channels:
            channel.close()
        wait_until(lambda: service.total("glowserve_requests_in_flight") == 0, "no call is in flight", 5)


@contextmanager
def peak_memory(service: Service) -> Iterator[dict[str, int]]:
    """The most memory of the service, and of it and its processes together, in bytes."""
    peak, over = {"service": 0, "all": 0}, threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            own = resident(service.process.pid)
            together = own + sum(map(resident, decoder_processes(service.process.pid)))
            peak["service"], peak["all"] = max(peak["service"], own), max(peak["all"], together)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def resident(process: int) -> int:
    """The resident memory of a process, in bytes; 0 if it has ended."""
    try:
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0
