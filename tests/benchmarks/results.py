"""The measurements of all rounds, and the tables and ratios that are made of them.

A ratio is the median of the ratios in each round, since the machine's speed changes between rounds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from statistics import median

from load import Load
from running import Server, measure

_MEASURED = ("rate", "p50", "p99", "processor_ms")


def row_of(server: Server, callers: int) -> str:
    """The name of a row: a server with a number of callers."""
    return f"{server.name}, {callers} caller{'s' if callers > 1 else ''}"


class Results:
    """The measurements of one model, by row and round."""

    def __init__(self) -> None:
        self._loads: defaultdict[str, list[Load]] = defaultdict(list)

    def add(self, row: str, load: Load) -> None:
        """Adds a round's measurement, whose rate is in images per second."""
        self._loads[row].append(load)

    async def measure(self, server: Server, callers: tuple[int, ...], images: int, seconds: float) -> None:
        """Starts a server, measures it with each number of callers, and adds a row for each.

        Args:
            server: what is measured.
            callers: the numbers of callers.
            images: the number of images in a call.
            seconds: how long each measurement takes.
        """
        for count, load in (await measure(server, callers, seconds)).items():
            self.add(row_of(server, count), replace(load, rate=images * load.rate))

    def first(self, row: str) -> Load:
        """The measurement of the first round."""
        return self._loads[row][0]

    def print_table(self) -> None:
        """Prints the medians of every row."""
        print("\n| | images/s | p50 ms | p99 ms | processor ms a call | of its caller |")
        print("|---|---:|---:|---:|---:|---:|")
        for row, loads in self._loads.items():
            medians = (median(getattr(load, name) for load in loads) for name in (*_MEASURED, "callers_ms"))
            print("| {} | {:.1f} | {:.2f} | {:.2f} | {:.3f} | {:.3f} |".format(row, *medians))
        print()

    def print_ratio(self, row: str, base: str) -> None:
        """Prints how many times the rate of a base row a row has."""
        ratio = median(ours.rate / theirs.rate for ours, theirs in self._rounds(row, base))
        print(f"- {row}: {ratio:.2f} x {base}")

    def print_comparison(self, server: Server, base: Server, callers: tuple[int, ...]) -> None:
        """Prints a table of a server's rates and times as ratios of another one's, for each number of callers."""
        print(f"\n{server.name} in multiples of {base.name}: median of the rounds (smallest to largest).\n")
        print("| callers | images/s | p50 | p99 | processor time |\n|---|---:|---:|---:|---:|")
        for count in callers:
            rounds = list(self._rounds(row_of(server, count), row_of(base, count)))
            cells = []
            for name in _MEASURED:
                ratios = [getattr(ours, name) / getattr(theirs, name) for ours, theirs in rounds]
                cells.append(f"{median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f})")
            print(f"| {count} | {' | '.join(cells)} |")

    def print_limit(self, row: str, graph: str, empty: str) -> None:
        """Prints the rate of a row beside what the machine allows.

        The limit is a server that takes calls as fast as the empty server, and then runs graphs as fast as ONNX Runtime
        alone, on the same cores.
        """
        shares = [
            ours.rate * (1 / alone.rate + 1 / call.rate)
            for ours, alone, call in self._rounds(row, graph, empty)
        ]
        limits = [1 / (1 + call.rate / alone.rate) for alone, call in self._rounds(graph, empty)]
        print(f"- {row}: {median(shares):.2f} of the limit of empty calls and runs of the graph ", end="")
        print(f"one after the other, which is {median(limits):.2f} x {empty}")

    def print_wait(self, row: str, graph: str, empty: str) -> None:
        """Prints how much longer a call takes than a run of the graph, and than a run and an empty call."""
        waits = [ours.p50 - alone.p50 for ours, alone in self._rounds(row, graph)]
        over = [ours.p50 - alone.p50 - call.p50 for ours, alone, call in self._rounds(row, graph, empty)]
        print(
            f"- {row}: p50 {median(waits):.2f} ms over {graph}; {median(over):.2f} ms over that and {empty}"
        )

    def print_difference(self, row: str, base: str) -> None:
        """Prints how much longer a call of a row takes than one of a base row."""
        difference = median(ours.p50 - theirs.p50 for ours, theirs in self._rounds(row, base))
        print(f"- {row}: p50 {difference:.2f} ms over {base}")

    def _rounds(self, *rows: str) -> Iterator[tuple[Load, ...]]:
        """The measurements of some rows, round by round."""
        return zip(*(self._loads[row] for row in rows), strict=True)
