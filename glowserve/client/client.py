"""The client for threads. `AsyncClient` has the same calls for event loops."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from types import TracebackType

import numpy as np
import numpy.typing as npt

from glowserve import messages
from glowserve.client import requests
from glowserve.client.class_names import ClassNames
from glowserve.client.errors import RequestError
from glowserve.client.fitting import Fitting
from glowserve.client.inputs import ImageLike, ImagesLike, LatentLike, Portion, latent_portions, portions
from glowserve.client.reading import Reading
from glowserve.client.set_requests import SetRequests
from glowserve.client.transports.base import Transport
from glowserve.client.transports.channel import TIMEOUT_SECONDS, ChannelSettings, check_transport
from glowserve.client.transports.grpc_transport import GrpcTransport
from glowserve.credentials import FilePath
from glowserve.images import UInt8Array
from glowserve.results import Encodings, Explanations, ModelInfo, Samples, ScoredImages, SetScore
from glowserve.scores import Scores
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.manifest_pb2 import Manifest


class Client:
    """Calls a running service, or runs a bundle in this process (`glowserve.open`). Threads may share a client.

    Each method takes `model` and `version`. The name may be left out if there is one model; version 0 is the newest
    served version. Large inputs are sent in several calls, as large as the service takes. If the service is
    unavailable, a call is retried up to four times with growing pauses. If it refuses a call and says when to come
    back, as it does when its queue is full, the call is retried until its timeout.

    A client can be pickled; the copy has its settings, also the token, and connects again. A child process of
    `os.fork` may use clients, too, unless a call was under way at the fork: then every call raises RuntimeError.

    Shapes: N images, H W C of the model, D = H * W * C.

    Args:
        target: HOST:PORT of the service; the port is 8001 if left out. Or a target of another kind that gRPC knows,
            such as unix:PATH. Of dns:///NAME:PORT, calls take turns on all addresses whose services are ready.
        timeout: how many seconds a call may take, retries included; math.inf for no limit. A call of `sample` gets one
            second more per sample.
        tls: encrypt, and trust the authorities that gRPC trusts. `ca` and `cert` imply it.
        ca: trust this authority instead: a PEM file.
        cert: the client's certificate, a PEM file, for a service that requires one.
        key: the key of the client's certificate, a PEM file.
        token: authenticates the caller, for a service that requires tokens. Without encryption, on loopback only.
        transport: carries the requests instead of gRPC. With a transport there is no target, and no setting of one.

    Raises:
        TypeError: the target is not a string.
        ValueError: there is neither a target nor a transport, the target is none, the timeout is not above 0, a file
            cannot be used, or the token would cross a network unencrypted.
    """

    def __init__(
        self,
        target: str = "",
        *,
        timeout: float = TIMEOUT_SECONDS,
        tls: bool = False,
        ca: FilePath | None = None,
        cert: FilePath | None = None,
        key: FilePath | None = None,
        token: str | None = None,
        transport: Transport | None = None,
    ) -> None:
        settings = ChannelSettings(
            target=target, timeout=timeout, tls=tls, ca=ca, cert=cert, key=key, token=token
        )
        check_transport(settings, transport)
        self._carrier: Transport | None = transport or GrpcTransport(settings)
        self._fitting = Fitting()

    @property
    def _transport(self) -> Transport:
        if self._carrier is None:
            raise ValueError("the client is closed; make another")
        return self._carrier

    def score(
        self,
        images: ImagesLike,
        *,
        scores: Iterable[str] = (),
        false_alarm_rate: float | None = None,
        importance_samples: int = 1,
        seed: int | None = None,
        classes: str | Sequence[str] = "",
        model: str = "",
        version: int = 0,
    ) -> Scores:
        """Computes how likely images are under a model.

        Args:
            images: one or more images: paths, bytes of files, files opened in binary mode, Pillow images (of any size),
                or uint8 arrays [H, W], [H, W, C], [N, H, W, C] (of the model's size). Open files are read from their
                start. An iterator is read some images at a time, and so needs little memory.
            scores: names of scores that are wanted beside those that are always there, such as "anomaly_p_value";
                `glowserve.scores.TABLE` has all of them.
            false_alarm_rate: of `anomalous`, which it asks for; 0.01 if left out, or the finest that the model's
                calibration permits.
            importance_samples: draws of noise from which the log-likelihood is estimated, 1 to 64. With 2 or more, the
                result has its `standard_error`.
            seed: the seed of the dequantization noise; 0 if left out.
            classes: of a class-conditional model: the class of each image by name, or of all of them. The scores are
                then those of log p(x | c). If left out, they are those of log p(x), whatever the class.
            model: the model's name.
            version: the model's version.

        Raises:
            RequestError: a call was refused or failed; `reason` is "NOT_CALIBRATED" if the model's bundle lacks the
                calibration that a score needs.
            InvalidImageError: a file is not a picture, or an array does not have the type or shape of an image.
            OSError: a file cannot be read.
            TypeError: an image has none of the accepted types.
            ValueError: there are no images, or a number is out of range.
        """
        arguments = requests.ScoreArguments(
            model=model,
            version=version,
            seed=seed,
            scores=scores,
            false_alarm_rate=false_alarm_rate,
            importance_samples=importance_samples,
        )

        names = ClassNames(classes)

        def score(part: Portion) -> pb.ScoreResponse:
            response = self._transport.score(arguments.request(part, names.of(part)))
            names.answered(part)
            return response

        found = arguments.received(list(self._fitting.calls(score, portions(images))))
        names.check()
        return found

    def iter_scores(
        self,
        images: Iterable[ImageLike] | ImageLike,
        *,
        scores: Iterable[str] = (),
        false_alarm_rate: float | None = None,
        importance_samples: int = 1,
        seed: int | None = None,
        class_name: str = "",
        model: str = "",
        version: int = 0,
    ) -> Generator[ScoredImages, None, None]:
        """Like `score` for unbounded iterables: yields the scores and names of some images at a time, in order.

        An image that cannot be read, or that the service refuses, does not end it: it is among the `errors` of the next
        scores. At the end there may be errors with no scores. Each image is in one of the two.

        Images are read as scores are taken, at most 320 ahead, and sent over one stream. `timeout` applies to each
        response. If the service stops, the remaining images go to the next service at the same target, which has
        `timeout` to come. Closing the iterator cancels outstanding requests. An exception concerns images after those
        that have been yielded.

        Args:
            images: an iterable of paths, bytes of files, open files, Pillow images or uint8 arrays [H, W] or [H, W, C];
                or one image; or an array [N, H, W, C].
            scores: names of scores that are wanted beside those that are always there.
            false_alarm_rate: of `anomalous`, which it asks for.
            importance_samples: draws of noise from which the log-likelihood is estimated.
            seed: the seed of the dequantization noise; 0 if left out.
            class_name: of a class-conditional model: the class of all images.
            model: the model's name.
            version: the model's version.

        Raises:
            RequestError: the call was refused or failed, whatever the images.
            TypeError: an image has none of the accepted types.
            ValueError: a number is out of range.
        """
        arguments = requests.ScoreArguments(
            model=model,
            version=version,
            seed=seed,
            scores=scores,
            false_alarm_rate=false_alarm_rate,
            importance_samples=importance_samples,
            class_name=class_name,
        )
        reading = Reading(images, arguments)

        def open_stream(parts: Iterator[Portion]) -> Generator[pb.ScoreResponse, None, None]:
            reading.open()
            outgoing = (arguments.request(reading.send(part)) for part in parts)
            return self._transport.score_stream(outgoing)

        while not reading.ended:
            stream = self._fitting.stream(open_stream, reading.portions(), reading.refuse)
            with closing(stream) as responses:
                for response in responses:
                    yield reading.scored(response)
            yield from reading.unscored()

    def explain(self, images: ImagesLike, *, model: str = "", version: int = 0) -> Explanations:
        """Says where images are unlike held-out images, and which of their parts are out of line.

        `score` explains the arguments and the errors; `reason` is "MISSING_FILE" if the model was exported without what
        this takes, and "NOT_CALIBRATED" if it has fewer than two calibration images.
        """

        def explain(part: Portion) -> pb.ExplainResponse:
            return self._transport.explain(requests.explain_request(part, model, version))

        return messages.explanations_of(list(self._fitting.calls(explain, portions(images))))

    def score_set(
        self, images: Iterable[ImageLike] | ImageLike, *, model: str = "", version: int = 0
    ) -> SetScore:
        """Tells whether images, as a whole, come from the distribution of a model's calibration images.

        Finds shifts that are too small to show in any single image; docs/sets.md says what it promises. Images are read
        as they are sent, over one stream. `timeout` applies to each wait for the service. If it stops or refuses the
        call for a while, a set of up to 64 MiB is sent again.

        Args:
            images: an iterable of paths, bytes of files, open files, Pillow images or uint8 arrays [H, W] or [H, W, C];
                or an array [N, H, W, C]; 2 to 100,000 images.
            model: the model's name.
            version: the model's version.

        Raises:
            RequestError: the call was refused or failed; `reason` is "NOT_CALIBRATED" if the model's bundle has no
                calibration.
            InvalidImageError, OSError, TypeError, ValueError: see `score`.
        """
        outgoing = SetRequests(images, model, version, self._fitting)
        while True:
            try:
                return messages.set_score_of(self._transport.score_set(outgoing))
            except RequestError as refusal:
                outgoing.fit(refusal)

    def sample(
        self,
        n: int = 1,
        *,
        temperature: float = 1.0,
        seed: int | None = None,
        class_name: str = "",
        model: str = "",
        version: int = 0,
    ) -> Samples:
        """Draws images from a model.

        A sample that is not finite, in none of the attempts to draw it, has no image: the result lacks it, and has its
        index in `not_finite`. Lower temperatures and longer training make that rare.

        Args:
            n: how many samples.
            temperature: the standard deviation of the latents. Below 1, samples are more typical and vary less.
            seed: the seed of the latents; if left out, the service chooses one, and the result has it.
            class_name: of a class-conditional model: the class of the samples; if left out, each has one of its own,
                drawn with the probabilities of the classes.
            model: the model's name.
            version: the model's version.

        Raises:
            RequestError: the call was refused or failed, or no sample is finite (`reason` is "NOT_FINITE").
            ValueError: a number is out of range.
        """
        request = requests.sample_request(n, temperature, seed, class_name, model, version)
        return messages.samples_of(list(self._transport.sample(request)))

    def iter_samples(
        self,
        n: int = 1,
        *,
        temperature: float = 1.0,
        seed: int | None = None,
        class_name: str = "",
        model: str = "",
        version: int = 0,
    ) -> Generator[Samples, None, None]:
        """Like `sample`, but yields some images at a time as they arrive; none, if none of some samples is finite.

        Closing the iterator cancels the call.
        """
        request = requests.sample_request(n, temperature, seed, class_name, model, version)
        with closing(self._transport.sample(request)) as responses:
            for response in responses:
                yield messages.samples_of([response])

    def encode(self, images: ImagesLike, *, model: str = "", version: int = 0) -> Encodings:
        """Maps images to latents [N, D]; `score` explains the arguments and the errors."""

        def encode(part: Portion) -> pb.EncodeResponse:
            return self._transport.encode(requests.encode_request(part, model, version))

        return messages.encodings_of(list(self._fitting.calls(encode, portions(images))))

    def decode(self, latents: npt.ArrayLike, *, model: str = "", version: int = 0) -> UInt8Array:
        """Maps latents, float32 [N, D], to images, uint8 [N, H, W, C].

        Raises:
            RequestError: a call was refused or failed.
            ValueError: the array does not have the shape [N, D], or the version is out of range.
        """

        def decode(part: Portion) -> pb.DecodeResponse:
            return self._transport.decode(requests.decode_request(part, model, version))

        responses = self._fitting.calls(decode, latent_portions(latents))
        return np.concatenate([messages.images_array(response.images) for response in responses])

    def interpolate(
        self, one: ImageLike, other: ImageLike, *, steps: int = 8, model: str = "", version: int = 0
    ) -> UInt8Array:
        """Interpolates between two images in the latent space: uint8 [steps, H, W, C], both ends included.

        Args:
            one: the first image; see `score` for the types.
            other: the last image, of the same types.
            steps: how many images.
            model: the model's name.
            version: the model's version.

        Raises:
            RequestError: the call was refused or failed.
            InvalidImageError, OSError, TypeError, ValueError: see `score`.
        """
        request = requests.interpolate_request(one, other, steps, model, version)
        return messages.images_array(self._transport.interpolate(request).images)

    def manipulate(
        self,
        image: ImageLike | LatentLike,
        attributes: str | Iterable[str],
        strengths: float | Iterable[float],
        *,
        model: str = "",
        version: int = 0,
    ) -> UInt8Array:
        """Moves an image along attributes in the latent space: uint8 [S, H, W, C], one image for each strength.

        Args:
            image: an image, see `score` for the types; or its latent, an array of floating-point numbers [D].
            attributes: the name of an attribute, or several names, whose directions are added up; `models` lists them.
            strengths: one number, or S of them: 1 is the whole difference between the mean latents of the images with
                and without the attribute, 0 leaves the image as it is.
            model: the model's name.
            version: the model's version.

        Raises:
            RequestError: the call was refused or failed; `reason` is "MISSING_FILE" if the model has no attributes.
            InvalidImageError, OSError, TypeError, ValueError: see `score`.
        """
        request = requests.manipulate_request(image, attributes, strengths, model, version)
        return messages.images_array(self._transport.manipulate(request).images)

    def models(self) -> list[ModelInfo]:
        """Lists the served model versions, then the versions that are being loaded or were refused.

        Raises:
            RequestError: the call failed.
        """
        return messages.model_infos(self._transport.list_models(pb.ListModelsRequest()))

    def manifest(self, *, model: str = "", version: int = 0) -> Manifest:
        """The complete manifest of a model's bundle.

        Raises:
            RequestError: the call was refused or failed.
            ValueError: the version is out of range.
        """
        return self._transport.get_model(requests.model_request(model, version)).manifest

    def close(self) -> None:
        """Closes the connection, or frees the GPU memory of a bundle. Later calls raise ValueError."""
        carrier, self._carrier = self._carrier, None
        if carrier is not None:
            carrier.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
