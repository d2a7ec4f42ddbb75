"""rosinality/glow-pytorch with random weights, rewritten; see public_model.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.export.frontends.public_model import Gaussian, PublicModel, mix, random_lu, random_matrix


class RosinalityGlow(PublicModel):
    """Its arguments are those of the original, n_bits, and whether the last block obeys conv_lu, as in some forks."""

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
        last_block_obeys: bool = False,
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
            lu = conv_lu or (last and not last_block_obeys)
            block.flows = nn.ModuleList(RosinalityFlow(channels, affine, lu) for _ in range(n_flow))
            block.prior = (
                OnePaddedConv(channels, 2 * channels) if last else OnePaddedConv(channels // 2, channels)
            )
            self.blocks.append(block)

    def levels(self) -> int:
        return len(self.blocks)

    def steps(self, level: int) -> list[nn.Module]:
        return list(self.blocks[level].flows)  # type: ignore[arg-type]

    def prior(self, level: int, continuing: Tensor) -> Gaussian:
        top = level == self.levels() - 1
        conditions = torch.zeros_like(continuing) if top else continuing
        return Gaussian(*self.blocks[level].prior(conditions).tensor_split(2, dim=1))  # type: ignore[operator]


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
        """The shift and the scale."""
        outputs = self.coupling.net(passive)  # type: ignore[operator]
        if not self.affine:
            return outputs, torch.ones_like(outputs)
        log_s, t = outputs.tensor_split(2, dim=1)
        return t, torch.sigmoid(log_s + 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        actnorm, matrix = self.actnorm, self.invconv.matrix()  # type: ignore[operator]
        passive, active = mix((x + actnorm.loc) * actnorm.scale, matrix).tensor_split(2, dim=1)
        t, scale = self.outputs(passive)
        positions = x.shape[2] * x.shape[3]
        constant = actnorm.scale.abs().log().sum() + matrix.det().abs().log()
        return torch.cat((passive, (active + t) * scale), dim=1), positions * constant + scale.log().sum(
            (1, 2, 3)
        )

    def undo(self, y: Tensor) -> Tensor:
        passive, transformed = y.tensor_split(2, dim=1)
        t, scale = self.outputs(passive)
        mixed = torch.cat((passive, transformed / scale - t), dim=1)
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
    """3x3, padded with ones, times exp(3 scale)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(0.1 * torch.randn(1, outputs, 1, 1))
        self.conv = nn.Conv2d(inputs, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (1, 1, 1, 1), value=1.0)) * (3 * self.scale).exp()
