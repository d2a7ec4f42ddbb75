"""docker-compose.yml, .env.example and the Dockerfile agree with the service and with each other."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from typing import Any

import yaml
from glowserve_service.config import ServiceConfig, variable

from tests.deploy.dashboards import DEPLOY, ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICE: dict[str, Any] = COMPOSE["services"]["glowserve"]
EXAMPLE = (ROOT / ".env.example").read_text()
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
# The image sets these, and published ports, mounts and the health check rely on them.
FIXED = {"GLOWSERVE_REPOSITORY", "GLOWSERVE_HOST", "GLOWSERVE_GRPC_PORT", "GLOWSERVE_METRICS_PORT"}
VARIABLES = {variable(setting) for setting in fields(ServiceConfig)} - FIXED


def test_every_setting_of_the_service_can_be_given() -> None:
    """By a test of the generated parts, the lists are those of `make docs`; this one compares them with the service."""
    assert {line.partition("=")[0] for line in SERVICE["environment"]} == VARIABLES
    assert set(re.findall(r"^#(GLOWSERVE_\w+)=", EXAMPLE, re.MULTILINE)) == VARIABLES


def test_every_variable_of_compose_is_in_the_example_and_every_other_line_is_a_comment() -> None:
    used = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    named = set(re.findall(r"^#?([A-Z_]+)=", EXAMPLE, re.MULTILINE))
    assert used - VARIABLES == named - VARIABLES
    lines = [line for line in EXAMPLE.splitlines() if line and not line.startswith("#")]
    assert lines == ["ENV_FILE=.env"]


def test_the_example_has_the_defaults_of_compose() -> None:
    defaults = dict(re.findall(r"\$\{(\w+):?-([^}]*)\}", (ROOT / "docker-compose.yml").read_text()))
    for name, text in re.findall(r"^#([A-Z_]+)=(.*)$", EXAMPLE, re.MULTILINE):
        if name in defaults:
            assert text == defaults[name], name


def test_nothing_is_published_beyond_loopback_unless_asked() -> None:
    for name, service in COMPOSE["services"].items():
        for port in service.get("ports", ()):
            assert re.match(r"\$\{BIND(_DASHBOARDS)?:-127\.0\.0\.1\}:", port), (name, port)


def test_folders_are_mounted_in_the_long_form_and_no_password_is_in_the_file() -> None:
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", ()):
            assert volume == "prometheus:/prometheus" or volume["type"] == "bind"
    text = (ROOT / "docker-compose.yml").read_text().replace("no password", "")
    assert not re.search("password", text, re.IGNORECASE)


def test_a_container_gets_longer_to_stop_than_the_service_takes() -> None:
    (seconds,) = re.findall(r":-(\d+)s\}", SERVICE["stop_grace_period"])
    assert float(seconds) > ServiceConfig.drain_seconds + 10


def test_the_images_run_as_a_number_and_their_label_has_the_version() -> None:
    assert "USER 10001:10001\n" in DOCKERFILE
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f'org.opencontainers.image.version="{version}"' in DOCKERFILE
    assert SERVICE["user"] == "${RUN_AS:-10001:10001}"


def test_the_targets_of_the_dockerfile_are_those_of_compose() -> None:
    targets = set(re.findall(r"^FROM base AS (\w+)$", DOCKERFILE, re.MULTILINE))
    assert targets == {"cpu", "gpu", "train"}
    assert SERVICE["build"]["target"] == "${TARGET:-cpu}"
    assert COMPOSE["services"]["demo"]["build"]["target"] == "train"
