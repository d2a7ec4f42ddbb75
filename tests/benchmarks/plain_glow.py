"""A plain implementation of Glow, written directly from the paper, as a baseline for speed.

Its determinant or inverse of W is computed in every call, actnorm reads its initialization flag from the device,
log-determinants are added step by step, tensors have PyTorch's default memory format, and the loss is read after every
step. The architecture, its size and the optimizer are those of `glowserve_training`.

Shapes: N images, C channels, H = W pixels a side.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainActNorm(nn.Module):
    """An affine map of each channel, initialized by the first batch."""

    initialized: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.register_buffer("initialized", torch.tensor(0, dtype=torch.uint8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.initialized.item() == 0:
            with torch.no_grad():
                flat = x.transpose(0, 1).flatten(1)
                self.bias.copy_(-flat.mean(1).view_as(self.bias))
                self.scale.copy_((1 / (flat.std(1) + 1e-6)).view_as(self.scale))
                self.initialized.fill_(1)
        log_det = x.shape[2] * x.shape[3] * self.scale.abs().log().sum()
        return self.scale * (x + self.bias), log_det

    def inverse(self, y: Tensor) -> Tensor:
        return y / self.scale - self.bias


class PlainConv(nn.Module):
    """y = W x at each position; the log-determinant by `torch.det`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linalg.qr(torch.randn(channels, channels)).Q)
        self.folded: tuple[Tensor, Tensor] | None = None

    def fold(self) -> None:
        """Computes determinant and inverse once for all later calls."""
        self.folded = (torch.det(self.weight).abs().log(), torch.inverse(self.weight))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_abs_det = self.folded[0] if self.folded else torch.det(self.weight).abs().log()
        return F.conv2d(x, self.weight[:, :, None, None]), x.shape[2] * x.shape[3] * log_abs_det

    def inverse(self, y: Tensor) -> Tensor:
        inverse = self.folded[1] if self.folded else torch.inverse(self.weight)
        return F.conv2d(y, inverse[:, :, None, None])


class PlainZeroConv(nn.Module):
    """A zero-initialized 3x3 convolution, times a learned scale."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        self.scale = nn.Parameter(torch.zeros(1, out_channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.conv(x) * torch.exp(self.scale * 3))


class PlainHiddenConv(nn.Module):
    """A convolution with a bias or, instead, an actnorm after it."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, actnorm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=not actnorm
        )
        self.actnorm = PlainActNorm(out_channels) if actnorm else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y if self.actnorm is None else self.actnorm(y)[0]


class PlainCoupling(nn.Module):
    """The first half conditions shift and scale of the second."""

    def __init__(self, channels: int, width: int, actnorm: bool) -> None:
        super().__init__()
        self.network = nn.Sequential(
            PlainHiddenConv(channels // 2, width, 3, actnorm),
            nn.ReLU(),
            PlainHiddenConv(width, width, 1, actnorm),
            nn.ReLU(),
            PlainZeroConv(width, channels),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.chunk(2, 1)
        shift, raw = self.network(a).chunk(2, 1)
        scale = torch.sigmoid(raw + 2)
        return torch.cat((a, (b + shift) * scale), 1), scale.log().flatten(1).sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        a, b = y.chunk(2, 1)
        shift, raw = self.network(a).chunk(2, 1)
        return torch.cat((a, b / torch.sigmoid(raw + 2) - shift), 1)


class PlainGlow(nn.Module):
    """L levels of K steps.

    Args:
        size: H = W.
        channels: C.
        levels: L.
        steps_per_level: K.
        width: hidden channels of the coupling networks.
        actnorm: whether those have actnorms, as in the paper's code, or biases.
    """

    def __init__(
        self, size: int, channels: int, levels: int, steps_per_level: int, width: int, *, actnorm: bool
    ) -> None:
        super().__init__()
        self.dimensions = channels * size * size
        self.levels = nn.ModuleList()
        self.priors = nn.ModuleList()
        self.latent_shapes = []
        for level in range(levels):
            channels *= 4
            self.levels.append(
                nn.ModuleList(
                    nn.ModuleList(
                        (PlainActNorm(channels), PlainConv(channels), PlainCoupling(channels, width, actnorm))
                    )
                    for _ in range(steps_per_level)
                )
            )
            if level < levels - 1:
                self.priors.append(PlainZeroConv(channels // 2, channels))
                channels //= 2
            self.latent_shapes.append((channels, size >> (level + 1), size >> (level + 1)))
        self.top_mean = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.top_log_scale = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def bits_per_dim(self, images: Tensor, noise: Tensor) -> Tensor:
        """The mean over uint8 images [N, H, W, C], with noise in [0, 1) of the same shape; a scalar."""
        x = ((images.float() + noise) / 256 - 0.5).permute(0, 3, 1, 2)
        log_p = x.new_zeros(len(x)) - self.dimensions * math.log(256)
        for i, level in enumerate(self.levels):
            n, c, h, w = x.shape
            x = x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4)
            x = x.reshape(n, 4 * c, h // 2, w // 2)
            for step in level:  # type: ignore[attr-defined]
                for layer in step:
                    x, log_det = layer(x)
                    log_p = log_p + log_det
            if i < len(self.priors):
                x, z = x.chunk(2, 1)
                mean, log_scale = self.priors[i](x).chunk(2, 1)
            else:
                z, mean, log_scale = x, self.top_mean, self.top_log_scale
            log_p = log_p + _log_gaussian(z, mean, log_scale).flatten(1).sum(1)
        return -log_p.mean() / (math.log(2) * self.dimensions)

    def sample(self, latent: Tensor) -> Tensor:
        """Images, uint8 [N, H, W, C], of latents [N, D]; level 1, nearest to the pixels, is first."""
        parts = latent.split([math.prod(shape) for shape in self.latent_shapes], 1)
        x = parts[-1].reshape(-1, *self.latent_shapes[-1]) * self.top_log_scale.exp() + self.top_mean
        for i in reversed(range(len(self.levels))):
            if i < len(self.priors):
                mean, log_scale = self.priors[i](x).chunk(2, 1)
                z = parts[i].reshape(-1, *self.latent_shapes[i]) * log_scale.exp() + mean
                x = torch.cat((x, z), 1)
            for step in reversed(self.levels[i]):  # type: ignore[call-overload]
                for layer in reversed(step):
                    x = layer.inverse(x)
            n, c, h, w = x.shape
            x = x.reshape(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3)
            x = x.reshape(n, c // 4, 2 * h, 2 * w)
        return ((x.permute(0, 2, 3, 1) + 0.5) * 256).floor().clamp(0, 255).byte()


def plain_step(model: PlainGlow, optimizer: torch.optim.Optimizer, images: Tensor, noise: Tensor) -> float:
    """Trains one step; returns the loss."""
    loss = model.bits_per_dim(images, noise)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 50.0)
    optimizer.step()
    return loss.item()


def _log_gaussian(z: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    return -0.5 * (math.log(2 * math.pi) + 2 * log_scale + (z - mean) ** 2 / torch.exp(2 * log_scale))
