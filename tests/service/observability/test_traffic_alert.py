"""The alert of changed traffic in a real Prometheus, with the rules of deploy/."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
from glowserve_service.observability.metrics import Metrics
from glowserve_service.observability.metrics_server import MetricsServer
from glowserve_service.observability.traffic import Traffic

from glowserve.drift import RUN_LENGTH, DriftDetector, Float64Array
from tests.prometheus import RULES, changed_models, program, prometheus, scrapes
from tests.service.wire import wait_for


class Model:
    """A model with 1,250 calibration images, and images whose oddness is normal, shifted or narrowed."""

    def __init__(self, name: str, seed: int, mean: float = 0.0, deviation: float = 1.0) -> None:
        self._generator = np.random.default_rng(seed)
        self._calibration = np.sort(self._generator.normal(size=1250))
        self._normal = mean, deviation
        self.traffic = Traffic(name, 1, DriftDetector(self._calibration))

    def score(self, n: int, *, changed: bool) -> None:
        oddness = self._generator.normal(*(self._normal if changed else (0, 1)), size=n)
        p_values: Float64Array = (1251 - np.searchsorted(self._calibration, oddness)) / 1251
        self.traffic.add(np.full(n, 3.3), p_values)


def test_the_alert_fires_for_changed_traffic_and_not_for_twenty_controls(tmp_path: Path) -> None:
    program("prometheus")
    controls = [Model(f"control{i}", seed=i) for i in range(20)]
    odder, typical = Model("odder", 100, mean=0.5), Model("typical", 101, mean=-0.5)
    narrower = Model("narrower", 102, deviation=0.5)
    models = [*controls, odder, typical, narrower]
    metrics = Metrics()
    for model in models:
        metrics.traffic.show(model.traffic)
    server = MetricsServer("127.0.0.1", 0, metrics.registry, None, None)
    try:
        with prometheus(server.server_port, tmp_path) as url:
            wait_for(lambda: scrapes(url) >= 2)
            for model in models:
                model.score(5000, changed=False)
            seen = scrapes(url)
            wait_for(lambda: scrapes(url) >= seen + 3)
            assert changed_models(url) == set()
            for model in (odder, typical, narrower):
                model.score(1000, changed=True)
            wait_for(lambda: changed_models(url) == {"odder", "typical", "narrower"})
            for model in controls:
                model.score(5000, changed=False)
            seen = scrapes(url)
            wait_for(lambda: scrapes(url) >= seen + 3)
            assert changed_models(url) == {"odder", "typical", "narrower"}
    finally:
        server.close()


def test_the_alert_rules_fire_when_they_are_due() -> None:
    command = [program("promtool"), "test", "rules", "rules_test.yml"]
    done = subprocess.run(command, cwd=RULES.parent, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rule_has_the_detector_s_run_length() -> None:
    (threshold,) = re.findall(r"glowserve_drift_statistic >= (\S+)", RULES.read_text())
    assert float(threshold) == RUN_LENGTH
