"""DiffFuSR's super-resolution (arXiv 2506.11764): RGB reflectance from 10 m to 2.5 m by the published networks.

Tensor names are those of the released checkpoints. GroupNorm and attention span the window, so windows must be whole
and lie on the absolute lattice. The degradation vector is computed per scene, not per window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.models.bundle import Bundle, BundleError, LatticeSpec, load_into
from pipeline.models.constants import constant
from pipeline.models.degradation import DegradationEncoder
from pipeline.models.diffusion import SAMPLERS, cosine_alpha_bar, levels
from pipeline.models.layout import moved
from pipeline.models.rrdb import SpatialEncoder
from pipeline.models.unet import UNet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


SYSTEM = "difffusr-sr"
SCALE = 4  # 10 m -> 2.5 m
RGB_BANDS = ("B04", "B03", "B02")
STATE_KEY = "degradation"  # the only entry of a scene's state: v, 256 numbers
# Window 1200 m, stride 960 m, ramp 120 m, margin 60 m; 480 px is a multiple of the 32 px that the U-Net needs.
LATTICE = LatticeSpec(window_px=480, stride_px=384, ramp_px=48, margin_px=24)
ARCHITECTURE: dict[str, Any] = {
    "base": 64,
    "mults": [1, 2, 2, 4, 8],
    "res_blocks": 5,
    "fold": 2,
    "groups": 32,
    "attention_strides": [16],
    "block2_norm": False,
    "features": 64,
    "growth": 32,
    "encoder_blocks": 23,
    "degradation_base": 64,
}
# Network range n = 2 rho - 1 for rho in [0, 1], as published; ground above `bright_reflectance` saturates it.
NORMALISATION: dict[str, Any] = {"kind": "unit", "bright_reflectance": 0.95}
# As published: 20 DDIM steps at t = 950, 900, ..., 0 of 1000. The last step maps its input to itself. With
# `denoise_last: true` it returns x0 instead, which removes the remaining noise of sd 0.0032 reflectance.
SAMPLER: dict[str, Any] = {"name": "ddim", "steps": 20, "spacing": "published", "denoise_last": False}
_X0_RANGE = (-1.0, 1.0)  # every x0 is clamped to the network range, as published
_STATE_BATCH = 16  # windows per pass of the degradation encoder; limits memory, does not change values


class Networks(nn.Module):
    """The three networks, named as in the released checkpoints: `ema`, `encoder`, `E.encoder_q`."""

    def __init__(
        self,
        base: int,
        mults: Sequence[int],
        res_blocks: int,
        fold: int,
        groups: int,
        attention_strides: Sequence[int],
        block2_norm: bool,
        features: int,
        growth: int,
        encoder_blocks: int,
        degradation_base: int,
    ) -> None:
        super().__init__()
        bands = len(RGB_BANDS)
        self.ema = UNet(
            bands,
            base,
            mults,
            res_blocks,
            fold,
            groups,
            attention_strides,
            features,
            4 * degradation_base,
            block2_norm,
        )
        self.encoder = SpatialEncoder(bands, features, growth, encoder_blocks)
        self.E = nn.ModuleDict({"encoder_q": DegradationEncoder(bands, degradation_base)})

    def degradation(self, lr: Tensor) -> Tensor:
        """Return degradation vectors (B, 4 * degradation_base) of windows (B, 3, h, w) in network range."""
        vector: Tensor = self.E["encoder_q"](lr)
        return vector


class DiffFuSR:
    """Super-resolution of B04, B03, B02 by the published networks."""

    def __init__(self, networks: Networks, bundle: Bundle) -> None:
        self.networks = networks.eval().requires_grad_(False)
        self.bundle = bundle
        kind, name = bundle.normalisation.get("kind"), str(bundle.sampler.get("name"))
        if kind != "unit" or name not in SAMPLERS:
            msg = f"weights {bundle.path}: normalisation {kind!r} and sampler {name!r}; expected 'unit' and one of "
            raise BundleError(msg + ", ".join(SAMPLERS))
        spacing = bundle.sampler["spacing"]
        self.sampler = SAMPLERS[name]
        self.levels = levels(bundle.sampler["steps"], cosine_alpha_bar(), spacing)
        self.denoise_last: bool = bundle.sampler.get("denoise_last", spacing != "published")

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> DiffFuSR:
        """Load the networks of a bundle on the CPU, in eval mode. Raises BundleError if the tensors do not fit."""
        with torch.device("meta"):  # skips random initial weights, which load_into would overwrite
            networks = Networks(**bundle.architecture)
        networks.to_empty(device="cpu")
        load_into(networks, bundle)
        return cls(networks, bundle)

    def to(self, device: torch.device | str) -> DiffFuSR:
        """Move the weights to `device` and return self."""
        moved(self.networks, device)
        return self

    @torch.inference_mode()
    def scene_state(self, windows: Tensor) -> dict[str, list[float]]:
        """Average the degradation vector over windows of a scene, (K, 3, 64, 64) reflectance without nodata.

        Raises ValueError if there is no window or a window holds NaN.
        """
        if not len(windows) or not bool(torch.isfinite(windows).all()):
            msg = f"{len(windows)} windows for the scene's degradation vector; expected at least 1, free of NaN"
            raise ValueError(msg)
        device = next(self.networks.parameters()).device
        vectors = [
            self.networks.degradation(to_network(part.to(device))) for part in torch.split(windows, _STATE_BATCH)
        ]
        return {STATE_KEY: torch.cat(vectors).double().mean(0).tolist()}

    @torch.inference_mode()
    def sample(self, lr: Tensor, noise: Tensor, state: Mapping[str, Sequence[float]] | None) -> Tensor:
        """Sample reflectance (B, 3, 4h, 4w) from (B, 3, h, w) and standard normal `noise` of the output's shape.

        Raises ValueError unless h and w are multiples of 8, and if the scene's state is missing.
        """
        if state is None or STATE_KEY not in state:
            msg = f"no scene state given; expected {STATE_KEY!r}, made once per scene by scene_state()"
            raise ValueError(msg)
        n = to_network(lr)
        features: Tensor = self.networks.encoder(n)
        vector = constant(state[STATE_KEY], n).expand(len(n), -1)

        def denoise(x: Tensor, level: float) -> Tensor:
            x0: Tensor = self.networks.ema(x, x.new_full((len(x), 1), level), features, vector)
            return x0

        image: Tensor = self.sampler(denoise, noise, self.levels, _X0_RANGE, self.denoise_last)
        return to_reflectance(image)


def to_network(reflectance: Tensor) -> Tensor:
    """Map reflectance to network range [-1, 1]; values outside [0, 1] are clipped, as in the 8-bit training data."""
    return reflectance.clamp(0.0, 1.0) * 2 - 1


def to_reflectance(n: Tensor) -> Tensor:
    """Map network range to reflectance, without clipping."""
    return (n + 1) / 2


def difffusr_bundle(
    architecture: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    licence: str = "",
    sampler: Mapping[str, Any] | None = None,
) -> Bundle:
    """Return this system's bundle for `save_bundle`. The defaults are the published values."""
    return Bundle(
        system=SYSTEM,
        architecture={**ARCHITECTURE, **(architecture or {})},
        in_bands=RGB_BANDS,
        out_bands=RGB_BANDS,
        scale=SCALE,
        lattice=LATTICE,
        normalisation=dict(NORMALISATION),
        sampler=dict(SAMPLER if sampler is None else sampler),
        provenance=dict(provenance or {}),
        licence=licence,
    )
