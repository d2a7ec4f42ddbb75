"""normflows' MultiscaleFlow of GlowBlocks with random weights, rewritten; see public_model.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.export.frontends.public_model import Gaussian, PublicModel, mix, random_lu, random_matrix


class NormflowsGlow(PublicModel):
    """Its arguments are those of the constructors of GlowBlock, GlowBase and MultiscaleFlow.

    `bases` are the classes of its base distributions, the top level's first; the last counts for all that follow.
    """

    kind = "normflows"

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int] = (3, 8, 8),
        L: int = 2,
        K: int = 2,
        hidden_channels: int = 6,
        split_mode: str = "channel",
        scale: bool = True,
        scale_map: str = "sigmoid",
        use_lu: bool = True,
        net_actnorm: bool = False,
        bases: tuple[str, ...] = ("DiagGaussian",),
        logscale_factor: float = 3.0,
        transform: str | None = None,
        n_bits: int = 8,
    ) -> None:
        super().__init__()
        self.arguments = {
            "input_shape": list(input_shape),
            "L": L,
            "K": K,
            "hidden_channels": hidden_channels,
            "split_mode": split_mode,
            "scale": scale,
            "scale_map": scale_map,
            "leaky": 0.0,
            "use_lu": use_lu,
            "net_actnorm": net_actnorm,
            "logscale_factor": logscale_factor,
            "transform": transform,
            "n_bits": n_bits,
        }
        self.centre = 0.5 if transform == "Shift" else 0.0
        channels, height, width = input_shape
        self.q0, self.flows = nn.ModuleList(), nn.ModuleList()
        for i in range(L):  # the top level first
            level = L - 1 - i
            block = channels * 2 ** (level + 2)
            latents = (block // (1 if i == 0 else 2), height >> (level + 1), width >> (level + 1))
            self.q0.append(BASES[bases[min(i, len(bases) - 1)]](latents, logscale_factor))
            self.flows.append(
                nn.ModuleList(
                    GlowBlock(block, hidden_channels, scale, scale_map, split_mode, use_lu, net_actnorm)
                    for _ in range(K)
                )
            )

    def levels(self) -> int:
        return len(self.flows)

    def steps(self, level: int) -> list[nn.Module]:
        return list(reversed(self.flows[self.levels() - 1 - level]))  # type: ignore[call-overload]

    def prior(self, level: int, continuing: Tensor) -> Gaussian:
        mean, log_scale = self.q0[self.levels() - 1 - level].mean_and_log_scale()  # type: ignore[operator]
        shape = self.latent_shape(level)
        return Gaussian(mean.expand(1, *shape), log_scale.expand(1, *shape))

    def latent_shape(self, level: int) -> tuple[int, int, int]:
        """[C, H, W] of a level's latents."""
        channels, height, width = self.arguments["input_shape"]
        latents = channels * 2 ** (level + (2 if level == self.levels() - 1 else 1))
        return latents, height >> (level + 1), width >> (level + 1)


class GlowBlock(nn.Module):
    def __init__(
        self, channels: int, hidden: int, scale: bool, scale_map: str, split_mode: str, lu: bool, norm: bool
    ) -> None:
        super().__init__()
        self.scale_map = scale_map if scale else None
        self.inverted = split_mode == "channel_inv"
        coupling = nn.Module()
        affine = nn.Module()
        affine.param_map = nn.Module()
        outputs = channels if scale else channels // 2
        affine.param_map.net = nn.Sequential(
            nn.Conv2d(channels // 2, hidden, 3, padding=1, bias=not norm),
            *((HiddenActNorm(hidden),) if norm else ()),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 1, bias=not norm),
            *((HiddenActNorm(hidden),) if norm else ()),
            nn.ReLU(),
            nn.Conv2d(hidden, outputs, 3, padding=1),
        )
        coupling.flows = nn.ModuleList([nn.Module(), affine, nn.Module()])
        self.flows = nn.ModuleList([coupling, LU(channels) if lu else Plain(channels), ActNorm(channels)])

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.tensor_split(2, dim=1)
        return (second, first) if self.inverted else (first, second)

    def joined(self, z1: Tensor, z2: Tensor) -> Tensor:
        return torch.cat((z2, z1) if self.inverted else (z1, z2), dim=1)

    def outputs(self, z1: Tensor) -> tuple[Tensor, Tensor]:
        """The shift and what multiplies in encoding."""
        network = self.flows[0].flows[1].param_map.net  # type: ignore[index, union-attr]
        param = network(z1)
        if self.scale_map is None:
            return param, torch.ones_like(param)
        shift, raw = param[:, 0::2], param[:, 1::2]
        maps = {
            "exp": (-raw).exp(),
            "sigmoid": torch.sigmoid(raw + 2),
            "sigmoid_inv": 1 / torch.sigmoid(raw + 2),
        }
        return shift, maps[self.scale_map]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        _, conv, actnorm = self.flows
        matrix = conv.matrix()
        z1, z2 = self.halves(mix((x - actnorm.t) * (-actnorm.s).exp(), matrix))
        shift, scale = self.outputs(z1)
        constant = matrix.det().abs().log() - actnorm.s.sum()
        log_det = x.shape[2] * x.shape[3] * constant + scale.log().sum((1, 2, 3))
        return self.joined(z1, (z2 - shift) * scale), log_det

    def undo(self, y: Tensor) -> Tensor:
        _, conv, actnorm = self.flows
        z1, z2 = self.halves(y)
        shift, scale = self.outputs(z1)
        x = mix(self.joined(z1, z2 / scale + shift), conv.matrix().inverse())
        return x * actnorm.s.exp() + actnorm.t


class ActNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.s = nn.Parameter(0.2 * torch.randn(1, channels, 1, 1))
        self.t = nn.Parameter(0.3 * torch.randn(1, channels, 1, 1))
        self.register_buffer("data_dep_init_done", torch.tensor(1.0))


class HiddenActNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.actNorm = ActNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.actNorm.s.exp() + self.actNorm.t


class Plain(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.W = nn.Parameter(random_matrix(channels))

    def matrix(self) -> Tensor:
        return self.W


class LU(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        p, lower, upper, log_s, sign = random_lu(channels)
        self.L, self.log_S, self.U = nn.Parameter(lower), nn.Parameter(log_s), nn.Parameter(upper)
        for name, buffer in {"P": p, "sign_S": sign, "eye": torch.eye(channels)}.items():
            self.register_buffer(name, buffer)

    def matrix(self) -> Tensor:
        diagonal = (self.sign_S * self.log_S.exp()).diag()
        return self.P @ (self.L.tril(-1) + self.eye) @ (self.U.triu(1) + diagonal)


class DiagGaussian(nn.Module):
    def __init__(self, shape: tuple[int, ...], logscale_factor: float) -> None:
        super().__init__()
        self.loc = nn.Parameter(0.3 * torch.randn(1, *shape))
        self.log_scale = nn.Parameter(0.2 * torch.randn(1, *shape))

    def mean_and_log_scale(self) -> tuple[Tensor, Tensor]:
        return self.loc, self.log_scale


class GlowBase(nn.Module):
    def __init__(self, shape: tuple[int, ...], logscale_factor: float) -> None:
        super().__init__()
        self.factor = logscale_factor
        for name in ("loc", "loc_logs", "log_scale", "log_scale_logs"):
            setattr(self, name, nn.Parameter(0.2 * torch.randn(1, shape[0], 1, 1)))

    def mean_and_log_scale(self) -> tuple[Tensor, Tensor]:
        return (
            self.loc * (self.factor * self.loc_logs).exp(),
            self.log_scale * (self.factor * self.log_scale_logs).exp(),
        )


class AffineGaussian(nn.Module):
    def __init__(self, shape: tuple[int, ...], logscale_factor: float) -> None:
        super().__init__()
        self.transform = nn.Module()
        self.transform.s = nn.Parameter(0.2 * torch.randn(1, shape[0], 1, 1))
        self.transform.t = nn.Parameter(0.3 * torch.randn(1, 1, *shape[1:]))

    def mean_and_log_scale(self) -> tuple[Tensor, Tensor]:
        return self.transform.t, self.transform.s


BASES = {"DiagGaussian": DiagGaussian, "GlowBase": GlowBase, "AffineGaussian": AffineGaussian}
