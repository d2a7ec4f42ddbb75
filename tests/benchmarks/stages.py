"""How long a call is in each stage of a service, according to the service's own metrics."""

from __future__ import annotations

import math
from collections import defaultdict
from urllib.request import urlopen

from load import connected, load
from prometheus_client.parser import text_string_to_metric_families
from running import Server, running
from services import metrics_port

_STAGES = ("preparation", "queue", "execution", "serialization", "request_duration")
_WARM_UP_SECONDS = 0.2


async def print_stages(service: Server, callers: tuple[int, ...], seconds: float) -> None:
    """Measures a service with each number of callers, and prints a table of mean times."""
    print(f"\nA call of {service.name}: mean milliseconds in each stage, and of CPU time of all threads.\n")
    print(f"| callers | {' | '.join(_STAGES)} | CPU |\n|---|{'---:|' * (len(_STAGES) + 1)}")
    async with running(service) as port:
        for count in callers:
            async with connected(port, service.request, count) as calls:
                await load(calls, _WARM_UP_SECONDS)
                before = _metrics(metrics_port(service))
                await load(calls, seconds)
                spent = {
                    name: value - before[name] for name, value in _metrics(metrics_port(service)).items()
                }
            means = [
                spent[f"glowserve_{stage}_seconds_sum"] / spent[f"glowserve_{stage}_seconds_count"]
                for stage in _STAGES
            ]
            calls_ended = spent["glowserve_request_duration_seconds_count"]
            means.append(spent["process_cpu_seconds_total"] / calls_ended)
            print(f"| {count} | {' | '.join(f'{1000 * mean:.3f}' for mean in means)} |")


def _metrics(port: str) -> defaultdict[str, float]:
    """The values of all metrics by name, summed over their labels."""
    values: defaultdict[str, float] = defaultdict(float)
    with urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        for family in text_string_to_metric_families(response.read().decode()):
            for sample in family.samples:
                if math.isfinite(sample.value):
                    values[sample.name] += sample.value
    return values
