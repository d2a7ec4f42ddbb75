"""Whatever messages a caller sends, the service answers with a status of the contract, and stays as it was."""

from __future__ import annotations

import grpc

from glowserve.oip import grpc_service_pb2 as oip
from tests.soak.fuzz.calls import allowed_statuses, send
from tests.soak.fuzz.cases import cases_of, changed_call, run_cases
from tests.soak.fuzz.findings import Findings
from tests.soak.fuzz.methods import Method
from tests.soak.service import Service


async def test_changed_messages_are_answered_or_refused(
    target: Service, methods: list[Method], unharmed: None
) -> None:
    findings = Findings("bytes")

    async def run_case(number: int) -> None:
        case = changed_call(number, methods)
        status, message, responses = await send(channel, case.method, case.path, case.messages)
        called = case.method.name if case.method_exists else "a method that does not exist"
        sent = b" ".join(case.messages)
        findings.add(number, called, status, allowed_statuses(case), message, sent)
        for data in responses:
            response = case.method.response.FromString(data)
            if isinstance(response, oip.ModelStreamInferResponse) and response.error_message:
                findings.add(number, "in the stream", "REFUSED", {"REFUSED"}, response.error_message, sent)

    async with grpc.aio.insecure_channel(target.target) as channel:
        await run_cases(run_case, cases_of("bytes"))
    findings.finish()
