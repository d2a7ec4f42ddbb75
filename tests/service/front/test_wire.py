"""What is counted in the bytes of a request before protobuf parses them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from glowserve_service.front.wire import RequestLimits, request_type
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given, settings
from hypothesis import strategies as st

from glowserve.oip import grpc_service_pb2 as oip
from glowserve.runtime.errors import InvalidRequestError
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import tensor_pb2
from tests.soak.large_requests import FORMS, field, varint

GLOW, OIP = "glowserve.v1.GlowService", "inference.GRPCInferenceService"
IMAGES = 256
FIELDS = 2 * IMAGES + 1024


def limits(service: str, method: str, values: int = 0) -> RequestLimits:
    return RequestLimits(request_type(service, method), max_images=IMAGES, max_values=lambda: values)


def refusal(limits: RequestLimits, data: bytes) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        limits.check(data)
    assert caught.value.field
    assert str(caught.value).startswith(f"{caught.value.field}: ")
    return str(caught.value)


OURS = {name: form for name, form in FORMS.items() if GLOW in form.path or OIP in form.path}


@pytest.mark.parametrize("form", OURS.values(), ids=OURS)
def test_a_request_of_many_parts_is_refused_by_the_name_of_the_part(form: Any) -> None:
    service, _, method = form.path[1:].partition("/")
    message = refusal(limits(service, method), form.request(0.1))
    assert "more than" in message


@pytest.mark.parametrize(
    ("method", "data", "name"),
    [
        ("Score", field(2, field(1, b"\x0a\x00" * FIELDS)), "images.encoded.data"),
        ("Score", field(2, field(2, field(2, b"\x01" * FIELDS))), "images.tensor.shape"),
        ("Score", field(2, field(2, b"\x10\x01" * FIELDS)), "images.tensor.shape"),
        ("Score", b"\x0a\x00" * (FIELDS + 1), "model"),
        ("Score", b"\xa0\x06\x00" * (FIELDS + 1), "field 100"),
        ("Decode", field(2, field(2, b"\x01" * FIELDS)), "latents.shape"),
    ],
)
def test_the_field_that_exceeds_the_limit_is_named(method: str, data: bytes, name: str) -> None:
    assert refusal(limits(GLOW, method), data) == (
        f"{name}: the request has more than {FIELDS} fields, each element of a repeated field counted; a call takes at "
        f"most {IMAGES} images"
    )


def test_a_call_may_bring_as_many_pictures_as_it_may_of_any_length() -> None:
    for size in (0, 100, 127, 128, 20_000, 2_200_000):
        images = pb.Images(encoded=pb.EncodedImages(data=[bytes(size)] * (IMAGES if size < 10**6 else 2)))
        request = pb.ScoreRequest(model=pb.ModelSpec(name="digits", version=3), images=images, seed=7)
        limits(GLOW, "Score").check(request.SerializeToString())


def test_each_image_of_a_call_may_have_a_class() -> None:
    many = RequestLimits(request_type(GLOW, "Score"), max_images=5000)
    request = pb.ScoreRequest(images={"encoded": {"data": [b"?"] * 5000}}, classes=["a"] * 5000)
    many.check(request.SerializeToString())


def test_a_call_may_bring_as_many_strengths_as_images() -> None:
    many = RequestLimits(request_type(GLOW, "Manipulate"), max_images=5000)
    for n in (5000, 11_000):
        request = pb.ManipulateRequest(
            images={"encoded": {"data": [b"?"]}}, attributes=["a"], strengths=[1] * n
        )
        many.check(request.SerializeToString())
    request.strengths.extend([1] * 25)
    assert refusal(many, request.SerializeToString()).startswith(
        "strengths: the request has more than 11024 fields"
    )


def test_bytes_are_stepped_over() -> None:
    """Whatever stands in a picture, in an array or in an unknown field."""
    noise = b"\x0a\x00" * 100_000
    tensor = tensor_pb2.Tensor(shape=[1, 2], data=noise)
    for images in (pb.Images(tensor=tensor), pb.Images(encoded=pb.EncodedImages(data=[noise]))):
        limits(GLOW, "Score").check(pb.ScoreRequest(images=images).SerializeToString() + field(100, noise))


def contents(**values: Any) -> bytes:
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", contents=oip.InferTensorContents(**values))
    return oip.ModelInferRequest(model_name="digits", inputs=[tensor]).SerializeToString()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("uint_contents", 255),
        ("uint_contents", 3),
        ("uint64_contents", 2**64 - 1),
        ("int64_contents", -1),
        ("int_contents", -1),
        ("bool_contents", True),
        ("fp32_contents", 0.5),
        ("fp64_contents", 0.5),
    ],
)
def test_typed_contents_may_have_as_many_values_as_the_images_of_a_call(name: str, value: Any) -> None:
    most = 10_000
    infer = limits(OIP, "ModelInfer", most)
    infer.check(contents(**{name: [value] * most}))
    assert refusal(infer, contents(**{name: [value] * (most + 1)})) == (
        f"inputs.contents.{name}: more than {most} values; the images of a call have at most so many"
    )


def test_the_values_of_all_contents_are_counted_together() -> None:
    infer = limits(OIP, "ModelInfer", 10_000)
    request = contents(uint_contents=[200] * 5000)
    infer.check(request)
    infer.check(request * 2)
    assert "more than 10000 values" in refusal(infer, request * 3)
    assert "more than 10000 values" in refusal(infer, contents(uint_contents=[1] * 1000) * 11)


def test_zeros_before_a_number_do_not_hide_fields() -> None:
    """0 may be written as 80 80 00, in a tag and in a length, too."""
    long_tag = bytes([0x12 | 0x80, 0x80, 0x00]) + b"\x80\x80\x00"
    assert pb.ScoreRequest.FromString(long_tag).HasField("images")
    assert "images: " in refusal(limits(GLOW, "Score"), long_tag * (FIELDS + 1))


def test_the_fields_of_a_group_do_not_end_the_count() -> None:
    """In a group, field 2 is unknown, and bytes that are no message are none of its business."""
    group = b"\xa3\x06" + field(2, b"\xff\xff") + b"\xa4\x06"
    pb.ScoreRequest.FromString(group)
    assert "images: " in refusal(limits(GLOW, "Score"), group + b"\x12\x00" * FIELDS)


# Whatever the bytes are


def fields_of(message: Message) -> int:
    """How many fields a message has, with those of its parts. Those that were merged or replaced are not seen."""
    unknown = UnknownFieldSet(message)
    count = len(unknown) + sum(len(each.data) for each in unknown if each.wire_type == 3)
    for descriptor, value in message.ListFields():
        if descriptor.message_type and descriptor.message_type.GetOptions().map_entry:
            count += len(value) + sum(fields_of(each) for each in value.values())
        elif descriptor.message_type:
            parts = value if descriptor.is_repeated else [value]
            count += len(parts) + sum(map(fields_of, parts))
        elif "contents" not in descriptor.name or descriptor.name in ("raw_input_contents", "bytes_contents"):
            count += len(value) if descriptor.is_repeated else 1
    return count


def numbers() -> st.SearchStrategy[bytes]:
    """Varints, most of them longer than they need be."""
    return st.builds(
        lambda number, zeros: bytes([*varint(number)[:-1], varint(number)[-1] | 128, *[128] * zeros, 0]),
        st.integers(0, 300),
        st.integers(0, 4),
    )


def wire(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Fields of numbers 1 to 8 around other bytes, groups, and anything."""

    def one(number: int, kind: int, content: bytes, long_number: bytes, zeros: int) -> bytes:
        tag, size = varint(number << 3 | kind), len(content)
        if zeros:
            tag = bytes([tag[0] | 128, *[128] * (zeros - 1), 0])
        long_size = bytes([size & 127 | 128, size >> 7 | 128, *[128] * zeros, 0])
        return {
            0: tag + long_number,
            1: tag + bytes(8),
            2: tag + (long_size if zeros else varint(size)) + content,
            3: tag + content + varint(number << 3 | 4),
            5: tag + bytes(4),
        }.get(kind, tag)

    kinds = st.sampled_from([0, 1, 2, 2, 2, 2, 3, 5, 7])
    fields = st.builds(one, st.integers(1, 8), kinds, inner, numbers(), st.sampled_from([0, 0, 0, 1, 2, 4]))
    return st.lists(fields, max_size=6).map(b"".join)


WIRE = st.recursive(st.binary(max_size=6), wire, max_leaves=40)
METHODS: list[tuple[str, str, Callable[[bytes], Message]]] = [
    (GLOW, "Score", pb.ScoreRequest.FromString),
    (OIP, "ModelInfer", oip.ModelInferRequest.FromString),
]


@pytest.mark.parametrize(("service", "method", "parse"), METHODS, ids=["Score", "ModelInfer"])
@given(data=WIRE, most=st.integers(0, 12))
@settings(max_examples=150, deadline=None)
def test_what_passes_is_no_message_or_has_no_more_fields_than_the_limit(
    service: str, method: str, parse: Callable[[bytes], Message], data: bytes, most: int
) -> None:
    checked = limits(service, method, values=10**6)
    checked.max_fields = most
    try:
        message = parse(data)
    except DecodeError:
        message = None
    try:
        checked.check(data)
    except InvalidRequestError:
        return
    assert message is None or fields_of(message) <= most


@given(data=WIRE)
@settings(max_examples=100, deadline=None)
def test_a_message_with_few_fields_passes(data: bytes) -> None:
    limits(OIP, "ModelInfer", values=10**6).check(data)
