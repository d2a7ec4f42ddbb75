"""A client of several services behind one name of DNS, which are replaced one after the other."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack

import pytest
from glowserve_service.server import Server

import glowserve
from glowserve.images import UInt8Array
from tests.servers import RunServer, free_port

ADDRESS, OK, UNCACHED = 1, 0x8180, 0


class NameServer(threading.Thread):
    """A DNS server on loopback that gives every name the same IPv4 addresses (RFC 1035, section 4)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.addresses: list[str] = []
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]

    def run(self) -> None:
        while True:
            query, client = self.socket.recvfrom(4096)
            if not query:
                return
            self.socket.sendto(self.answer(query), client)

    def answer(self, query: bytes) -> bytes:
        """Answers of the asked type alone: there are no names of other types, such as IPv6 addresses."""
        end = query.index(0, 12) + 5
        (kind,) = struct.unpack(">H", query[end - 4 : end - 2])
        found = self.addresses if kind == ADDRESS else []
        head = query[:2] + struct.pack(">HHHHH", OK, 1, len(found), 0, 0)
        asked_name = struct.pack(">H", 0xC00C)  # where the question has it
        return (
            head
            + query[12:end]
            + b"".join(
                asked_name + struct.pack(">HHIH", ADDRESS, 1, UNCACHED, 4) + socket.inet_aton(each)
                for each in found
            )
        )

    def stop(self) -> None:
        """Ends the thread."""
        self.socket.sendto(b"", self.socket.getsockname())
        self.join(10)
        self.socket.close()


@pytest.fixture
def names() -> Iterator[NameServer]:
    server = NameServer()
    server.start()
    yield server
    server.stop()


def test_services_that_are_replaced_within_seconds_lose_no_call(
    names: NameServer, run_server: RunServer, digits: UInt8Array
) -> None:
    """When the last old one stops, DNS has only new ones, of which the client has not heard."""
    port = free_port()
    with ExitStack() as services:

        def start(address: str) -> tuple[AbstractContextManager[Server], str]:
            service = run_server(host=address, port=port)
            services.enter_context(service)
            return service, address

        old, new = [start("127.0.0.2"), start("127.0.0.3")], ["127.0.0.4", "127.0.0.5"]
        names.addresses = [address for _, address in old]
        client = services.enter_context(
            glowserve.Client(f"dns://127.0.0.1:{names.port}/glowserve.test:{port}")
        )
        ended, failures = threading.Event(), list[str]()

        def call() -> None:
            while not ended.wait(0.01):
                try:
                    client.score(digits[:1])
                except glowserve.RequestError as error:
                    failures.append(str(error))

        caller = threading.Thread(target=call)
        caller.start()
        for (service, gone), address in zip(old, new, strict=True):
            names.addresses = [each for each in names.addresses if each != gone]
            service.__exit__(None, None, None)
            start(address)
            names.addresses = [*names.addresses, address]
        ended.wait(0.5)
        ended.set()  # a call under way still fails if no server is found
        caller.join(60)
        assert failures == []
