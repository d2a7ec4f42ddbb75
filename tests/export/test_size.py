"""Models too large for an ONNX file are refused before anything is built."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch
from glowserve_export import builder
from glowserve_export.errors import ExportError
from glowserve_export.frontends.glowserve import fold_glow
from glowserve_export.graphs import forward_graph
from glowserve_export.size import check_size
from glowserve_export.source import load_glowserve_checkpoint, load_public_checkpoint

from tests.export.frontends.public_models import public_model, weights_of
from tests.export.models import random_glow


def _weights(values: int) -> dict[str, torch.Tensor]:
    return {"conv.weight": torch.empty(values, 1, 1, 1, device="meta")}


def test_what_fits_is_accepted_and_what_does_not_is_refused_with_a_remedy_that_helps() -> None:
    for precision in ("fp32", "int8"):
        check_size(_weights(500_000_000), precision)
        with pytest.raises(
            ExportError, match=r"2\.01 GiB.* less than 2 GiB: export with precision fp16, or train"
        ):
            check_size(_weights(539_000_000), precision)
    check_size(_weights(539_000_000), "fp16")
    for precision in ("fp32", "fp16"):
        with pytest.raises(
            ExportError, match="less than 2 GiB: train a model with fewer steps of flow or a smaller"
        ):
            check_size(_weights(1_100_000_000), precision)


def _enlarged(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of 50,000 hidden channels that take no space in the file."""
    return {
        key: torch.zeros(()).expand(50_000, 50_000, 1, 1) if x.ndim == 4 and x.shape[2] == 1 else x
        for key, x in weights.items()
    }


def test_a_checkpoint_that_is_too_large_is_refused_before_its_model_is_built(
    checkpoint: Path, tmp_path: Path
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    content = torch.load(checkpoint, weights_only=True)
    torch.save(content | {"state_dict": _enlarged(content["state_dict"])}, tmp_path / "model.ckpt")
    with pytest.raises(ExportError, match="an ONNX file holds less than 2 GiB"):
        load_glowserve_checkpoint(tmp_path / "model.ckpt")
    torch.save(_enlarged(weights_of(public_model("y0ast"))), tmp_path / "public.pt")
    (tmp_path / "public.json").write_text(json.dumps({}))
    with pytest.raises(ExportError, match="an ONNX file holds less than 2 GiB"):
        load_public_checkpoint("y0ast", tmp_path / "public.pt", tmp_path / "public.json")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_a_graph_is_weighed_before_it_is_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(builder, "check_graph_bytes", sizes.append)
    model = forward_graph(fold_glow(random_glow(width=64)))
    (size,) = sizes
    assert size <= model.ByteSize() < size + 20_000
