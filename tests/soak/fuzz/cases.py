"""The cases of the fuzz tests: how many there are, and calls with changed messages.

$GLOWSERVE_FUZZ_CASES is the number of cases in all, $GLOWSERVE_FUZZ_SEED chooses them. A case depends on the seed, its
family and its number alone, so that these three reproduce it.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from tests.soak.fuzz.methods import Method
from tests.soak.fuzz.mutations import mutated

CASES = int(os.environ.get("GLOWSERVE_FUZZ_CASES", "100000"))
SEED = int(os.environ.get("GLOWSERVE_FUZZ_SEED", "0"))
# The share of the cases that each family has.
_SHARES = {"bytes": 0.6, "pictures": 0.15, "decoder": 0.1, "structured": 0.1, "ports": 0.05}
_CONCURRENCY = 32


def cases_of(family: str) -> int:
    """The number of cases of a family."""
    return max(1, round(CASES * _SHARES[family]))


async def run_cases(run_case: Callable[[int], Awaitable[None]], n: int) -> None:
    """Runs cases 0 to n - 1, several side by side."""
    numbers = iter(range(n))

    async def work() -> None:
        for number in numbers:
            await run_case(number)

    await asyncio.gather(*(work() for _ in range(_CONCURRENCY)))


@dataclass(frozen=True)
class Case:
    """A call with changed messages."""

    number: int
    method: Method
    path: str
    """The method's, or one that does not exist."""
    messages: tuple[bytes, ...]
    """One, or several if the method takes a stream."""

    @property
    def method_exists(self) -> bool:
        return self.path == self.method.path


def changed_call(number: int, methods: Sequence[Method]) -> Case:
    """A call of some method, with valid requests of this or another method that are then changed."""
    rng = random.Random(f"{SEED}/bytes/{number}")
    method = rng.choices(methods, [method.weight for method in methods])[0]
    others = [data for each in methods for data in each.valid]
    source = rng.choice(methods) if rng.random() < 0.1 else method
    count = rng.randint(1, 4) if method.streams_requests else 1
    messages = tuple(mutated(rng, rng.choice(source.valid), others) for _ in range(count))
    path = method.path + rng.choice("xX0/") if rng.random() < 0.01 else method.path
    return Case(number, method, path, messages)
