"""`glowserve ui`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys

import glowserve
from glowserve import output
from glowserve.cli.failure import Failure
from glowserve.cli.target import add_server_arguments, server_settings
from glowserve.ui.errors import ListenError
from glowserve.ui.server import serve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    add_server_arguments(parser, "localhost:8001")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="where the pages are served. Everybody who reaches them uses the service as this command does; "
        "default: 127.0.0.1, this machine alone",
    )
    parser.add_argument("--port", type=int, default=8003, help="0 for a free one; default: 8003")


def run(args: argparse.Namespace) -> int:
    """Serves the pages until SIGTERM or SIGINT, which end the process at once: it has nothing to finish.

    Raises:
        Failure: an argument is wrong, or the port is in use.
    """
    if not 0 <= args.port <= 65535:
        raise Failure(f"--port is {args.port}; it must lie in 0 to 65535", 2)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    try:
        asyncio.run(_serve(args))
    except (ListenError, ValueError) as error:
        raise Failure(error, 2) from error
    return 0


async def _serve(args: argparse.Namespace) -> None:
    async with glowserve.AsyncClient(args.server, **server_settings(args)) as client:
        await serve(client, args.server, args.host, args.port, _announce)


def _announce(url: str) -> None:
    output.say(sys.stdout, f"glowserve: the pages are at {url}\n")
