"""y0ast/Glow-PyTorch with random weights, rewritten; see public_model.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.export.frontends.public_model import Gaussian, PublicModel, mix, random_lu, random_matrix


class Y0astGlow(PublicModel):
    """Its arguments are n_bits and those of the original that affect the computation."""

    kind = "y0ast"
    top_name = "learn_top_fn"

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int] = (8, 8, 3),
        hidden_channels: int = 6,
        K: int = 2,
        L: int = 2,
        flow_permutation: str = "invconv",
        flow_coupling: str = "affine",
        LU_decomposed: bool = True,
        learn_top: bool = True,
        n_bits: int = 8,
    ) -> None:
        super().__init__()
        self.arguments = {
            "image_shape": list(image_shape),
            "hidden_channels": hidden_channels,
            "K": K,
            "L": L,
            "actnorm_scale": 1.0,
            "flow_permutation": flow_permutation,
            "flow_coupling": flow_coupling,
            "LU_decomposed": LU_decomposed,
            "y_classes": 10,
            "learn_top": learn_top,
            "y_condition": False,
            "n_bits": n_bits,
        }
        height, width, image_channels = image_shape
        channels = image_channels * 2 ** (L + 1)
        self.register_buffer("prior_h", torch.zeros(1, 2 * channels, height >> L, width >> L))
        self.flow = nn.Module()
        layers: list[nn.Module] = []
        for i in range(L):
            channels = image_channels * 2 ** (i + 2)
            steps = (
                self.step(channels, hidden_channels, flow_permutation, flow_coupling, lu=LU_decomposed)
                for _ in range(K)
            )
            layers += [nn.Module(), *steps]
            if i < L - 1:
                split = nn.Module()
                split.conv = self.scaled_conv(channels // 2, channels)
                layers.append(split)
        self.flow.layers = nn.ModuleList(layers)
        if learn_top:
            setattr(self, self.top_name, self.scaled_conv(2 * channels, 2 * channels))

    def step(self, *arguments: Any, lu: bool) -> nn.Module:
        """A step of flow."""
        return Y0astStep(*arguments, lu=lu)

    def scaled_conv(self, inputs: int, outputs: int) -> nn.Module:
        """The convolution of a prior."""
        return ScaledConv(inputs, outputs)

    def levels(self) -> int:
        return int(self.arguments["L"])

    def steps(self, level: int) -> list[nn.Module]:
        first = level * (self.arguments["K"] + 2) + 1
        return list(self.flow.layers)[first : first + self.arguments["K"]]  # type: ignore[arg-type]

    def prior(self, level: int, continuing: Tensor) -> Gaussian:
        if level < self.levels() - 1:
            split = self.flow.layers[(level + 1) * (self.arguments["K"] + 2) - 1]  # type: ignore[index]
            outputs = split.conv(continuing)
            return Gaussian(outputs[:, 0::2], outputs[:, 1::2])
        outputs = self.prior_h.expand(len(continuing), -1, -1, -1)
        if self.arguments["learn_top"]:
            outputs = self.get_submodule(self.top_name)(outputs)
        return Gaussian(*outputs.tensor_split(2, dim=1))


class Y0astStep(nn.Module):
    block_name = "block"

    def __init__(self, channels: int, hidden: int, permutation: str, coupling: str, *, lu: bool) -> None:
        super().__init__()
        self.affine = coupling == "affine"
        self.actnorm = Y0astActNorm(channels)
        if permutation == "invconv":
            self.invconv = self.lu(channels) if lu else Y0astPlain(channels)
        outputs = channels if self.affine else channels // 2
        first, second, last = self.convs(channels // 2, hidden, outputs)
        setattr(self, self.block_name, nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last))

    def lu(self, channels: int) -> nn.Module:
        """An LU-decomposed convolution."""
        return Y0astLU(channels)

    def convs(self, inputs: int, hidden: int, outputs: int) -> tuple[nn.Module, nn.Module, nn.Module]:
        """Of the coupling network."""
        return NormedConv(inputs, hidden, 3), NormedConv(hidden, hidden, 1), ScaledConv(hidden, outputs)

    def outputs(self, passive: Tensor) -> tuple[Tensor, Tensor]:
        """The shift and the scale."""
        outputs = self.get_submodule(self.block_name)(passive)
        if not self.affine:
            return outputs, torch.ones_like(outputs)
        return outputs[:, 0::2], torch.sigmoid(outputs[:, 1::2] + 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, positions = self.actnorm(x), x.shape[2] * x.shape[3]
        constant = self.actnorm.logs.sum()
        if hasattr(self, "invconv"):
            matrix = self.invconv.matrix()
            x, constant = mix(x, matrix), constant + matrix.det().abs().log()
        else:
            x = x.flip(1)
        passive, active = x.tensor_split(2, dim=1)
        shift, scale = self.outputs(passive)
        y = torch.cat((passive, (active + shift) * scale), dim=1)
        return y, positions * constant + scale.log().sum((1, 2, 3))

    def undo(self, y: Tensor) -> Tensor:
        passive, transformed = y.tensor_split(2, dim=1)
        shift, scale = self.outputs(passive)
        x = torch.cat((passive, transformed / scale - shift), dim=1)
        x = mix(x, self.invconv.matrix().inverse()) if hasattr(self, "invconv") else x.flip(1)
        return x * (-self.actnorm.logs).exp() - self.actnorm.bias


class Y0astActNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(0.3 * torch.randn(1, channels, 1, 1))
        self.logs = nn.Parameter(0.2 * torch.randn(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.bias) * self.logs.exp()


class Y0astPlain(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(random_matrix(channels))

    def matrix(self) -> Tensor:
        return self.weight


class Y0astLU(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        p, lower, upper, log_s, sign = random_lu(channels)
        self.lower, self.log_s, self.upper = nn.Parameter(lower), nn.Parameter(log_s), nn.Parameter(upper)
        self.register_buffer("p", p)
        self.register_buffer("sign_s", sign)

    def matrix(self) -> Tensor:
        ones = torch.ones_like(self.lower)
        lower = self.lower * ones.tril(-1) + torch.eye(len(ones), dtype=ones.dtype)
        return self.p @ lower @ (self.upper * ones.triu(1) + (self.sign_s * self.log_s.exp()).diag())


class NormedConv(nn.Module):
    """A convolution without bias, then an actnorm."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.actnorm = Y0astActNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.actnorm(self.conv(x))
        return y


class ScaledConv(nn.Module):
    """3x3, padded with zeros, times exp(3 logs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.logs = nn.Parameter(0.1 * torch.randn(outputs, 1, 1))
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * (3 * self.logs).exp()
