"""The series of scored images come and go with the version that scores them."""

from __future__ import annotations

from pathlib import Path

from glowserve_service.server import Server

from glowserve.images import UInt8Array
from glowserve.v1 import glow_service_pb2 as pb
from tests.service.metrics import has_series, value
from tests.service.models.running import ON_REQUEST, RunService, publish
from tests.service.wire import raw


def test_each_version_has_series_of_its_own_as_long_as_it_is_served(
    run_service: RunService,
    models: Path,
    second: Path,
    digits: UInt8Array,
) -> None:
    def scored(server: Server, version: int) -> float | None:
        labels = {"model": "digits", "version": str(version)}
        if not has_series(server, "bits_per_dim_count", **labels):
            return None
        return value(server, "bits_per_dim_count", **labels)

    with run_service(repository=models, **ON_REQUEST) as service:
        service.glow.Score(pb.ScoreRequest(images=raw(digits[:3])))
        assert (scored(service.server, 1), scored(service.server, 2)) == (3, None)
        publish(second, models / "digits" / "2")
        service.load()
        assert (scored(service.server, 1), scored(service.server, 2)) == (None, 0)
        service.glow.Score(pb.ScoreRequest(images=raw(digits[:4])))
        assert scored(service.server, 2) == 4
        service.unload()
        assert scored(service.server, 2) is None
