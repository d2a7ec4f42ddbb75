"""Whatever bytes arrive on the service's ports, it answers them or closes the connection."""

from __future__ import annotations

import asyncio
import random
import re

from tests.soak.fuzz.calls import PATIENCE_SECONDS
from tests.soak.fuzz.cases import SEED, cases_of, run_cases
from tests.soak.fuzz.connections import grpc_bytes, http_bytes
from tests.soak.fuzz.findings import Findings
from tests.soak.fuzz.mutations import mutated
from tests.soak.service import Service

CLOSED, OPEN = "closed", "open"
METRICS_STATUSES = {"200", "400", "404", "405", "408", "414", "431", "501", "505", CLOSED}
"""What the metrics port may answer; 500 is not among them."""


async def test_arbitrary_bytes_are_answered_or_the_connection_is_closed(
    target: Service, unharmed: None
) -> None:
    findings = Findings("ports")
    ports = {
        "gRPC": (target.target, grpc_bytes(), {CLOSED}),
        "metrics": (address_of(target.metrics_url), http_bytes(), METRICS_STATUSES),
    }

    async def run_case(number: int) -> None:
        rng = random.Random(f"{SEED}/ports/{number}")
        name = rng.choice(sorted(ports))
        address, valid, allowed = ports[name]
        data = rng.choice(valid)
        data = rng.randbytes(rng.randint(0, 300)) if rng.random() < 0.1 else mutated(rng, data, valid)
        status, answer = await send(address, data)
        message = "OK" if status in ("200", CLOSED) else answer[:1000].decode(errors="replace")
        findings.add(number, name, status, allowed, message, data)

    await run_cases(run_case, cases_of("ports"))
    findings.finish()


def address_of(url: str) -> str:
    return url.removeprefix("http://").partition("/")[0]


async def send(address: str, data: bytes) -> tuple[str, bytes]:
    """Sends data on a new connection, and nothing after it.

    Returns:
        The HTTP status of the answer, or CLOSED if there is none, or OPEN if the service does not close the connection;
        and the answer.
    """
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    answer = b""
    try:
        writer.write(data)
        writer.write_eof()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while part := await reader.read(2**16):
                answer += part
    except TimeoutError:
        return OPEN, answer
    except OSError:  # the service reset the connection
        pass
    finally:
        writer.transport.abort()
    found = re.match(rb"HTTP/1\.[01] (\d+)", answer)
    return (found[1].decode() if found else CLOSED), answer
