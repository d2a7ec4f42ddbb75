r"""Where the processor time of a call goes: a profile of the service under load.

    pip install py-spy
    python tests/benchmarks/profile_calls.py
    python tests/benchmarks/profile_calls.py --compare old=../old/.venv/bin/python    # see bench_service.py

64 callers each call Score with one raw image of the tiny model, and wait for the answer. 200 times a second, py-spy
takes the stack of the thread that holds the interpreter's lock. It belongs to the part of the table that its innermost
known frame belongs to. The graph runs without the lock. For quiet machines only; Linux, as root or where ptrace is
allowed.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
from collections import Counter
from collections.abc import Mapping

from bench_service import checkout
from load import connected, load
from models import bundle, describe
from running import OUT, Server, processor_seconds, running, server_process
from services import glowserve_serve

_CALLERS, _SAMPLES_A_SECOND = 64, 200
# The first part with a piece of the path of a frame. Code in C, such as gRPC's, belongs to the frame that called it.
_PARTS = {
    "noise": ("runtime/randomness.py",),
    "scores": ("glowserve/scores/", "glowserve/likelihood.py", "glowserve/drift.py"),
    "the log": ("/logging/", "pythonjsonlogger", "observability/log", "call_line.py", "glowserve/output.py"),
    "metrics": ("prometheus_client", "glowserve_service/observability/"),
    "batches": ("glowserve_service/scheduling/", "models/lane.py", "concurrent/futures/"),
    "messages": ("glowserve/messages.py", "runtime/inputs.py", "google/protobuf/", "front/wire.py"),
    "each call": ("glowserve_service/front/", "glowserve_service/models/", "glowserve/runtime/"),
}
_OTHERS = "gRPC and the event loop"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of a measurement")
    parser.add_argument("--compare", action="append", default=[], type=checkout, metavar="NAME=PYTHON")
    args = parser.parse_args()
    if not shutil.which("py-spy"):
        parser.error("py-spy is not installed: pip install py-spy")
    version = bundle("tiny")
    services = {"here": glowserve_serve(version, 1)}
    services |= {name: glowserve_serve(version, 1, python=python) for name, python in args.compare}
    found = {name: asyncio.run(_profile(server, args.seconds)) for name, server in services.items()}
    print(f"{describe('tiny')}; {_CALLERS} callers. Percent of the time in which a thread has the lock.\n")
    print(f"| | {' | '.join(found)} |\n|---|{'---:|' * len(found)}")
    for part in (*_PARTS, _OTHERS):
        print(f"| {part} | {' | '.join(f'{100 * shares[part]:.0f}' for shares, _ in found.values())} |")
    print(f"| processor ms a call | {' | '.join(f'{spent:.3f}' for _, spent in found.values())} |")


async def _profile(server: Server, seconds: float) -> tuple[Mapping[str, float], float]:
    """The share of each part, and the processor time of a call in milliseconds."""
    stacks = OUT / "stacks.txt"
    async with running(server) as port, connected(port, server.request, _CALLERS) as calls:
        await load(calls, 1.0)
        command = (
            f"record --gil --pid {server_process()} --duration {round(seconds)} --rate {_SAMPLES_A_SECOND}"
        )
        sampling = await asyncio.create_subprocess_exec(
            "py-spy",
            *command.split(),
            "--format",
            "raw",
            "--output",
            str(stacks),
            stdout=asyncio.subprocess.DEVNULL,
        )
        before = processor_seconds(server_process())
        measured = await load(calls, seconds)
        spent = 1000 * (processor_seconds(server_process()) - before) / measured.calls
        if await sampling.wait():
            raise SystemExit("py-spy has failed")
    samples: Counter[str] = Counter()
    for line in stacks.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        samples[_part(stack)] += int(count)
    return {part: samples[part] / samples.total() for part in (*_PARTS, _OTHERS)}, spent


def _part(stack: str) -> str:
    """The part that a stack belongs to; its outermost frame comes first."""
    for frame in reversed(stack.split(";")):
        for part, pieces in _PARTS.items():
            if any(piece in frame for piece in pieces):
                return part
    return _OTHERS


if __name__ == "__main__":
    main()
