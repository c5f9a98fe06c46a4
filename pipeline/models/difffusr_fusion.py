"""DiffFuSR's fusion (arXiv 2506.11764): nine bands at 2.5 m, guided by super-resolved RGB.

It has one network of residual dense blocks with attention per native GSD; tensor names are those of the released
checkpoints. Channel attention pools over the window, so windows must be whole and lie on the absolute lattice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.bundle import Bundle, BundleError, load_into
from pipeline.models.constants import constant
from pipeline.models.difffusr import LATTICE, RGB_BANDS, SCALE
from pipeline.models.layout import moved
from pipeline.models.rrdb import conv3x3, leaky, rrdb_stack

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SYSTEM = "difffusr-fusion"
# Input channels by native GSD in metres. Each network reads its own bands and all finer ones, in this order.
INPUTS: dict[int, tuple[str, ...]] = {
    10: ("B04", "B03", "B02", "B08"),
    20: ("B05", "B06", "B07", "B8A", "B11", "B12"),
    60: ("B01", "B09"),
}
# The 10 m network also returns B04 B03 B02. Super-resolution gives those, so only B08 is kept.
OUT_BANDS = ("B08", *INPUTS[20], *INPUTS[60])
ARCHITECTURE: dict[str, Any] = {"channels": 64, "growth": 32, "blocks": 5, "reduction": 4}
# Mean and standard deviation of reflectance over the authors' training tiles (released configuration).
_STATISTICS: dict[str, tuple[float, float]] = {
    "B04": (0.1318, 0.1677),
    "B03": (0.1162, 0.1614),
    "B02": (0.0906, 0.1672),
    "B08": (0.2588, 0.1515),
    "B05": (0.1619, 0.1698),
    "B06": (0.2275, 0.1513),
    "B07": (0.2500, 0.1490),
    "B8A": (0.2667, 0.1461),
    "B11": (0.2461, 0.1472),
    "B12": (0.1874, 0.1418),
    "B01": (0.0769, 0.1708),
    "B09": (0.2684, 0.2365),
}


class ChannelAttention(nn.Module):
    """Channel weights from the window's mean and maximum (Woo et al. 2018, eq. 2): (B, C, H, W) to (B, C, 1, 1)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Weights in (0, 1)."""
        pooled = (functional.adaptive_avg_pool2d(x, 1), functional.adaptive_max_pool2d(x, 1))
        mean, peak = (self.fc2(functional.relu(self.fc1(part))) for part in pooled)
        return torch.sigmoid(mean + peak)


class SpatialAttention(nn.Module):
    """Pixel weights from mean and maximum over channels (Woo et al. 2018, eq. 3): (B, C, H, W) to (B, 1, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Weights in (0, 1)."""
        pooled = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), dim=1)
        return torch.sigmoid(self.conv1(pooled))


class FusionNet(nn.Module):
    """Network of one native GSD: guide (B, 3, H, W) and bands (B, bands_in, H, W) to (B, bands_out, H, W), z-scores."""

    def __init__(self, bands_in: int, bands_out: int, channels: int, growth: int, blocks: int, reduction: int) -> None:
        super().__init__()
        self.rgb_conv_first = conv3x3(len(RGB_BANDS), channels)
        self.ms_conv_first = conv3x3(bands_in, channels)
        self.rgb_rrdb = rrdb_stack(blocks, channels, growth, "RDB")
        self.ms_rrdb = rrdb_stack(blocks, channels, growth, "RDB")
        self.rgb_channel_attention = ChannelAttention(channels, reduction)
        self.ms_channel_attention = ChannelAttention(channels, reduction)
        self.spatial_attention_rgb = SpatialAttention()
        self.spatial_attention_ms = SpatialAttention()
        self.fusion_conv = conv3x3(2 * channels, channels)
        self.fusion_rrdb = rrdb_stack(blocks, channels, growth, "RDB")
        self.upconv1 = conv3x3(channels, channels)  # released names; nothing is upsampled here
        self.upconv2 = conv3x3(channels, channels)
        self.HRconv = conv3x3(channels, channels)
        self.conv_last = conv3x3(channels, bands_out)

    def forward(self, rgb: Tensor, ms: Tensor) -> Tensor:
        """Return the fused bands as z-scores."""
        guide = self.rgb_rrdb(leaky(self.rgb_conv_first(rgb)))
        bands = self.ms_rrdb(leaky(self.ms_conv_first(ms)))
        guide = guide * self.rgb_channel_attention(guide)
        bands = bands * self.ms_channel_attention(bands)
        guide = guide * self.spatial_attention_rgb(guide)
        bands = bands * self.spatial_attention_ms(bands)
        x = self.fusion_rrdb(leaky(self.fusion_conv(torch.cat((bands, guide), dim=1))))
        for conv in (self.upconv1, self.upconv2, self.HRconv):
            x = leaky(conv(x))
        fused: Tensor = self.conv_last(x)
        return fused


class FusionNetworks(nn.Module):
    """The three networks, named as in the released checkpoints."""

    def __init__(self, channels: int, growth: int, blocks: int, reduction: int) -> None:
        super().__init__()
        seen = 0
        for gsd, bands in INPUTS.items():
            seen += len(bands)
            self.add_module(name_of(gsd), FusionNet(seen, len(bands), channels, growth, blocks, reduction))


def name_of(gsd_m: int) -> str:
    """Return the checkpoint name of the network for bands of native `gsd_m` (10, 20 or 60)."""
    return f"rrdb_block_{gsd_m}_fusion"


class DiffFuSRFusion:
    """Nine bands at 2.5 m by the published fusion networks."""

    out_bands = OUT_BANDS

    def __init__(self, networks: FusionNetworks, bundle: Bundle) -> None:
        self.networks = networks.eval().requires_grad_(False)
        self.bundle = bundle
        known = bundle.normalisation
        lacking = [b for names in INPUTS.values() for b in names if b not in known.get("mean", {})]
        if known.get("kind") != "zscore" or lacking:
            msg = f"weights {bundle.path}: normalisation {known.get('kind')!r} without mean of {lacking[:3]}; "
            raise BundleError(msg + "expected 'zscore' with mean and sd of every band")

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> DiffFuSRFusion:
        """Load the networks of a bundle on the CPU, in eval mode. Raises BundleError if the tensors do not fit."""
        with torch.device("meta"):  # skips random initial weights, which load_into would overwrite
            networks = FusionNetworks(**bundle.architecture)
        networks.to_empty(device="cpu")
        load_into(networks, bundle)
        return cls(networks, bundle)

    def to(self, device: torch.device | str) -> DiffFuSRFusion:
        """Move the weights to `device` and return self."""
        moved(self.networks, device)
        return self

    @torch.inference_mode()
    def predict(self, rgb_sr: Tensor, ms: Mapping[int, Tensor], present: tuple[str, ...]) -> Tensor:
        """Return reflectance (B, 9, 4h, 4w) of `out_bands` from RGB (B, 3, 4h, 4w) and native rasters by GSD in metres.

        ms[10] (B, 4, h, w), ms[20] (B, 6, h/2, w/2), ms[60] (B, 2, h/6, w/6) are reflectance, channels as in INPUTS.
        Bands not `present` are replaced by their mean. A network is skipped if none of the bands it gives is present;
        its output is then zero.
        """
        size = rgb_sr.shape[-2:]
        guide, seen, fused = self._z_scores(rgb_sr, RGB_BANDS), rgb_sr[:, :0], []
        for gsd, bands in INPUTS.items():
            native = self._z_scores(ms[gsd], bands)
            native = native * constant((band in present for band in bands), native)[:, None, None]
            grown = functional.interpolate(native, size=size, mode="bilinear", align_corners=False)
            seen = torch.cat((seen, grown), dim=1)
            keep = [i for i, band in enumerate(bands) if band in OUT_BANDS]
            if any(bands[i] in present for i in keep):
                network = self.networks.get_submodule(name_of(gsd))
                fused.append(self._reflectance(network(guide, seen), bands)[:, keep])
            else:
                fused.append(rgb_sr.new_zeros(len(rgb_sr), len(keep), *size))
        return torch.cat(fused, dim=1)

    def _z_scores(self, rho: Tensor, bands: Sequence[str]) -> Tensor:
        mean, sd = self._statistics(rho, bands)
        return (rho - mean) / sd

    def _reflectance(self, z: Tensor, bands: Sequence[str]) -> Tensor:
        mean, sd = self._statistics(z, bands)
        return z * sd + mean

    def _statistics(self, like: Tensor, bands: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of reflectance, each (bands, 1, 1)."""
        known = self.bundle.normalisation
        mean, sd = (constant((known[key][band] for band in bands), like)[:, None, None] for key in ("mean", "sd"))
        return mean, sd


def difffusr_fusion_bundle(
    architecture: Mapping[str, Any] | None = None, provenance: Mapping[str, Any] | None = None, licence: str = ""
) -> Bundle:
    """Return this system's bundle for `save_bundle`. The defaults are the published values."""
    return Bundle(
        system=SYSTEM,
        architecture={**ARCHITECTURE, **(architecture or {})},
        in_bands=tuple(band for bands in INPUTS.values() for band in bands),
        out_bands=OUT_BANDS,
        scale=SCALE,
        lattice=LATTICE,
        normalisation={
            "kind": "zscore",
            "mean": {band: mean for band, (mean, _) in _STATISTICS.items()},
            "sd": {band: sd for band, (_, sd) in _STATISTICS.items()},
        },
        provenance=dict(provenance or {}),
        licence=licence,
    )
