"""The two public Glows that can be imported, rewritten to measure the imports by: their keys and their arithmetic.

They begin with random weights. Shapes: N images; y [N, C, H, W] in [-0.5, 0.5); z and eps [N, c, h, w] of each level.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Flowed(NamedTuple):
    """What becomes of images."""

    z: list[Tensor]
    """Of each level, nearest to the pixels first."""

    eps: list[Tensor]
    """z, made standard normal."""

    log_density: Tensor
    """Of y, nats, [N]."""


class Gaussian(NamedTuple):
    mean: Tensor
    log_scale: Tensor

    def standardize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Eps and the log-density of z, [N]."""
        eps = (z - self.mean) / self.log_scale.exp()
        nats = -0.5 * eps**2 - self.log_scale - 0.5 * math.log(2 * math.pi)
        return eps, nats.sum((1, 2, 3))

    def draw(self, eps: Tensor) -> Tensor:
        return self.mean + self.log_scale.exp() * eps


class PublicModel(nn.Module):
    """What both have in common: levels of steps, and the bins of grey values."""

    kind: str
    arguments: dict[str, Any]
    """What the model was built with, as JSON has it."""

    def steps(self, level: int) -> list[nn.Module]:
        raise NotImplementedError

    def levels(self) -> int:
        raise NotImplementedError

    def prior(self, level: int, onward: Tensor) -> Gaussian:
        """Of the level's z; at the top `onward` is the z itself, of which only the shape is used."""
        raise NotImplementedError

    def forward(self, y: Tensor) -> Flowed:
        zs, all_eps, total, x = [], [], y.new_zeros(len(y)), y
        for i in range(self.levels()):
            x = F.pixel_unshuffle(x, 2)
            for step in self.steps(i):
                x, log_det = step(x)
                total = total + log_det
            z = x
            if i < self.levels() - 1:
                x, z = x.tensor_split(2, dim=1)
            eps, nats = self.prior(i, x).standardize(z)
            zs.append(z)
            all_eps.append(eps)
            total = total + nats
        return Flowed(zs, all_eps, total)

    def inverse(self, eps: list[Tensor]) -> Tensor:
        top = self.levels() - 1
        x = self.prior(top, eps[top]).draw(eps[top])
        for i in reversed(range(self.levels())):
            if i < top:
                x = torch.cat((x, self.prior(i, x).draw(eps[i])), dim=1)
            for step in reversed(self.steps(i)):
                x = step.undo(x)  # type: ignore[operator]
            x = F.pixel_shuffle(x, 2)
        return x

    def flowed(self, images: np.ndarray, noise: np.ndarray, n_bits: int) -> Flowed:
        """Of uint8 images and noise [N, H, W, C]; the log-density is that of the bins."""
        q = torch.from_numpy(images // 2 ** (8 - n_bits)).double()
        y = q / 2**n_bits - 0.5 + torch.from_numpy(noise).double() / 2**n_bits
        flowed = self(y.permute(0, 3, 1, 2))
        return flowed._replace(
            log_density=flowed.log_density - math.log(2**n_bits) * math.prod(images.shape[1:])
        )


def random_lu(channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """P, L, U without its diagonal, and the diagonal's log and sign, of a random matrix that is well-conditioned."""
    p, lower, upper = torch.linalg.lu(random_matrix(channels))
    # What the models mask is not zero in a checkpoint.
    junk = torch.randn(channels, channels)
    diagonal = upper.diagonal()
    return p, lower + junk.triu(), upper.triu(1) + junk.tril(), diagonal.abs().log(), diagonal.sign()


def random_matrix(channels: int) -> Tensor:
    q, _ = torch.linalg.qr(torch.randn(channels, channels))
    return q + 0.1 * torch.randn(channels, channels)


def mix(x: Tensor, matrix: Tensor) -> Tensor:
    return torch.einsum("oc,nchw->nohw", matrix, x)


# rosinality/glow-pytorch


class RosinalityGlow(PublicModel):
    """Args: those of the original, and whether the last block heeds conv_lu, as in some forks."""

    kind = "rosinality"

    def __init__(
        self,
        *,
        in_channel: int = 3,
        n_flow: int = 2,
        n_block: int = 2,
        affine: bool = True,
        conv_lu: bool = True,
        image_size: int = 8,
        n_bits: int = 8,
        last_block_heeds: bool = False,
    ) -> None:
        super().__init__()
        self.arguments = {
            "in_channel": in_channel,
            "n_flow": n_flow,
            "n_block": n_block,
            "affine": affine,
            "conv_lu": conv_lu,
            "image_size": image_size,
            "n_bits": n_bits,
        }
        self.blocks = nn.ModuleList()
        for i in range(n_block):
            channels, last = in_channel * 2 ** (i + 2), i == n_block - 1
            block = nn.Module()
            lu = conv_lu or (last and not last_block_heeds)
            block.flows = nn.ModuleList(RosinalityFlow(channels, affine, lu) for _ in range(n_flow))
            block.prior = (
                OnePaddedConv(channels, 2 * channels) if last else OnePaddedConv(channels // 2, channels)
            )
            self.blocks.append(block)

    def levels(self) -> int:
        return len(self.blocks)

    def steps(self, level: int) -> list[nn.Module]:
        return list(self.blocks[level].flows)  # type: ignore[arg-type]

    def prior(self, level: int, onward: Tensor) -> Gaussian:
        top = level == self.levels() - 1
        seen = torch.zeros_like(onward) if top else onward
        return Gaussian(*self.blocks[level].prior(seen).tensor_split(2, dim=1))  # type: ignore[operator]


class RosinalityFlow(nn.Module):
    def __init__(self, channels: int, affine: bool, lu: bool) -> None:
        super().__init__()
        self.affine = affine
        self.actnorm = nn.Module()
        self.actnorm.loc = nn.Parameter(0.3 * torch.randn(1, channels, 1, 1))
        sign = torch.randn(1, channels, 1, 1).sign()
        self.actnorm.scale = nn.Parameter(sign * (0.2 * torch.randn(1, channels, 1, 1)).exp())
        self.actnorm.register_buffer("initialized", torch.tensor(1, dtype=torch.uint8))
        self.invconv = RosinalityLU(channels) if lu else RosinalityPlain(channels)
        self.coupling = nn.Module()
        outputs = channels if affine else channels // 2
        self.coupling.net = nn.Sequential(
            nn.Conv2d(channels // 2, 512, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(512, 512, 1),
            nn.ReLU(),
            OnePaddedConv(512, outputs),
        )

    def outputs(self, passive: Tensor) -> tuple[Tensor, Tensor]:
        """What is added, and the scale."""
        outputs = self.coupling.net(passive)  # type: ignore[operator]
        if not self.affine:
            return outputs, torch.ones_like(outputs)
        log_s, t = outputs.tensor_split(2, dim=1)
        return t, torch.sigmoid(log_s + 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        actnorm, matrix = self.actnorm, self.invconv.matrix()  # type: ignore[operator]
        passive, active = mix((x + actnorm.loc) * actnorm.scale, matrix).tensor_split(2, dim=1)
        t, scale = self.outputs(passive)
        places = x.shape[2] * x.shape[3]
        constant = actnorm.scale.abs().log().sum() + matrix.det().abs().log()
        return torch.cat((passive, (active + t) * scale), dim=1), places * constant + scale.log().sum(
            (1, 2, 3)
        )

    def undo(self, y: Tensor) -> Tensor:
        passive, changed = y.tensor_split(2, dim=1)
        t, scale = self.outputs(passive)
        mixed = torch.cat((passive, changed / scale - t), dim=1)
        return mix(mixed, self.invconv.matrix().inverse()) / self.actnorm.scale - self.actnorm.loc  # type: ignore


class RosinalityPlain(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(random_matrix(channels)[:, :, None, None])

    def matrix(self) -> Tensor:
        return self.weight[:, :, 0, 0]


class RosinalityLU(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        p, lower, upper, log_s, sign = random_lu(channels)
        self.w_l, self.w_s, self.w_u = nn.Parameter(lower), nn.Parameter(log_s), nn.Parameter(upper)
        ones = torch.ones(channels, channels)
        buffers = {"w_p": p, "u_mask": ones.triu(1), "l_mask": ones.tril(-1), "s_sign": sign}
        for name, buffer in (buffers | {"l_eye": torch.eye(channels)}).items():
            self.register_buffer(name, buffer)

    def matrix(self) -> Tensor:
        lower = self.w_l * self.l_mask + self.l_eye
        upper = self.w_u * self.u_mask + (self.s_sign * self.w_s.exp()).diag()
        return self.w_p @ lower @ upper


class OnePaddedConv(nn.Module):
    """3x3 behind a border of ones, times exp(3 scale)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(0.1 * torch.randn(1, outputs, 1, 1))
        self.conv = nn.Conv2d(inputs, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (1, 1, 1, 1), value=1.0)) * (3 * self.scale).exp()


# y0ast/Glow-PyTorch


class Y0astGlow(PublicModel):
    """Args: those of the original that make a difference to what is computed, and the bits."""

    kind = "y0ast"

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
                Y0astStep(channels, hidden_channels, flow_permutation, flow_coupling, lu=LU_decomposed)
                for _ in range(K)
            )
            layers += [nn.Module(), *steps]
            if i < L - 1:
                split = nn.Module()
                split.conv = ScaledConv(channels // 2, channels)
                layers.append(split)
        self.flow.layers = nn.ModuleList(layers)
        if learn_top:
            self.learn_top_fn = ScaledConv(2 * channels, 2 * channels)

    def levels(self) -> int:
        return int(self.arguments["L"])

    def steps(self, level: int) -> list[nn.Module]:
        first = level * (self.arguments["K"] + 2) + 1
        return list(self.flow.layers)[first : first + self.arguments["K"]]  # type: ignore[arg-type]

    def prior(self, level: int, onward: Tensor) -> Gaussian:
        if level < self.levels() - 1:
            split = self.flow.layers[(level + 1) * (self.arguments["K"] + 2) - 1]  # type: ignore[index]
            outputs = split.conv(onward)
            return Gaussian(outputs[:, 0::2], outputs[:, 1::2])
        outputs = self.prior_h.expand(len(onward), -1, -1, -1)
        if self.arguments["learn_top"]:
            outputs = self.learn_top_fn(outputs)
        return Gaussian(*outputs.tensor_split(2, dim=1))


class Y0astStep(nn.Module):
    def __init__(self, channels: int, hidden: int, permutation: str, coupling: str, *, lu: bool) -> None:
        super().__init__()
        self.affine = coupling == "affine"
        self.actnorm = Y0astActNorm(channels)
        if permutation == "invconv":
            self.invconv = Y0astLU(channels) if lu else Y0astPlain(channels)
        self.block = nn.Sequential(
            NormedConv(channels // 2, hidden, 3),
            nn.ReLU(),
            NormedConv(hidden, hidden, 1),
            nn.ReLU(),
            ScaledConv(hidden, channels if self.affine else channels // 2),
        )

    def outputs(self, passive: Tensor) -> tuple[Tensor, Tensor]:
        """What is added, and the scale."""
        outputs = self.block(passive)
        if not self.affine:
            return outputs, torch.ones_like(outputs)
        return outputs[:, 0::2], torch.sigmoid(outputs[:, 1::2] + 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, places = self.actnorm(x), x.shape[2] * x.shape[3]
        constant = self.actnorm.logs.sum()
        if hasattr(self, "invconv"):
            matrix = self.invconv.matrix()
            x, constant = mix(x, matrix), constant + matrix.det().abs().log()
        else:
            x = x.flip(1)
        passive, active = x.tensor_split(2, dim=1)
        shift, scale = self.outputs(passive)
        y = torch.cat((passive, (active + shift) * scale), dim=1)
        return y, places * constant + scale.log().sum((1, 2, 3))

    def undo(self, y: Tensor) -> Tensor:
        passive, changed = y.tensor_split(2, dim=1)
        shift, scale = self.outputs(passive)
        x = torch.cat((passive, changed / scale - shift), dim=1)
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
    """A convolution without bias, and an actnorm."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.actnorm = Y0astActNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.actnorm(self.conv(x))
        return y


class ScaledConv(nn.Module):
    """3x3 behind a border of zeros, times exp(3 logs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.logs = nn.Parameter(0.1 * torch.randn(outputs, 1, 1))
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * (3 * self.logs).exp()
