"""Sends requests of 30 MiB at once to a service in a small container; exit code 1 if it does not answer as it should.

A few calls may fail as INTERNAL: where memory runs out, the system ends a process that decodes, not the service.

python large.py TARGET
"""

from __future__ import annotations

import sys
import threading
from collections import Counter

import grpc

from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import glow_service_pb2_grpc

_CALLERS, _CALLS, _MIB = 48, 2, 30
_MOST_ENDED = 4


def main(target: str) -> int:
    """Prints how the calls ended."""
    codes = Counter[str]()
    request = pb.ScoreRequest(images=pb.Images(encoded={"data": [bytes(_MIB * 2**20)]}))
    with grpc.insecure_channel(target, [("grpc.max_send_message_length", -1)]) as channel:
        stub = glow_service_pb2_grpc.GlowServiceStub(channel)

        def call() -> None:
            for _ in range(_CALLS):
                try:
                    stub.Score(request, timeout=60)
                except grpc.RpcError as error:
                    codes[error.code().name] += 1

        threads = [threading.Thread(target=call) for _ in range(_CALLERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(dict(codes))
        stub.ListModels(pb.ListModelsRequest(), timeout=60)
    few = codes.pop("INTERNAL", 0) <= _MOST_ENDED
    return 0 if few and set(codes) <= {"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"} else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
