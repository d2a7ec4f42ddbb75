"""Calls a server with Triton's own client; prints what it answers as JSON.

Arguments: HOST:PORT, and the path of an array of 9 images. A program of its own, because Triton's client registers the
same names as the project's stubs for the protocol. The project's client must work beside it.
"""

from __future__ import annotations

import json
import queue
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.grpc as triton

import glowserve.client.transports.embedded  # noqa: F401

NAMES = ("digits", "digits.sample")


def tensor(name: str, array: Any, datatype: str) -> Any:
    given = triton.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array)
    return given


def image(images: Any) -> list[Any]:
    return [tensor("image", images, "UINT8")]


def outputs(result: Any) -> dict[str, Any]:
    names = [output.name for output in result.get_response().outputs]
    return {name: result.as_numpy(name).tolist() for name in names}


def refusal(call: Callable[[], Any]) -> list[Any] | None:
    try:
        call()
    except triton.InferenceServerException as error:
        return [error.status(), error.message()]
    return None


def descriptions(client: Any) -> dict[str, Any]:
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": [
            client.is_model_ready("digits"),
            client.is_model_ready("digits.sample", "1"),
            client.is_model_ready("digits", "2"),
            client.is_model_ready("nobody"),
        ],
        "server": client.get_server_metadata(as_json=True),
        "metadata": [client.get_model_metadata(name, as_json=True) for name in NAMES],
        "config": [client.get_model_config(name, as_json=True)["config"] for name in NAMES],
        "index": client.get_model_repository_index(as_json=True)["models"],
    }


def scores(client: Any, images: Any) -> dict[str, Any]:
    scored = client.infer("digits", image(images), request_id="first")
    wanted = [triton.InferRequestedOutput("percentile"), triton.InferRequestedOutput("log_likelihood")]
    subset = client.infer("digits", image(images), "1", wanted, parameters={"seed": 7}, timeout=10**6)
    found = outputs(scored)
    return {
        "scores": found,
        "id": scored.get_response().id,
        "version": scored.get_response().model_version,
        "dtypes": {name: str(scored.as_numpy(name).dtype) for name in found},
        "subset": outputs(subset),
    }


def samples(client: Any) -> dict[str, Any]:
    seeds = np.array([[5], [2**64 - 1], [5]], np.uint64)
    temperatures = np.array([[0.5], [0.7], [0.0]], np.float32)
    rows = [tensor("temperature", temperatures, "FP32"), tensor("seed", seeds, "UINT64")]
    sampled = client.infer("digits.sample", rows)
    return {
        "samples": outputs(sampled)["image"],
        "samples_dtype": str(sampled.as_numpy("image").dtype),
    }


def refusals(client: Any, images: Any) -> dict[str, Any]:
    shared = triton.InferInput("image", list(images.shape), "UINT8")
    shared.set_shared_memory("region", images.nbytes)
    return {
        "load": refusal(lambda: client.load_model("digits")),
        "unload": refusal(lambda: client.unload_model("digits")),
        "unknown": refusal(lambda: client.infer("nobody", image(images))),
        "sequence": refusal(lambda: client.infer("digits", image(images), sequence_id=3)),
        "shared_memory": refusal(lambda: client.infer("digits", [shared])),
    }


def stream(client: Any, images: Any) -> dict[str, Any]:
    """A stream of one request an image, with a malformed one after the third."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for i in range(len(images)):
        one = image(images[i : i + 1])
        client.async_stream_infer("digits", one, request_id=f"{i}", enable_empty_final_response=i == 3)
        if i == 2:
            client.async_stream_infer("digits", image(images[:, :4]), request_id="wrong")
    found: list[Any] = []
    for _ in range(len(images) + 1):
        result, error = answers.get(timeout=60)
        if error:
            found.append(["error", error.message()])
            continue
        response = result.get_response()
        parameters = {name: value.bool_param for name, value in dict(response.parameters).items()}
        found.append([response.id, outputs(result)["log_likelihood"][0], parameters])
    client.stop_stream()
    return {"stream": found}


def main(target: str, path: str) -> dict[str, Any]:
    client, images = triton.InferenceServerClient(target), np.load(path)
    found = descriptions(client) | refusals(client, images)
    found |= scores(client, images) | samples(client) | stream(client, images)
    return found | {"statistics": client.get_inference_statistics(as_json=True)["model_stats"]}


sys.stdout.write(json.dumps(main(*sys.argv[1:])))
