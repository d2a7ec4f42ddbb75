"""A method's name can be any bytes on the wire. grpcio 1.84 and 1.85 stop the whole server at one that is not UTF-8."""

from __future__ import annotations

import socket

import glowserve
from tests.servers import RunServer
from tests.soak.fuzz.connections import call_of


def test_a_method_whose_name_is_not_utf8_stops_no_server(run_server: RunServer) -> None:
    with run_server() as server:
        for path in (b"/glowserve.v1.GlowService/\xff\xfe", b"\xff", b"/glowserve.v1.GlowService/ListModels"):
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
                connection.sendall(call_of(path))
                assert connection.recv(1)  # the settings, at least
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass
        with glowserve.Client(f"127.0.0.1:{server.port}", timeout=30) as client:
            assert client.models()
