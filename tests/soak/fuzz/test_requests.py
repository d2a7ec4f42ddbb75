"""Whatever is in the fields of a request, the service answers it or refuses it."""

from __future__ import annotations

import itertools
from typing import Any

import grpc
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from glowserve.oip import grpc_service_pb2 as oip
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import tensor_pb2
from tests.service.front import test_properties as shapes
from tests.soak.fuzz.calls import allowed_statuses, send_blocking
from tests.soak.fuzz.cases import SEED, Case, cases_of
from tests.soak.fuzz.findings import Findings
from tests.soak.fuzz.inference_requests import TEXTS, infer_requests
from tests.soak.fuzz.methods import Method
from tests.soak.service import Service


def requests() -> st.SearchStrategy[tuple[str, Any]]:
    """The name of a method that takes arguments, and a request for it."""
    latents = shapes.tensors(tensor_pb2.DATA_TYPE_FLOAT32, [64])
    temperatures = st.one_of(st.none(), st.floats(0, 2, width=32), st.floats(width=32))
    made: dict[str, st.SearchStrategy[Any]] = {
        "Score": st.builds(pb.ScoreRequest, model=shapes.specs(), images=shapes.images(), seed=shapes.SEEDS),
        "Explain": st.builds(pb.ExplainRequest, model=shapes.specs(), images=shapes.images()),
        "Encode": st.builds(pb.EncodeRequest, model=shapes.specs(), images=shapes.images()),
        "Decode": st.builds(pb.DecodeRequest, model=shapes.specs(), latents=latents, format=shapes.FORMATS),
        "Sample": st.builds(
            pb.SampleRequest,
            model=shapes.specs(),
            n=st.integers(0, 70),
            temperature=temperatures,
            seed=shapes.SEEDS,
            format=shapes.FORMATS,
        ),
        "GetModel": st.builds(pb.GetModelRequest, model=shapes.specs()),
        "ModelInfer": infer_requests(),
        "ModelStreamInfer": infer_requests(),
        "ModelConfig": st.builds(oip.ModelConfigRequest, name=TEXTS, version=TEXTS),
        "ModelStatistics": st.builds(oip.ModelStatisticsRequest, name=TEXTS, version=TEXTS),
        "RepositoryIndex": st.builds(oip.RepositoryIndexRequest, repository_name=TEXTS, ready=st.booleans()),
    }
    return st.sampled_from(sorted(made)).flatmap(lambda name: st.tuples(st.just(name), made[name]))


def test_requests_with_arbitrary_fields_are_answered_or_refused(
    target: Service, methods: list[Method], unharmed: None
) -> None:
    findings, numbers = Findings("structured"), itertools.count()
    by_name = {method.name: method for method in methods}

    @seed(SEED)
    @settings(
        max_examples=cases_of("structured"),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(request=requests())
    def run_case(request: tuple[str, Any]) -> None:
        name, data = request[0], request[1].SerializeToString()
        case = Case(next(numbers), by_name[name], by_name[name].path, (data,))
        status, message, responses = send_blocking(channel, case.method, data)
        findings.add(case.number, name, status, allowed_statuses(case), message, data)
        for response in map(case.method.response.FromString, responses):
            if isinstance(response, oip.ModelStreamInferResponse) and (text := response.error_message):
                findings.add(case.number, "in the stream", "REFUSED", {"REFUSED"}, text, data)
        assert not findings.failures, findings.failures.pop()

    with grpc.insecure_channel(target.target) as channel:
        run_case()
    findings.finish()
