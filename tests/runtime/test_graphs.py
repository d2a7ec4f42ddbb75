"""What a graph may contain: the operators of the exporter, and nothing outside its file."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.errors import BundleError
from glowserve.runtime.graphs import check_graph
from glowserve.runtime.ort import onnxruntime
from glowserve.runtime.repository import Bundle, open_bundle
from glowserve.runtime.sessions import CPU, Graph, open_sessions

Change = Callable[[onnx.ModelProto], object]


@pytest.fixture
def model(bundle: Bundle) -> onnx.ModelProto:
    return onnx.load(bundle.path / "forward.onnx")


def external() -> onnx.TensorProto:
    """A tensor whose values are bytes of a file in the working directory."""
    tensor = TensorProto(name="stolen", data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret")
    return tensor


def subgraph(*tensors: onnx.TensorProto) -> onnx.GraphProto:
    return helper.make_graph([], "body", [], [], list(tensors))


def add_node(operator: str, **attributes: object) -> Change:
    return lambda model: model.graph.node.add().CopyFrom(
        helper.make_node(operator, ["x"], ["y"], **attributes)
    )


def attribute_without_type(model: onnx.ModelProto) -> None:
    """The field is there although the attribute's type says otherwise."""
    attribute = model.graph.node[0].attribute.add(name="a", type=onnx.AttributeProto.INT)
    attribute.g.CopyFrom(subgraph(external()))


def sparse(model: onnx.ModelProto) -> None:
    added = model.graph.sparse_initializer.add(dims=[2])
    added.values.CopyFrom(external())


def sparse_attribute(model: onnx.ModelProto) -> None:
    value = onnx.SparseTensorProto(dims=[2], values=external())
    model.graph.node[0].attribute.add(name="a", type=onnx.AttributeProto.SPARSE_TENSOR, sparse_tensor=value)


def located_without_a_place(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def of_another_domain(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.microsoft"


CHANGES: dict[str, tuple[Change, str]] = {
    "initializer": (lambda m: m.graph.initializer.append(external()), "'stolen' whose values lie in another"),
    "place": (located_without_a_place, "whose values lie in another file"),
    "attribute": (add_node("Cast", value=external()), "'stolen' whose values lie in another file"),
    "attributes": (add_node("Cast", values=[external()]), "'stolen' whose values lie in another file"),
    "constant": (add_node("Constant", value=external()), "the operator 'Constant'"),
    "loop": (add_node("Loop", body=subgraph()), "the operator 'Loop'"),
    "subgraph": (add_node("Add", body=subgraph(external())), "a field 'g'"),
    "subgraphs": (add_node("Add", bodies=[subgraph()]), "a field 'graphs'"),
    "untyped": (attribute_without_type, "a field 'g'"),
    "sparse": (sparse, "a field 'sparse_initializer'"),
    "sparse attribute": (sparse_attribute, "a field 'sparse_tensor'"),
    "domain": (of_another_domain, "an operator of the domain 'com.microsoft'"),
    "function": (lambda m: m.functions.add(name="Add"), "a field 'functions'"),
    "training": (lambda m: m.training_info.add(), "a field 'training_info'"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_the_exporter_does_not_write_is_refused(model: onnx.ModelProto, case: str) -> None:
    change, words = CHANGES[case]
    change(model)
    with pytest.raises(BundleError, match=words) as caught:
        check_graph(model.SerializeToString(), "bundle digits/1: forward.onnx")
    assert str(caught.value).startswith("bundle digits/1: forward.onnx has ")
    assert str(caught.value).endswith("; export the model again")


@pytest.mark.parametrize("case", CHANGES)
def test_it_is_refused_too_if_the_file_gives_its_parts_twice(model: onnx.ModelProto, case: str) -> None:
    """ONNX Runtime joins the two graphs of such a file to one."""
    change, words = CHANGES[case]
    harmless, changed = model.SerializeToString(), onnx.ModelProto()
    changed.CopyFrom(model)
    change(changed)
    for data in (changed.SerializeToString() + harmless, harmless + changed.SerializeToString()):
        with pytest.raises(BundleError, match=words):
            check_graph(data, "forward.onnx")


@pytest.mark.parametrize(
    "data",
    [
        b"no graph",
        b"\x3a\xff\xff\xff\xff\x0f",  # a graph that is longer than the file
        b"\x3a\x02\x0b",  # a group without an end
        50_000 * b"\x3b",  # groups in groups
        b"\x80" * 100,
    ],
)
def test_bytes_that_are_no_graph_are_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"forward\.onnx is not an ONNX graph; export the model again"):
        check_graph(data, "forward.onnx")


def test_values_of_another_file_are_never_served(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle whose hashes are right, and whose file of values lies where ONNX Runtime would look for it."""
    version = tmp_path / "digits" / "1"
    shutil.copytree(bundle.path, version)
    model = onnx.load(version / "forward.onnx")
    tensor = next(each for each in model.graph.initializer if each.name == "log_det_constant")
    for place in (tmp_path, version):
        numpy_helper.to_array(tensor).astype(np.float32).tofile(place / "secret")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret")
    data = model.SerializeToString()
    (version / "forward.onnx").write_bytes(data)
    opened = open_bundle(version)
    entry = next(file for file in opened.manifest.files if file.name == "forward.onnx")
    entry.sha256, entry.size = hashlib.sha256(data).hexdigest(), len(data)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match="'log_det_constant' whose values lie in another file"):
        Engine(opened, RuntimeConfig(device="cpu"))


def test_a_graph_in_onnx_runtimes_own_format_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    """By the check, since it is no protobuf; and by the session, for a file that is both."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "forward.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(bundle.path / "forward.onnx", options, providers=[CPU])
    data = (tmp_path / "forward.ort").read_bytes()
    with pytest.raises(BundleError, match="is not an ONNX graph"):
        check_graph(data, "forward.onnx")
    with pytest.raises(Exception, match="INVALID_PROTOBUF"):
        open_sessions([Graph(data, {})], RuntimeConfig(device="cpu"))
