"""Glow (Kingma and Dhariwal 2018): L levels of K steps of flow.

Shapes: N images, C channels, H rows, W columns, D = H * W * C. Images are uint8 [N, H, W, C], as everywhere outside
PyTorch; inside the flow they are [N, C, H, W].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from glowserve_training import quantization
from glowserve_training.config import GlowConfig
from glowserve_training.dequantization import Dequantized, VariationalDequantization
from glowserve_training.layers import Bijector, CheckerboardMask, Coupling, FlowStep, Level
from glowserve_training.layers.classes import ClassPriors, mixture
from glowserve_training.layers.transforms import transform_of
from glowserve_training.preprocessing import PREPROCESSING_CLASSES

__all__ = ["Glow", "GlowConfig", "Terms"]


@dataclass(frozen=True)
class Terms:
    """The terms of log-likelihoods, in nats, by level; level 1 is nearest to the pixels."""

    log_prior: Tensor
    """The log-density of each level's latents, [N, L]."""

    log_det: Tensor
    """Each level's log-determinants that depend on the image, [N, L].

    Level 1's has those of variational dequantization, of the preprocessing and of the pixel couplings.
    """

    constant: Tensor
    """The terms that are the same for every image: constant log-determinants and the bins' log-volume; a scalar."""

    def total(self) -> Tensor:
        """The log-likelihoods, [N]."""
        return self.log_prior.sum(1) + self.log_det.sum(1) + self.constant


class Glow(Bijector):
    """The whole flow, between preprocessed images [N, C, H, W] and latents [N, D].

    The latents are standard normal; those of a class-conditional model have the densities of `class_priors`.

    Couplings of pixels, with checkerboard masks, come before the levels, if the configuration has any.

    A latent vector is the concatenation of the levels' latents, level 1 (nearest to the pixels) first; within a level
    it is row-major over [channel, row, column].

    Args:
        config: the architecture.
    """

    def __init__(self, config: GlowConfig) -> None:
        super().__init__()
        self.config = config
        variational = config.dequantization == "variational"
        self.dequantization = VariationalDequantization(config) if variational else None
        self.preprocessing = PREPROCESSING_CLASSES[config.preprocessing](config.n_bits)
        self.pixel_couplings = nn.ModuleList(
            Coupling(
                CheckerboardMask(config.channels, parity=k % 2),
                transform_of(config, config.channels),
                config.pixel_width,
                actnorm=config.coupling_actnorm,
            )
            for k in range(config.checkerboards)
        )
        self._checkpoint_activations = False
        last = config.levels - 1
        self.levels = nn.ModuleList(
            # Half of each level's 4C channels continues to the next level: 2C.
            Level(config.channels * 2**i, config, top=i == last)
            for i in range(config.levels)
        )
        self.class_priors = ClassPriors(config.class_count, config.dimensions) if config.class_count else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Preprocessed images [N, C, H, W] to latents [N, D], and log|det| [N]."""
        latents, log_dets = self._by_level(x)
        return torch.cat(latents, dim=1), torch.stack(log_dets).sum(0)

    def _by_level(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Each level's latents [N, D of the level] and log|det| [N]; level 1's has those of the pixel couplings."""
        latents, log_dets = [], []
        log_det_pixels = x.new_zeros(len(x))
        for coupling in self.couplings_of_pixels():
            x, log_det = self._couple(coupling, x)
            log_det_pixels = log_det_pixels + log_det
        for level in self.levels[:-1]:
            x, log_det = level(x)
            x, latent = x.chunk(2, dim=1)
            latents.append(latent.flatten(1))
            log_dets.append(log_det)
        latent, log_det = self.levels[-1](x)
        log_dets.append(log_det)
        log_dets[0] = log_dets[0] + log_det_pixels
        return [*latents, latent.flatten(1)], log_dets

    def _couple(self, coupling: Coupling, x: Tensor) -> tuple[Tensor, Tensor]:
        if self._checkpoint_activations:
            y, log_det = checkpoint(coupling, x, use_reentrant=False, preserve_rng_state=False)
        else:
            y, log_det = coupling(x)
        return y, log_det

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [N, D] to preprocessed images [N, C, H, W], and log|det| [N]."""
        shapes = self.latent_shapes()
        parts = y.split([math.prod(shape) for shape in shapes], dim=1)
        latents = [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]
        *levels, top = self.flow_levels()
        x, log_det = top.inverse(latents[-1])
        for level, latent in zip(reversed(levels), reversed(latents[:-1]), strict=True):
            x, log_det_level = level.inverse(torch.cat((x, latent), dim=1))
            log_det = log_det + log_det_level
        for coupling in reversed(self.couplings_of_pixels()):
            x, log_det_coupling = coupling.inverse(x)
            log_det = log_det + log_det_coupling
        return x, log_det

    def log_prob(self, images: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """The log-likelihood of discrete images, in nats, [N].

        Args:
            images: uint8 [N, H, W, C].
            noise: dequantization noise in [0, 1), [N, H, W, C], in the parameters' dtype.
            labels: the classes of the images, int64 [N], whose log p(x | c) it is; None for log p(x), which is summed
                over the classes of a class-conditional model.
        """
        y, log_det_input = self.preprocess(self.dequantize(images, noise))
        latent, log_det = self(y)
        log_prior = _log_normal(latent)
        if self.class_priors is not None:
            log_prior = log_prior + self._log_ratio(latent, labels)
        log_likelihood: Tensor = log_prior + log_det + log_det_input + self._log_bin_volume()
        return log_likelihood

    def _log_ratio(self, latent: Tensor, labels: Tensor | None) -> Tensor:
        """What the classes add to the standard normal log-density of latents [N, D], [N]."""
        assert self.class_priors is not None
        sizes = [math.prod(shape) for shape in self.latent_shapes()]
        log_ratios = self.class_priors.log_ratios(latent.split(sizes, dim=1))
        if labels is None:
            return mixture(log_ratios, self.class_priors.log_share).log_ratio.sum(1)
        return log_ratios.sum(1).gather(1, labels[:, None]).squeeze(1)

    def log_posterior(self, images: Tensor, noise: Tensor) -> Tensor:
        """Log p(c | x) of a class-conditional model, [N, K], for the arguments of `log_prob`."""
        assert self.class_priors is not None
        latents, _ = self._by_level(self.preprocess(self.dequantize(images, noise))[0])
        return mixture(self.class_priors.log_ratios(latents), self.class_priors.log_share).log_posterior

    def terms(self, images: Tensor, noise: Tensor) -> Terms:
        """The terms whose sum is `log_prob`, with the same arguments."""
        y, log_det_input = self.preprocess(self.dequantize(images, noise))
        latents, log_dets = self._by_level(y)
        log_dets[0] = log_dets[0] + log_det_input
        constants = torch.stack([level.constant_log_det() for level in self.flow_levels()])
        positions = [height * width for _, height, width in self.latent_shapes()]
        constants = constants * constants.new_tensor(positions)
        log_prior = torch.stack([_log_normal(latent) for latent in latents], dim=1)
        if self.class_priors is not None:
            log_ratios = self.class_priors.log_ratios(latents)
            log_prior = log_prior + mixture(log_ratios, self.class_priors.log_share).log_ratio
        return Terms(
            log_prior=log_prior,
            log_det=torch.stack(log_dets, dim=1) - constants,
            constant=constants.sum() + self._log_bin_volume(),
        )

    def dequantize(self, images: Tensor, noise: Tensor) -> Dequantized:
        """Images in bins, with noise: the given one, or what variational dequantization makes of it.

        The arguments are those of `log_prob`.
        """
        noise = noise.permute(0, 3, 1, 2)
        bins = quantization.to_bins(images, self.config.n_bits).to(noise.dtype).permute(0, 3, 1, 2)
        if self.dequantization is None:
            return Dequantized(bins, noise, 1 - noise, noise.new_zeros(len(noise)))
        centers = (bins + 0.5) / 2**self.config.n_bits - 0.5
        return Dequantized(bins, *self.dequantization(noise, centers))

    def preprocess(self, dequantized: Dequantized) -> tuple[Tensor, Tensor]:
        """The flow's input [N, C, H, W], and the log-determinants of dequantization and preprocessing, [N]."""
        y, log_det = self.preprocessing(dequantized.bins, dequantized.noise, dequantized.complement)
        return y, log_det + dequantized.log_det

    def encode(self, images: Tensor) -> Tensor:
        """The latents [N, D] of images, uint8 [N, H, W, C], with noise 0.5: the bins' centers, if uniform."""
        noise = torch.full(images.shape, 0.5, dtype=self._dtype(), device=images.device)
        latent, _ = self(self.preprocess(self.dequantize(images, noise))[0])
        return torch.as_tensor(latent)

    def decode(self, latent: Tensor) -> Tensor:
        """The images, uint8 [N, H, W, C], of latents [N, D]."""
        return quantization.quantize(self.pixels(latent), self.config.n_bits)

    def pixels(self, latent: Tensor) -> Tensor:
        """Bins with noise of latents [N, D], [N, H, W, C]; not finite where the flow's output is not."""
        y, _ = self.inverse(latent)
        # The inverse of a logit would make an infinite value a finite one.
        pixels = torch.where(y.isfinite(), self.preprocessing.inverse(y), math.nan)
        return pixels.permute(0, 2, 3, 1).contiguous()

    def sample(self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Draws images.

        Args:
            n: how many.
            temperature: the standard deviation of the latents; below 1, samples are more typical.
            generator: draws the latents, on the model's device; None for PyTorch's global one.

        Returns:
            uint8 [n, H, W, C].
        """
        device = next(self.parameters()).device
        shape = (n, self.config.dimensions)
        latent = temperature * torch.randn(shape, generator=generator, dtype=self._dtype(), device=device)
        if self.class_priors is not None:
            shares = self.class_priors.log_share.exp()
            classes = torch.multinomial(shares, n, replacement=True, generator=generator)
            latent = self.class_priors.place(latent, classes)
        return self.decode(latent)

    @torch.no_grad()
    def condition_numbers(self) -> list[list[float]]:
        """Condition number of each 1x1 convolution, by level and step; infinity if singular or not finite."""
        return [level.condition_numbers().tolist() for level in self.flow_levels()]

    @torch.no_grad()
    def coupling_scales(self, images: Tensor, noise: Tensor) -> list[tuple[float, float]]:
        """The smallest and the largest scale of the couplings of each level, for the arguments of `log_prob`.

        The couplings of pixels count as level 1's.
        """
        ranges: list[list[Tensor]] = [[] for _ in self.levels]

        def record(level: int, coupling: Coupling) -> RemovableHandle:
            return coupling.transform.register_forward_hook(
                lambda _module, _input, output: ranges[level].append(coupling.scale_range(output[1]))
            )

        couplings = [(0, coupling) for coupling in self.couplings_of_pixels()]
        couplings += [
            (i, step.coupling) for i, level in enumerate(self.flow_levels()) for step in level.flow_steps()
        ]
        hooks = [record(i, coupling) for i, coupling in couplings]
        try:
            with torch.compiler.set_stance("force_eager"):  # compiled steps would not call the hooks
                self.log_prob(images, noise)
        finally:
            for hook in hooks:
                hook.remove()
        stacked = [torch.stack(level) for level in ranges]
        return [(float(level[:, 0].min()), float(level[:, 1].max())) for level in stacked]

    def checkpoint_activations(self) -> None:
        """Makes the backward pass recompute each step and pixel coupling instead of storing its activations."""
        self._checkpoint_activations = True
        for level in self.flow_levels():
            level.checkpoint_activations = True

    def compile_steps(self) -> None:
        """Compiles each step of flow and pixel coupling; the first run compiles once for each level and each parity."""
        # Each level and each of two parities is compiled once for training and twice for validation, whose last batch
        # is smaller. Beyond its limit torch would run the others uncompiled.
        most = 4 * (len(self.levels) + 2)
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, most)
        for step in self.flow_steps():
            step.transform = torch.compile(step.transform, dynamic=False)  # type: ignore[method-assign]
        for coupling in self.couplings_of_pixels():
            coupling.forward = torch.compile(coupling.forward, dynamic=False)  # type: ignore[method-assign]

    def flow_levels(self) -> list[Level]:
        """The levels in forward order: level 1, nearest to the pixels, first."""
        return cast("list[Level]", list(self.levels))

    def couplings_of_pixels(self) -> list[Coupling]:
        """The couplings with checkerboard masks, in forward order."""
        return cast("list[Coupling]", list(self.pixel_couplings))

    def flow_steps(self) -> list[FlowStep]:
        """The steps of flow of all levels, in forward order."""
        return [step for level in self.flow_levels() for step in level.flow_steps()]

    def latent_shapes(self) -> list[tuple[int, int, int]]:
        """[C, H, W] of each level's latents, level 1 first."""
        shapes = []
        for i in range(1, self.config.levels + 1):
            size, top = self.config.image_size.halved(i), i == self.config.levels
            shapes.append((self.config.channels * 2 ** (i + top), size.height, size.width))
        return shapes

    def _log_bin_volume(self) -> float:
        return -self.config.dimensions * self.config.n_bits * math.log(2)

    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


def _log_normal(latent: Tensor) -> Tensor:
    """The standard normal log-density of latents [N, D], [N]."""
    return -0.5 * (latent.square().sum(1) + latent.shape[1] * math.log(2 * math.pi))
