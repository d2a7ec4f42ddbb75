"""Glow (Kingma and Dhariwal 2018): L levels of K steps of flow.

Shapes: N images, C channels, H = W pixels a side, D = H * W * C. Images are uint8 [N, H, W, C], as everywhere
outside PyTorch; inside the flow they are [N, C, H, W].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from glowserve_training import quantization
from glowserve_training.dequantization import VariationalDequantization
from glowserve_training.layers import (
    COUPLINGS,
    PARAMETRIZATIONS,
    ActNorm,
    Bijector,
    Coupling,
    Split,
    Squeeze,
    TopPrior,
    invertible_conv1x1,
)

DEQUANTIZATIONS = ("uniform", "variational")
# Of a variational dequantization.
_DEQUANTIZATION_COUPLINGS = 4


@dataclass(frozen=True)
class Terms:
    """What a log-likelihood is the sum of, in nats; L levels, level 1 (nearest to the pixels) first."""

    log_prior: Tensor
    """The log-density of each level's latents, [N, L]."""

    log_det: Tensor
    """Each level's log-determinants that depend on the image, [N, L]; variational dequantization is in level 1's."""

    constant: Tensor
    """The rest, which is the same for every image: the other log-determinants and the bins' log-volume; a scalar."""

    def total(self) -> Tensor:
        """The log-likelihood, [N]."""
        return self.log_prior.sum(1) + self.log_det.sum(1) + self.constant


@dataclass(frozen=True, kw_only=True)
class GlowConfig:
    """The architecture; it travels in the checkpoint."""

    image_size: int
    """Pixels a side, H = W; divisible by 2^levels."""

    channels: int
    """1 (grey) or 3 (red, green, blue)."""

    n_bits: int = 8
    """Bits of each value that the model sees, 1 to 8."""

    levels: int = 3
    """Levels of the multi-scale flow, L; each halves the image."""

    steps_per_level: int = 8
    """Steps of flow in a level, K."""

    width: int = 128
    """Hidden channels of a coupling network."""

    coupling: str = "affine"
    """"affine" or "additive"."""

    parametrization: str = "lu"
    """Of the 1x1 convolutions: "lu" (cannot become singular), "orthogonal" (condition number 1) or "plain"."""

    coupling_actnorm: bool = True
    """Whether the coupling networks' hidden convolutions have actnorms instead of biases."""

    dequantization: str = "uniform"
    """How noise fills the bins: "uniform", or "variational", learned."""

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"channels is {self.channels}; it must be 1 (grey) or 3 (RGB)")
        if not 1 <= self.n_bits <= 8:
            raise ValueError(f"n_bits is {self.n_bits}; it must lie in 1 to 8")
        for name in ("levels", "steps_per_level", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.image_size < 1 or self.image_size % 2**self.levels:
            raise ValueError(
                f"image_size is {self.image_size}; {self.levels} levels halve it {self.levels} times, so it "
                f"must be a positive multiple of {2**self.levels} (or use fewer levels)"
            )
        if self.coupling not in COUPLINGS:
            raise ValueError(f"coupling is {self.coupling!r}; it must be one of {', '.join(COUPLINGS)}")
        if self.dequantization not in DEQUANTIZATIONS:
            known = ", ".join(DEQUANTIZATIONS)
            raise ValueError(f"dequantization is {self.dequantization!r}; it must be one of {known}")
        if self.parametrization not in PARAMETRIZATIONS:
            known = ", ".join(PARAMETRIZATIONS)
            raise ValueError(f"parametrization is {self.parametrization!r}; it must be one of {known}")

    @property
    def dimensions(self) -> int:
        """Values of an image, D."""
        return self.image_size**2 * self.channels


class FlowStep(Bijector):
    """One step of flow: actnorm, invertible 1x1 convolution, coupling.

    Args:
        channels: C at this level.
        config: the rest.
    """

    def __init__(self, channels: int, config: GlowConfig) -> None:
        super().__init__()
        self.actnorm = ActNorm(channels)
        self.conv1x1 = invertible_conv1x1(channels, config.parametrization)
        self.coupling = COUPLINGS[config.coupling](channels, config.width, actnorm=config.coupling_actnorm)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Bijector`."""
        self.actnorm.see(x)
        weights, biases, log_dets = _linear_parts([self])
        x, log_det = self.transform(x, weights[0], biases[0])
        return x, log_det + x.shape[2] * x.shape[3] * log_dets.sum()

    def transform(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The step, given its part of `_linear_parts`, and the coupling's log-determinant.

        The linear part is computed in full precision even under autocast: an error in what is inverted is not undone,
        one in a coupling network is.
        """
        with torch.autocast(x.device.type, enabled=False):
            x = F.conv2d(x, weight[:, :, None, None], bias)
        y, log_det = self.coupling(x)
        return y, log_det

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """See `Bijector`."""
        y, log_det_coupling = self.coupling.inverse(y)
        y, log_det_conv1x1 = self.conv1x1.inverse(y)
        y, log_det_actnorm = self.actnorm.inverse(y)
        return y, log_det_actnorm + log_det_conv1x1 + log_det_coupling


def _linear_parts(steps: Sequence[FlowStep]) -> tuple[Tensor, Tensor, Tensor]:
    """Actnorm and 1x1 convolution of each of K steps of a level as one 1x1 convolution.

    Its weight [K, C, C] and bias [K, C], and the log-determinant at one place, [K].
    """
    log_scale = torch.stack([step.actnorm.log_scale for step in steps]).flatten(1)
    bias = torch.stack([step.actnorm.bias for step in steps]).flatten(1)
    with torch.autocast(bias.device.type, enabled=False):
        weight, log_abs_det = steps[0].conv1x1.stacked([step.conv1x1 for step in steps])
        weight = weight * log_scale.exp()[:, None]
        return weight, (weight @ bias[:, :, None]).squeeze(2), log_scale.sum(1) + log_abs_det


class Level(Bijector):
    """Squeeze, K steps of flow, and the prior of what becomes latent here.

    Args:
        channels: C before the squeeze.
        config: the rest.
        top: whether nothing goes on from here.
    """

    def __init__(self, channels: int, config: GlowConfig, *, top: bool) -> None:
        super().__init__()
        self.squeeze = Squeeze()
        self.steps = nn.ModuleList(FlowStep(4 * channels, config) for _ in range(config.steps_per_level))
        self.prior = TopPrior(4 * channels) if top else Split(4 * channels)
        self.checkpoint_activations = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, C, H, W] to [N, 4C, H/2, W/2]; the last half of the channels (at the top: all) is latent."""
        x, log_det = self.squeeze(x)
        self._let_see(x)
        weights, biases, log_dets = _linear_parts(self.flow_steps())
        for step, weight, bias in zip(self.flow_steps(), weights.unbind(), biases.unbind(), strict=True):
            if self.checkpoint_activations:
                x, log_det_step = checkpoint(
                    step.transform, x, weight, bias, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x, log_det_step = step.transform(x, weight, bias)
            log_det = log_det + log_det_step
        log_det = log_det + x.shape[2] * x.shape[3] * log_dets.sum()
        x, log_det_prior = self.prior(x)
        return x, log_det + log_det_prior

    @torch.no_grad()
    def _let_see(self, x: Tensor) -> None:
        """If x is the first batch that is seen in training mode, sets the actnorms, one after the other."""
        if any(step.actnorm.waits for step in self.flow_steps()):
            for step in self.flow_steps():
                x, _ = step(x)

    def flow_steps(self) -> list[FlowStep]:
        """Its steps, nearest to the pixels first."""
        return cast("list[FlowStep]", list(self.steps))

    def condition_numbers(self) -> Tensor:
        """Of each step's 1x1 convolution, [K], float64; infinity where it is singular or not finite."""
        convs = [step.conv1x1 for step in self.flow_steps()]
        weights = convs[0].stacked(convs)[0].double()
        finite = weights.isfinite().all(-1).all(-1)
        singular_values = torch.linalg.svdvals(torch.where(finite[:, None, None], weights, 0.0))
        conditions = singular_values[:, 0] / singular_values[:, -1]
        conditions = torch.where(finite, conditions, math.inf)
        return conditions.nan_to_num(nan=math.inf, posinf=math.inf)

    def constant_log_det(self) -> Tensor:
        """The log-determinants that are the same for every image, at one place of [H/2, W/2]; a scalar."""
        log_det = _linear_parts(self.flow_steps())[2].sum()
        return log_det - self.prior.log_scale.sum() if isinstance(self.prior, TopPrior) else log_det

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` undoes."""
        y, log_det = self.prior.inverse(y)
        for step in reversed(self.steps):
            y, log_det_step = step.inverse(y)  # type: ignore[operator]  # ModuleList forgets its type
            log_det = log_det + log_det_step
        y, log_det_squeeze = self.squeeze.inverse(y)
        return y, log_det + log_det_squeeze


class Glow(Bijector):
    """The whole flow, between dequantized images [N, C, H, W] and standard normal latents [N, D].

    A latent is flat: level 1 (nearest to the pixels) first, the top level last; within a level row-major over
    [channel, row, column].

    Args:
        config: the architecture.
    """

    def __init__(self, config: GlowConfig) -> None:
        super().__init__()
        self.config = config
        self.dequantization = None
        if config.dequantization == "variational":
            self.dequantization = VariationalDequantization(
                config.channels, config.width, _DEQUANTIZATION_COUPLINGS, actnorm=config.coupling_actnorm
            )
        last = config.levels - 1
        self.levels = nn.ModuleList(
            # Each level takes half of the 4C channels of the level before: 2C.
            Level(config.channels * 2**i, config, top=i == last)
            for i in range(config.levels)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Dequantized images [N, C, H, W] to latents [N, D], and log|det| [N]."""
        latents, log_dets = self._by_level(x)
        return torch.cat(latents, dim=1), torch.stack(log_dets).sum(0)

    def _by_level(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Each level's latents [N, D of the level] and log|det| [N]."""
        latents, log_dets = [], []
        for level in self.levels[:-1]:
            x, log_det = level(x)
            x, latent = x.chunk(2, dim=1)
            latents.append(latent.flatten(1))
            log_dets.append(log_det)
        latent, log_det = self.levels[-1](x)
        return [*latents, latent.flatten(1)], [*log_dets, log_det]

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [N, D] to dequantized images [N, C, H, W], and log|det| [N]."""
        shapes = self.latent_shapes()
        parts = y.split([math.prod(shape) for shape in shapes], dim=1)
        latents = [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]
        x, log_det = self.levels[-1].inverse(latents[-1])  # type: ignore[operator]  # ModuleList forgets its type
        for level, latent in zip(reversed(self.levels[:-1]), reversed(latents[:-1]), strict=True):
            x, log_det_level = level.inverse(torch.cat((x, latent), dim=1))  # type: ignore[operator]
            log_det = log_det + log_det_level
        return x, log_det

    @torch.no_grad()
    def condition_numbers(self) -> list[list[float]]:
        """Of each 1x1 convolution, by level and step; infinity where it is singular or not finite."""
        return [level.condition_numbers().tolist() for level in self._levels()]

    @torch.no_grad()
    def coupling_scales(self, images: Tensor, noise: Tensor) -> list[tuple[float, float]]:
        """The smallest and the largest scale of any affine coupling of each level, on images as in `log_prob`."""
        found: list[list[Tensor]] = [[] for _ in self.levels]

        def listen(level: int, coupling: Coupling) -> RemovableHandle:
            return coupling.network.register_forward_hook(
                lambda _module, _input, h: found[level].append(coupling.scale_range(h))
            )

        couplings = [
            (i, step.coupling) for i, level in enumerate(self._levels()) for step in level.flow_steps()
        ]
        hooks = [listen(i, coupling) for i, coupling in couplings]
        try:
            with torch.compiler.set_stance("force_eager"):
                self.log_prob(images, noise)
        finally:
            for hook in hooks:
                hook.remove()
        ranges = [torch.stack(level) for level in found]
        return [(float(level[:, 0].min()), float(level[:, 1].max())) for level in ranges]

    def checkpoint_activations(self) -> None:
        """From now on the backward pass computes each step again instead of keeping its activations."""
        for level in self._levels():
            level.checkpoint_activations = True

    def compile_steps(self) -> None:
        """From now on each step of flow runs compiled; the first run compiles, once for each level."""
        # Each level once in training and twice in validation, whose last batch is smaller. Beyond its limit torch would
        # run the rest uncompiled.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * len(self.levels))
        for step in self.flow_steps():
            step.transform = torch.compile(step.transform, dynamic=False)  # type: ignore[method-assign]

    def flow_steps(self) -> list[FlowStep]:
        """All of them, nearest to the pixels first."""
        return [step for level in self._levels() for step in level.flow_steps()]

    def _levels(self) -> list[Level]:
        return cast("list[Level]", list(self.levels))

    def latent_shapes(self) -> list[tuple[int, int, int]]:
        """[C, H, W] of each level's latents, level 1 first."""
        size, channels, last = self.config.image_size, self.config.channels, self.config.levels - 1
        shapes = [(channels * 2 ** (i + 1), size >> (i + 1), size >> (i + 1)) for i in range(last)]
        return [*shapes, (channels * 2 ** (last + 2), size >> (last + 1), size >> (last + 1))]

    def log_prob(self, images: Tensor, noise: Tensor) -> Tensor:
        """The log-likelihood of discrete images, in nats, [N].

        Args:
            images: uint8 [N, H, W, C].
            noise: dequantization noise in [0, 1), [N, H, W, C], in the parameters' dtype.
        """
        y, log_det_noise = self.dequantize(images, noise)
        latent, log_det = self(y)
        log_likelihood: Tensor = _log_normal(latent) + log_det + log_det_noise + self._log_bin_volume()
        return log_likelihood

    def terms(self, images: Tensor, noise: Tensor) -> Terms:
        """What `log_prob` is the sum of; the arguments are the same."""
        y, log_det_noise = self.dequantize(images, noise)
        latents, log_dets = self._by_level(y)
        log_dets[0] = log_dets[0] + log_det_noise
        constants = torch.stack([level.constant_log_det() for level in self._levels()])
        places = [height * width for _, height, width in self.latent_shapes()]
        constants = constants * constants.new_tensor(places)
        return Terms(
            log_prior=torch.stack([_log_normal(latent) for latent in latents], dim=1),
            log_det=torch.stack(log_dets, dim=1) - constants,
            constant=constants.sum() + self._log_bin_volume(),
        )

    def encode(self, images: Tensor) -> Tensor:
        """The latents [N, D] of images, uint8 [N, H, W, C], with noise 0.5: of the bins' middles, if uniform."""
        noise = torch.full(images.shape, 0.5, dtype=self._dtype(), device=images.device)
        latent, _ = self(self.dequantize(images, noise)[0])
        return torch.as_tensor(latent)

    def decode(self, latent: Tensor) -> Tensor:
        """The images, uint8 [N, H, W, C], of latents [N, D]."""
        x, _ = self.inverse(latent)
        return quantization.quantize(x, self.config.n_bits).permute(0, 2, 3, 1).contiguous()

    def sample(self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Draws images.

        Args:
            n: how many.
            temperature: the standard deviation of the latents; below 1, samples are more typical.
            generator: where the latents come from, on the model's device; the global one if left out.

        Returns:
            uint8 [n, H, W, C].
        """
        device = next(self.parameters()).device
        shape = (n, self.config.dimensions)
        latent = torch.randn(shape, generator=generator, dtype=self._dtype(), device=device)
        return self.decode(temperature * latent)

    def dequantize(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """What the flow sees of images, [N, C, H, W], and the log-determinant of the noise's map, [N].

        The arguments are those of `log_prob`.
        """
        if self.dequantization is None:
            y = quantization.dequantize(images, noise, self.config.n_bits)
            return y.permute(0, 3, 1, 2), y.new_zeros(len(y))
        middles = quantization.dequantize(images, torch.full_like(noise, 0.5), self.config.n_bits)
        learned, log_det = self.dequantization(noise.permute(0, 3, 1, 2), middles.permute(0, 3, 1, 2))
        y = quantization.dequantize(images, learned.permute(0, 2, 3, 1), self.config.n_bits)
        return y.permute(0, 3, 1, 2), log_det

    def _log_bin_volume(self) -> float:
        return -self.config.dimensions * self.config.n_bits * math.log(2)

    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


def _log_normal(latent: Tensor) -> Tensor:
    """The standard normal log-density of latents [N, D], [N]."""
    return -0.5 * (latent.square().sum(1) + latent.shape[1] * math.log(2 * math.pi))
