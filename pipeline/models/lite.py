"""The lite super-resolver: reflectance x2, x4 or x8 by a regression and a diffusion of its residual.

After CorrDiff (Mardani et al., arXiv 2309.15214): an encoder on the 10 m grid predicts the conditional mean and the
spread around it, and a denoiser samples the standardised residual. All convolutions are 3x3, so the reach is finite.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.bundle import LatticeSpec, load_into
from pipeline.models.diffusion import SAMPLERS, cosine_alpha_bar, levels
from pipeline.models.layout import moved
from pipeline.models.phase_pattern import without_phase_pattern
from pipeline.models.resampling import folded, unfolded, upsample

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.models.bundle import Bundle

SYSTEM = "lite-sr"
SCALE = 4  # of the shipped weights, 10 m -> 2.5 m
RGB_BANDS = ("B04", "B03", "B02")
# Window 1200 m, stride 960 m, ramp 120 m, margin 60 m (6 px of 10 m).
LATTICE = LatticeSpec(window_px=480, stride_px=384, ramp_px=48, margin_px=24)
BACK_PROJECTIONS = 3  # of `finer`
LOG_SPREAD_RANGE = (-6.0, 1.0)  # of the residual, in output units: 0.25 % to 270 % of the local reflectance
NORMALISATION: dict[str, Any] = {
    # Network input: (sqrt(clip(rho, 0, max) + floor) - centre) / spread; resolves dark water, never saturates on snow
    "input": "sqrt",
    "reflectance_max": 1.6,
    "input_floor": 0.01,
    "input_centre": 0.35,
    "input_spread": 0.15,
    # Outputs are in units of (local reflectance + floor), so that one network works on dark and on bright ground.
    "output_floor": 0.03,
}


def finer(image: Tensor, scale: int) -> Tensor:
    """Interpolate (B, C, h, w) to (B, C, scale*h, scale*w) so that block means are the image, to 1 % of its contrast.

    Bicubic, then iterative back-projection (Irani and Peleg 1991): bicubic alone would blur what a network has made.
    """
    up = upsample(image, scale)
    for _ in range(BACK_PROJECTIONS):
        up = up + upsample(image - functional.avg_pool2d(up, scale), scale)
    return up


def lattice_of_scale(scale: int) -> LatticeSpec:
    """Return the lattice of a network from 10 m: in px of 2.5 m, or of the output of a scale above 4, same ground."""
    times = max(1, scale // SCALE)
    sides = (LATTICE.window_px, LATTICE.stride_px, LATTICE.ramp_px, LATTICE.margin_px)
    return LatticeSpec(*(times * side for side in sides))


class ResidualBlock(nn.Module):
    """x + conv(SiLU(conv(x) + shift)), 3x3, `width` channels. The last convolution starts near zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(0.1)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """(B, width, h, w) -> the same; `shift` (B, width, 1, 1) encodes the noise level. The sum stays in float32."""
        h = self.first(x)
        if shift is not None:
            h = h + shift
        out: Tensor = x + self.second(functional.silu(h))
        return out


class Encoder(nn.Module):
    """Features (B, width, h, w) of a normalised image (B, bands, h, w): conv, `blocks` residual blocks, long skip."""

    def __init__(self, width: int, blocks: int, bands: int) -> None:
        super().__init__()
        self.entry = nn.Conv2d(bands, width, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))
        self.exit = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, bands, h, w) -> (B, width, h, w)."""
        entry = self.entry(x).float()
        h = entry
        for block in self.blocks:
            h = block(h)
        out: Tensor = entry + self.exit(h)
        return out


class LevelEmbedding(nn.Module):
    """One additive shift per block from the continuous noise level sqrt(alpha_bar) in [0, 1]."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.pi * 2.0 ** torch.arange(6), persistent=False)
        self.hidden = nn.Linear(12, width)
        self.shifts = nn.Linear(width, width * blocks)
        self.count = blocks

    def forward(self, level: Tensor) -> tuple[Tensor, ...]:
        """(B,) -> `blocks` tensors (B, width, 1, 1)."""
        angle = level[:, None] * self.get_buffer("frequencies") / 2
        shifts = self.shifts(functional.silu(self.hidden(torch.cat([angle.sin(), angle.cos()], dim=1))))
        return tuple(shifts[:, :, None, None].chunk(self.count, dim=1))


class Denoiser(nn.Module):
    """Estimate of x0, the standardised residual, from its noisy form. It runs on the coarse grid, phases as channels.

    The output is level * x + sqrt(1 - level^2) * network: the best linear estimate plus a bounded correction
    (preconditioning of Karras et al., arXiv 2206.00364, for a variance-preserving process of unit data variance).
    """

    def __init__(self, features: int, width: int, blocks: int, bands: int, scale: int) -> None:
        super().__init__()
        self.scale, folded = scale, bands * scale**2
        self.entry = nn.Conv2d(folded + features, width, 3, padding=1)
        self.level = LevelEmbedding(width, blocks)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))
        self.exit = nn.Conv2d(width, folded, 3, padding=1)
        nn.init.zeros_(self.exit.weight)

    def forward(self, noisy: Tensor, level: Tensor, features: Tensor) -> Tensor:
        """(B, bands, scale*h, scale*w) at `level` (B,) with features (B, F, h, w) -> x0, of the first shape."""
        h = self.entry(torch.cat([folded(noisy, self.scale), features], dim=1)).float()
        for block, shift in zip(self.blocks, self.level(level), strict=True):
            h = block(h, shift)
        correction = unfolded(self.exit(functional.silu(h)).float(), self.scale)
        a = level[:, None, None, None]
        return a * noisy + (1 - a * a).clamp_min(0).sqrt() * correction


class LiteNetwork(nn.Module):
    """Encoder, heads for mean and spread, and a denoiser of (truth - mean) / spread, of `bands` x `scale`."""

    def __init__(
        self,
        width: int = 48,
        blocks: int = 14,
        denoiser_width: int = 64,
        denoiser_blocks: int = 5,
        normalisation: Mapping[str, Any] = NORMALISATION,
        *,
        bands: int = len(RGB_BANDS),
        scale: int = SCALE,
    ) -> None:
        super().__init__()
        self.normalisation, self.scale = dict(normalisation), scale
        self.encoder = Encoder(width, blocks, bands)
        self.mean_head = nn.Conv2d(width, bands * scale**2, 3, padding=1)
        self.spread_head = nn.Conv2d(width, bands, 3, padding=1)
        self.denoiser = Denoiser(width, denoiser_width, denoiser_blocks, bands, scale)
        nn.init.zeros_(self.mean_head.weight)
        nn.init.zeros_(self.spread_head.weight)
        nn.init.constant_(self.spread_head.get_parameter("bias"), math.log(0.15))

    def features(self, lr: Tensor) -> Tensor:
        """Reflectance (B, bands, h, w) -> features (B, width, h, w)."""
        n = self.normalisation
        clipped = lr.clamp(0.0, n["reflectance_max"])
        normalised: Tensor = ((clipped + n["input_floor"]).sqrt() - n["input_centre"]) / n["input_spread"]
        features: Tensor = self.encoder(normalised)
        return features

    def unit(self, lr: Tensor) -> Tensor:
        """Return the reflectance of one output unit, (B, bands, h, w) -> (B, bands, scale*h, scale*w)."""
        n = self.normalisation
        smooth = functional.interpolate(lr.clamp(0.0, n["reflectance_max"]), scale_factor=self.scale, mode="bilinear")
        unit: Tensor = smooth + n["output_floor"]
        return unit

    def mean(self, smooth: Tensor, features: Tensor, unit: Tensor) -> Tensor:
        """Return the conditional mean in reflectance, (B, bands, scale*h, scale*w); `smooth` is the upsampled input."""
        return smooth + unit * unfolded(self.mean_head(features).float(), self.scale)

    def spread(self, features: Tensor, unit: Tensor) -> Tensor:
        """Return the sd of the truth around the mean in reflectance, interpolated, (B, bands, scale*h, scale*w)."""
        log_sd = self.spread_head(features).float().clamp(*LOG_SPREAD_RANGE)
        return unit * functional.interpolate(log_sd.exp(), scale_factor=self.scale, mode="bilinear")


class LiteSuperResolver:
    """Super-resolution of the bundle's bands by `LiteNetwork`."""

    def __init__(self, network: LiteNetwork, bundle: Bundle) -> None:
        self.network = network.eval()
        self.bundle = bundle
        self.sampler = SAMPLERS[bundle.sampler["name"]]
        spacing = bundle.sampler.get("spacing", "trailing")
        self.levels = levels(bundle.sampler["steps"], cosine_alpha_bar(), spacing)

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> LiteSuperResolver:
        """Load the network of a bundle on the CPU. Raises BundleError if the tensors do not fit."""
        network = LiteNetwork(
            **bundle.architecture,
            normalisation=bundle.normalisation,
            bands=len(bundle.in_bands),
            scale=bundle.scale,
        )
        load_into(network, bundle)
        return cls(network.requires_grad_(False), bundle)

    def to(self, device: torch.device) -> LiteSuperResolver:
        """Move the weights to `device` and return self."""
        moved(self.network, device)
        return self

    def sample(self, lr: Tensor, noise: Tensor) -> Tensor:
        """Draw one sample of reflectance (B, bands, scale*h, scale*w) from standard normal `noise` of that shape."""
        network = self.network
        features, unit, smooth = network.features(lr), network.unit(lr), upsample(lr, network.scale)
        mean = network.mean(smooth, features, unit)

        def denoise(x: Tensor, level: float) -> Tensor:
            x0: Tensor = network.denoiser(x, x.new_full((len(x),), level), features)
            return x0

        residual = self.sampler(denoise, noise, self.levels)
        image = mean + network.spread(features, unit) * residual
        return without_phase_pattern(image, smooth, network.scale)

    def mean(self, lr: Tensor) -> Tensor:
        """Return the regression's estimate, without diffusion, (B, bands, h, w) -> (B, bands, scale*h, scale*w)."""
        network = self.network
        smooth = upsample(lr, network.scale)
        image = network.mean(smooth, network.features(lr), network.unit(lr))
        return without_phase_pattern(image, smooth, network.scale)
