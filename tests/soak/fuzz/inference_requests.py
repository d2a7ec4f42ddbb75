"""Requests of ModelInfer, drawn by Hypothesis: valid ones, nearly valid ones, and arbitrary ones."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from glowserve.oip import grpc_service_pb2 as oip

_WORDS = st.sampled_from(
    ["", "digits", "digits.sample", "image", "seed", "temperature", "1", "UINT8", "FP32", "UINT64"]
)
TEXTS = st.one_of(_WORDS, st.text(max_size=200))

_IMAGE = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 1]}
_SEED = {"name": "seed", "datatype": "UINT64", "shape": [1, 1], "contents": {"uint64_contents": [7]}}
_VALID_INPUTS = [
    _IMAGE,
    _IMAGE | {"contents": {"uint_contents": [9] * 64}},
    _SEED,
    {"name": "temperature", "datatype": "FP32", "shape": [1, 1], "contents": {"fp32_contents": [0.5]}},
]


def infer_requests() -> st.SearchStrategy[oip.ModelInferRequest]:
    """All of them."""
    return _nearly_valid() | _arbitrary()


def _nearly_valid() -> st.SearchStrategy[oip.ModelInferRequest]:
    pixels = st.binary(min_size=63, max_size=65).map(lambda data: [data])
    return st.builds(
        oip.ModelInferRequest,
        model_name=st.just("digits"),
        id=st.text(max_size=20),
        parameters=st.one_of(st.just({}), _parameters()),
        inputs=st.just([_IMAGE]),
        outputs=st.lists(st.just({"name": "bits_per_dim"}), max_size=2),
        raw_input_contents=st.one_of(st.just([bytes(64)]), pixels),
    )


def _arbitrary() -> st.SearchStrategy[oip.ModelInferRequest]:
    with_seed = _inputs().map(lambda one: [_SEED, one])
    contents = st.one_of(st.just([]), st.just([bytes(64)]), st.lists(st.binary(max_size=80), max_size=3))
    return st.builds(
        oip.ModelInferRequest,
        model_name=st.one_of(st.sampled_from(["digits", "digits.sample"]), TEXTS),
        model_version=st.one_of(st.just(""), st.just("1"), TEXTS),
        id=st.text(max_size=100),
        parameters=_parameters(),
        inputs=st.one_of(st.lists(_inputs(), max_size=3), with_seed),
        outputs=st.lists(st.builds(dict, name=TEXTS, parameters=_parameters()), max_size=2),
        raw_input_contents=contents,
    )


def _inputs() -> st.SearchStrategy[dict[str, Any]]:
    """A valid input of either view, with some fields changed or none."""
    sizes = st.sampled_from([0, 1, 2, 8, 64, 257, -1, 2**63 - 1, -(2**63)])
    changes = st.fixed_dictionaries(
        {},
        optional={
            "name": TEXTS,
            "datatype": TEXTS,
            "shape": st.lists(sizes, max_size=6),
            "contents": _contents(),
            "parameters": _parameters(),
        },
    )
    change = st.one_of(st.just({}), st.just({}), changes)
    return st.tuples(st.sampled_from(_VALID_INPUTS), change).map(lambda both: both[0] | both[1])


def _contents() -> st.SearchStrategy[dict[str, Any]]:
    numbers = st.one_of(st.integers(0, 255), st.integers(0, 2**32 - 1))
    return st.one_of(
        st.builds(dict, uint_contents=st.lists(numbers, max_size=70)),
        st.builds(dict, uint64_contents=st.lists(st.integers(0, 2**64 - 1), max_size=3)),
        st.builds(dict, fp32_contents=st.lists(st.floats(width=32), max_size=3)),
        st.builds(dict, bytes_contents=st.lists(st.binary(max_size=10), max_size=3)),
    )


def _parameters() -> st.SearchStrategy[dict[str, Any]]:
    """Parameters that the service knows, some that it does not support, and arbitrary ones."""
    names = st.sampled_from(
        ["seed", "sequence_id", "classification", "binary_data_output", "triton_enable_empty_final_response"]
    )
    values = st.one_of(
        st.builds(dict, int64_param=st.integers(-(2**63), 2**63 - 1)),
        st.builds(dict, uint64_param=st.integers(0, 2**64 - 1)),
        st.builds(dict, bool_param=st.booleans()),
        st.builds(dict, string_param=st.text(max_size=50)),
        st.builds(dict, double_param=st.floats()),
        st.just({}),
    )
    return st.dictionaries(st.one_of(names, st.text(max_size=20)), values, max_size=2)
