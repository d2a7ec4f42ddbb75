r"""Speed of the service beside ONNX Runtime alone, an empty gRPC server, LitServe, MLServer and Ray Serve.

    python tests/benchmarks/bench_service.py
    python tests/benchmarks/bench_service.py --model tiny --seconds 1 --rounds 1    # whether it works
    python tests/benchmarks/bench_service.py --device cuda --images 32 --others     # with glowserve[gpu]

Another checkout, installed in an environment of its own, beside this one:

    python tests/benchmarks/bench_service.py --compare old=../old/.venv/bin/python \
        --only ours,old --seconds 4 --rounds 5    # six minutes

Each caller calls Score with one raw image (or --images), and waits for the answer before the next call. Callers and
server share the machine's cores. In each round, each server is started again and measured alone; every other round goes
through the servers in reverse order. Processor time is that of all processes of a server, without its callers. The
other servers are installed from PyPI into out/bench/; of the settings that are tried for each, the fastest is measured.
For quiet machines only; Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graph_alone import CORES, Setting, measure_alone, settings
from load import Load
from models import MODELS, bundle, describe, random_images
from others import NAMES, REQUIREMENTS, install, variants
from results import Results, row_of
from running import Server, measure
from services import empty_server, glowserve_serve, package_folder, sleeping_server
from stages import print_stages

from glowserve.scores import TABLE, Needs

_MODELS = ("tiny", "medium")
_CALLERS = (64, 8, 1)
_TRIAL_SECONDS = 2.0
_PARTS = ("ours", "quiet", "scores", "graph", "empty", "stages")
# What a caller may ask for, beside what every answer has: the number to act on, and all but estimates from many draws.
_SCORES = {
    "p-value": ["anomaly_p_value"],
    "all scores": [name for name, score in TABLE.items() if not score.needs & (Needs.DRAWS | Needs.CLASSES)],
}


def main() -> None:
    args = _parse()
    for other in args.others:
        install(other)
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("onnxruntime", "grpcio"))
    processor = platform.processor() or platform.machine()
    print(f"{processor}, {CORES} cores, Python {platform.python_version()}, ", end="")
    print(", ".join((*versions, *(REQUIREMENTS[other][0] for other in args.others))))
    for name, python in args.compare.items():
        print(f"{name} is {package_folder(python)}")
    print(f"Medians of {args.rounds} rounds of {args.seconds:g} s, and of the ratios in each round.")
    bundles = {name: bundle(name) for name in ([args.model] if args.model else _MODELS)}
    for name, version in bundles.items():
        print(f"\n## {describe(name)}\n", flush=True)
        asyncio.run(Benchmark(version, args).run())


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=MODELS, help="only this one")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="of the service and of ONNX Runtime alone"
    )
    parser.add_argument("--images", type=int, default=1, help="in a call")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--others", nargs="*", choices=NAMES, default=list(NAMES), help="only these, or none")
    parser.add_argument(
        "--compare",
        action="append",
        default=[],
        type=checkout,
        metavar="NAME=PYTHON",
        help="measure `PYTHON -m glowserve serve` too: another checkout; may be given several times",
    )
    parser.add_argument(
        "--only",
        metavar="NAME,...",
        help=f"measure only these: {', '.join((*_PARTS, *NAMES))}, and the names of --compare",
    )
    args = parser.parse_args()
    args.compare = dict(args.compare)
    known = {*_PARTS, *NAMES, *args.compare}
    args.only = set(args.only.split(",")) if args.only else known
    if unknown := args.only - known:
        parser.error(f"--only: {', '.join(sorted(unknown))} is not one of {', '.join(sorted(known))}")
    args.others = [other for other in args.others if other in args.only]
    if args.images > 1 and args.others:
        parser.error("the other servers take one image a call; give --others without a name")
    return args


def checkout(text: str) -> tuple[str, str]:
    """The name and the interpreter of a NAME=PYTHON."""
    name, _, python = text.partition("=")
    if name in (*_PARTS, *NAMES) or not Path(python).is_file():
        raise argparse.ArgumentTypeError(
            f"{text} is not NAME=PYTHON with a new name and an interpreter's path"
        )
    return name, str(Path(python).absolute())


class Benchmark:
    """Everything that is measured of one model.

    Args:
        version: the model's VERSION folder.
        args: the command line's.
    """

    def __init__(self, version: Path, args: argparse.Namespace) -> None:
        self._version, self._args = version, args
        self._flags = () if args.device == "cpu" else ("--device", args.device)
        self._ours = self._service()
        self._quiet = self._service("--log-level", "warning")
        self._scores = [
            self._service(name=f"glowserve serve, {name}", scores=scores) for name, scores in _SCORES.items()
        ]
        self._empty = empty_server(version, args.images)
        self._compared = [
            self._service(python=python, name=f"glowserve serve of {name}")
            for name, python in args.compare.items()
            if name in args.only
        ]
        self._results = Results()

    def _service(self, *flags: str, **options: Any) -> Server:
        return glowserve_serve(self._version, self._args.images, *self._flags, *flags, **options)

    def _measures(self, part: str) -> bool:
        return part in self._args.only

    async def run(self) -> None:
        """Measures all rounds, and prints."""
        others = [await self._fastest(other) for other in self._args.others]
        turns = self._turns(others)
        best, graphs = self._graph_rows() if self._measures("graph") else ("", {})
        sleeping = None
        for number in range(self._args.rounds):
            for row, setting in graphs.items():
                self._results.add(row, self._alone(setting, self._args.seconds))
            for server, callers in turns if number % 2 == 0 else reversed(turns):
                await self._results.measure(server, callers, self._args.images, self._args.seconds)
            if graphs and self._measures("empty"):
                sleeping = sleeping or self._sleeping(graphs)
                await self._results.measure(sleeping, (1,), self._args.images, self._args.seconds)
        self._results.print_table()
        if self._measures("ours"):
            self._print_ratios(best, graphs, others, sleeping)
        if self._measures("stages"):
            for service in (self._ours, *self._compared):
                await print_stages(service, _CALLERS, self._args.seconds)

    def _turns(self, others: Sequence[Server]) -> list[tuple[Server, tuple[int, ...]]]:
        """The servers of a round, each with its numbers of callers."""
        turns: list[tuple[Server, tuple[int, ...]]] = [(service, _CALLERS) for service in self._compared]
        if self._measures("ours"):
            turns.insert(0, (self._ours, _CALLERS))
        if self._measures("quiet"):
            turns.append((self._quiet, (64,)))
        if self._measures("scores"):
            turns += [(service, _CALLERS) for service in self._scores]
        if self._measures("empty"):
            turns.append((self._empty, (64, 1)))
        return [*turns, *((other, (64,)) for other in others)]

    async def _fastest(self, other: str) -> Server:
        """Another server with the setting that is fastest at 64 callers; prints the rates of all settings."""
        tried = []
        image = random_images(self._version.parent.name, 1)
        for server in variants(other, self._version / "forward.onnx", image):
            load = (await measure(server, (64,), self._trial_seconds))[64]
            tried.append((load.rate, server))
            print(f"tried {server.name}: {load.rate:.1f} images/s, p50 {load.p50:.1f} ms", flush=True)
        return max(tried, key=lambda found: found[0])[1]

    @property
    def _trial_seconds(self) -> float:
        return min(_TRIAL_SECONDS, self._args.seconds)

    def _alone(self, setting: Setting, seconds: float) -> Load:
        return measure_alone(self._version, setting, seconds, self._args.device)

    def _graph_rows(self) -> tuple[str, dict[str, Setting]]:
        """The row of the fastest setting of the graph, and the settings of all its rows."""
        device, images = self._args.device, self._args.images
        fastest = max(settings(device), key=lambda setting: self._alone(setting, self._trial_seconds).rate)
        best = f"ONNX Runtime alone, {fastest}"
        threads = sorted({1, CORES}) if device == "cpu" else [1]
        single = {
            f"ONNX Runtime alone, {images} at a time, {n} threads": Setting(images, 1, n) for n in threads
        }
        return best, {best: fastest, **single}

    def _sleeping(self, graphs: dict[str, Setting]) -> Server:
        _, one_thread, *_ = graphs
        return sleeping_server(self._empty, self._results.first(one_thread).p50)

    def _print_ratios(
        self, best: str, graphs: dict[str, Setting], others: Sequence[Server], sleeping: Server | None
    ) -> None:
        results, ours, ours_alone = self._results, row_of(self._ours, 64), row_of(self._ours, 1)
        empty, empty_alone = row_of(self._empty, 64), row_of(self._empty, 1)
        bases = [best] if graphs else []
        bases += [empty] if self._measures("empty") else []
        bases += [row_of(other, 64) for other in others]
        rows = [ours, row_of(self._quiet, 64)] if self._measures("quiet") else [ours]
        for row in rows:
            for base in bases:
                results.print_ratio(row, base)
        if graphs and self._measures("empty"):
            if self._args.device == "cpu":
                results.print_limit(ours, best, empty)
            for graph in list(graphs)[1:]:
                results.print_wait(ours_alone, graph, empty_alone)
        if sleeping:
            results.print_difference(ours_alone, row_of(sleeping, 1))
        for service in self._scores if self._measures("scores") else []:
            results.print_comparison(service, self._ours, _CALLERS)
        for service in self._compared:
            results.print_comparison(self._ours, service, _CALLERS)


if __name__ == "__main__":
    main()
