"""What the largest batch and the delay are worth: the curves of docs/sizing.md. For a quiet machine; ten minutes.

    python tests/benchmarks/bench_batching.py [--model medium] [--callers 32] [--seconds 4] [--rounds 3]

Services with different settings take turns, in each round once; the table has the medians of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics

from load import Load
from models import bundle, describe
from running import measure
from services import glowserve_serve

_SIZES, _DELAYS = (1, 2, 4, 8, 16, 32, 64), (0, 1, 2, 5, 10)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("tiny", "medium"), default="tiny")
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    settings = [("--max-batch-size", str(size)) for size in _SIZES]
    settings += [("--max-queue-delay-ms", str(delay)) for delay in _DELAYS]
    version, found = bundle(args.model), dict[tuple[str, str], list[Load]]()
    for _ in range(args.rounds):
        for flags in settings:
            service = glowserve_serve(version, 1, *flags)
            measured = asyncio.run(measure(service, (args.callers,), args.seconds))
            found.setdefault(flags, []).append(measured[args.callers])
    print(f"{describe(args.model)}; {args.callers} callers of one image each, {args.rounds} rounds\n")
    print("| setting | images/s | p50 ms | p99 ms |\n|---|---:|---:|---:|")
    for flags, loads in found.items():
        rate, p50, p99 = (
            statistics.median(getattr(each, name) for each in loads) for name in ("rate", "p50", "p99")
        )
        print(f"| `{' '.join(flags)}` | {rate:.0f} | {p50:.1f} | {p99:.1f} |")


if __name__ == "__main__":
    main()
