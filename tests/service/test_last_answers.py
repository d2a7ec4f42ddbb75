"""What a stop waits for: answers that clients have not received yet, and not connections that have no call."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import grpc
import numpy as np
import pytest

from glowserve.images import UInt8Array
from glowserve.v1 import glow_service_pb2 as pb
from tests.servers import RunServer
from tests.service.metrics import in_flight
from tests.service.stubs import connect
from tests.service.wire import raw, wait_for

IMAGES = 20_000
"""Their latents are 5 MB: more than the buffers of the system hold on the way."""


@contextmanager
def slow_network(port: int, go_on: threading.Event) -> Iterator[str]:
    """Forwards one connection to a port; of what the server sends, no more than 100 kB until an event."""
    with socket.socket() as listener, socket.socket() as server, ThreadPoolExecutor() as pool:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        server.connect(("127.0.0.1", port))

        def forward() -> None:
            client, _ = listener.accept()
            with client:
                pool.submit(backward, client)
                received = 0
                with suppress(OSError):
                    while data := server.recv(8192):
                        received += len(data)
                        if received > 100_000:
                            go_on.wait(60)
                            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
                        client.sendall(data)
                with suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)

        def backward(client: socket.socket) -> None:
            with suppress(OSError):
                while data := client.recv(2**16):
                    server.sendall(data)

        forwarding = pool.submit(forward)
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        forwarding.result(60)


def test_a_large_answer_reaches_a_client_on_a_slow_network(
    run_server: RunServer, digits: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call has ended for the service, and most of its answer is still in gRPC."""
    monkeypatch.setattr("glowserve_service.front.front._LAST_ANSWERS_SECONDS", 0.1)
    images = np.tile(digits, (IMAGES // len(digits) + 1, 1, 1, 1))[:IMAGES]
    go_on = threading.Event()
    limits = {"max_images_per_call": IMAGES, "max_queue_size": IMAGES, "drain_seconds": 60.0}
    with ExitStack() as stack:
        with run_server(**limits) as server:
            target = stack.enter_context(slow_network(server.port, go_on))
            stubs = stack.enter_context(connect(target, [("grpc.max_receive_message_length", -1)]))
            call = stubs.glow.Encode.future(pb.EncodeRequest(images=raw(images)), timeout=120)
            wait_for(lambda: in_flight(server) == 1)
            wait_for(lambda: in_flight(server) == 0)
            threading.Timer(2.0, go_on.set).start()
        assert call.result(60).ByteSize() > 5e6


def test_connections_without_a_call_delay_nothing(run_server: RunServer) -> None:
    """Neither does gRPC's, which nobody reads while it has no call, nor one that is not gRPC's."""
    with run_server(drain_seconds=600.0) as server:
        silent = socket.create_connection(("127.0.0.1", server.port), 60)
        idle = grpc.insecure_channel(f"127.0.0.1:{server.port}")
        grpc.channel_ready_future(idle).result(60)
        began = time.monotonic()
    assert time.monotonic() - began < 3  # gRPC itself waits for 20 s
    silent.close()
    idle.close()
