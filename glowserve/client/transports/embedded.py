"""The transport of `glowserve.open`: runs a bundle in this process, without a service.

Requests go through the same functions as in the service, `glowserve.runtime.glow_service`, so that both check, prepare
and answer them in the same way.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import grpc

from glowserve.client.errors import RequestError
from glowserve.client.transports.base import RepeatableRequests
from glowserve.runtime import glow_service
from glowserve.runtime.canary import check_canary, check_n_bits
from glowserve.runtime.config import Limits, RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.errors import GlowserveError, InvalidRequestError, ModelNotFoundError
from glowserve.runtime.glow_service import SampleCall
from glowserve.runtime.image_set import ImageSet
from glowserve.runtime.repository import newest_bundle
from glowserve.runtime.runner import EngineRunner, run_now
from glowserve.runtime.status import status_of
from glowserve.v1 import glow_service_pb2 as pb


class EmbeddedTransport:
    """Answers requests for one bundle; implements `Transport`.

    It can be pickled, also within a client: the copy opens the same version of the bundle again.

    Args:
        model: REPOSITORY/MODEL, which opens the newest version, or REPOSITORY/MODEL/VERSION.
        config: the device, its threads and its memory.

    Raises:
        GlowserveError: there is no bundle, it is damaged, or the device cannot be used.
    """

    def __init__(self, model: str | PathLike[str], config: RuntimeConfig) -> None:
        bundle = newest_bundle(Path(model))
        self._arguments = bundle.path.resolve(), config
        self._engine = Engine(bundle, config)
        try:
            check_canary(self._engine, bundle)
            check_n_bits(self._engine, bundle)
            self._runner = EngineRunner(bundle, self._engine, Limits())
        except BaseException:
            self._engine.close()
            raise
        self._manifest = bundle.manifest

    def __reduce__(self) -> tuple[type[EmbeddedTransport], tuple[Path, RuntimeConfig]]:
        return type(self), self._arguments

    def score(self, request: pb.ScoreRequest) -> pb.ScoreResponse:
        """See Transport."""
        with self._answering(request.model):
            return run_now(glow_service.score(self._runner, request))

    def score_stream(self, requests: Iterator[pb.ScoreRequest]) -> Generator[pb.ScoreResponse, None, None]:
        """See Transport. Reads a request when its response is taken."""
        for request in requests:
            yield self.score(request)

    def sample(self, request: pb.SampleRequest) -> Generator[pb.SampleResponse, None, None]:
        """See Transport."""
        with self._answering(request.model):
            call = SampleCall(self._runner, request)
            for part in call.parts():
                responses = run_now(call.answer(self._runner, part))
                yield from responses
                call.sent(responses)

    def explain(self, request: pb.ExplainRequest) -> pb.ExplainResponse:
        """See Transport."""
        with self._answering(request.model):
            return run_now(glow_service.explain(self._runner, request))

    def score_set(self, requests: RepeatableRequests) -> pb.ScoreSetResponse:
        """See Transport."""
        images = ImageSet()
        for i, request in enumerate(requests):
            with self._answering(request.model, part=f"requests[{i}]"):
                images.select(request.model)
                images.add(run_now(images.score(self._runner, request)))
        with self._answering(pb.ModelSpec()):
            return run_now(images.response(self._runner.compute))

    def encode(self, request: pb.EncodeRequest) -> pb.EncodeResponse:
        """See Transport."""
        with self._answering(request.model):
            return run_now(glow_service.encode(self._runner, request))

    def decode(self, request: pb.DecodeRequest) -> pb.DecodeResponse:
        """See Transport."""
        with self._answering(request.model):
            return run_now(glow_service.decode(self._runner, request))

    def interpolate(self, request: pb.InterpolateRequest) -> pb.InterpolateResponse:
        """See Transport."""
        with self._answering(request.model):
            return run_now(glow_service.interpolate(self._runner, request))

    def manipulate(self, request: pb.ManipulateRequest) -> pb.ManipulateResponse:
        """See Transport."""
        with self._answering(request.model):
            return run_now(glow_service.manipulate(self._runner, request))

    def list_models(self, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        """See Transport. Lists the open model version."""
        version = pb.ModelVersion(name=self._manifest.model, version=self._manifest.version)
        summary = pb.ModelSummary(
            model=version,
            image=self._manifest.image,
            state=pb.MODEL_STATE_SERVING,
            classes=self._runner.bundle.classes,
            attributes=self._runner.attributes.names,
        )
        return pb.ListModelsResponse(models=[summary])

    def get_model(self, request: pb.GetModelRequest) -> pb.GetModelResponse:
        """See Transport."""
        with self._answering(request.model):
            return glow_service.get_model(self._manifest, self._engine.placements)

    def close(self) -> None:
        """Frees the engine's memory on a GPU."""
        self._engine.close()

    @contextmanager
    def _answering(self, spec: pb.ModelSpec, part: str = "") -> Iterator[None]:
        """Checks that the request is for the open model, and converts runtime errors to RequestError.

        Args:
            spec: the model of the request.
            part: of the call that the request is; "" if it is the whole.
        """
        name, version = self._manifest.model, self._manifest.version
        try:
            if spec.name not in ("", name) or spec.version not in (0, version):
                raise ModelNotFoundError(
                    f"model {spec.name!r} version {spec.version} is not open; open is {name} version {version}"
                )
            yield
        except GlowserveError as error:
            if part:
                error.place(part)
            status = status_of(error)
            limits, field = {}, ""
            if isinstance(error, InvalidRequestError):
                limits, field = error.limits, error.field or ""
            raise RequestError(
                grpc.StatusCode[status.code], str(error), status.reason, limits=limits, field=field
            ) from None
