"""The lite fusion: all bands but RGB, as reflectance at 2.5 m. `sharpen` (20 and 60 m -> 10 m), then `detail` (2.5 m).

Both regress a band on its guides over a few coarse pixels (guided filter, He et al. 2013, with several guides). A
network adds a residual (DSen2, Lanaras et al. 2018), except at 60 m, where training data is scarce. Reach is finite.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.bundle import LatticeSpec, load_into
from pipeline.models.constants import constant
from pipeline.models.layout import moved
from pipeline.models.lite import ResidualBlock
from pipeline.models.phase_pattern import without_phase_pattern
from pipeline.models.resampling import folded, unfolded, upsample

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.models.bundle import Bundle

SYSTEM = "lite-fusion"
GUIDES = ("B04", "B03", "B02", "B08")  # measured at 10 m
BANDS_20M = ("B05", "B06", "B07", "B8A", "B11", "B12")
BANDS_60M = ("B01", "B09")
OUT_BANDS = ("B08", *BANDS_20M, *BANDS_60M)
REGRESSED = len(BANDS_60M)  # the last of OUT_BANDS, which get the regression only
FOLD = 4  # 10 m -> 2.5 m
FACTORS = {20: 2, 60: 6}  # native GSD -> pixels of 10 m
LATTICE = LatticeSpec(window_px=480, stride_px=384, ramp_px=48, margin_px=24)
NORMALISATION: dict[str, Any] = {
    "input": "sqrt",  # (sqrt(clip(rho, 0, max) + floor) - centre) / spread, as in lite
    "reflectance_max": 1.6,
    "input_floor": 0.01,
    "input_centre": 0.4,
    "input_spread": 0.2,
    "output_floor": 0.03,  # residuals are in units of (local reflectance + floor) * output_scale
    "output_scale": 0.1,
    "ridge": 1e-6,  # reflectance^2: detector noise of 1e-3, so that regressions on flat ground stay at zero
    "detail_limit": 3.0,  # limit of the detail that the regression adds, in local standard deviations of the band
    "window_px": 7,  # of the regression, in coarse px
}


def box_filter(x: Tensor, window_px: int) -> Tensor:
    """Return the moving mean of (B, C, h, w) over an odd window, cut off at the border.

    First along rows, then along columns: a row is cut off alike in all windows that it lies in.
    """
    half = window_px // 2
    x = x.contiguous(memory_format=torch.channels_last)  # of which a CPU averages many channels at once
    x = functional.avg_pool2d(x, (1, window_px), stride=1, padding=(0, half), count_include_pad=False)
    x = functional.avg_pool2d(x, (window_px, 1), stride=1, padding=(half, 0), count_include_pad=False)
    return x.contiguous()


def local_fit(bands: Tensor, guides: Tensor, window_px: int, ridge: float) -> tuple[Tensor, Tensor]:
    """Fit a ridge regression of bands (B, C, h, w) on guides (B, K, h, w) around each pixel.

    Return slopes (B, K, C, h, w), averaged over the 3x3 nearest windows (He et al. 2013, eq. 9, with a smaller mean),
    and the standard deviation of the bands around each pixel, in their unit, (B, C, h, w).
    """
    (b, k, h, w), c = guides.shape, bands.shape[1]
    g, t = guides.double(), bands.double()  # variances are small differences of large squares
    pairs = [(i, j) for i in range(k) for j in range(i + 1)]
    gg = torch.stack([g[:, i] * g[:, j] for i, j in pairs], dim=1)
    gt = (g[:, :, None] * t[:, None]).flatten(1, 2)
    means = box_filter(torch.cat([g, t, gg, gt, t * t], dim=1), window_px)
    mean_g, mean_t, mean_gg, mean_gt, mean_tt = means.split([k, c, len(pairs), k * c, c], dim=1)
    covariances = {(i, j): mean_gg[:, n] - mean_g[:, i] * mean_g[:, j] for n, (i, j) in enumerate(pairs)}
    gt = mean_gt.reshape(b, k, c, h, w) - mean_g[:, :, None] * mean_t[:, None]
    slopes = ridge_solved(covariances, gt, ridge).to(guides.dtype)
    spread = (mean_tt - mean_t**2).clamp_min(0).sqrt().to(bands.dtype)
    return box_filter(slopes.reshape(b, k * c, h, w), 3).reshape(b, k, c, h, w), spread


def ridge_solved(gg: Mapping[tuple[int, int], Tensor], gt: Tensor, ridge: float) -> Tensor:
    """Solve (gg + ridge) x = gt at each pixel: gt (B, K, C, h, w) -> (B, K, C, h, w).

    gg is symmetric; gg[i, j] (B, h, w) are its elements with j <= i.

    By L D L^T (Golub and Van Loan 2013, section 4.1.2), written out for the few guides, for all pixels at once. A
    batched Cholesky solver would wait for a GPU to see whether it failed, and rounds as its library likes.
    """
    k = gt.shape[1]
    pivots: list[Tensor] = []
    lower: list[list[Tensor]] = []
    for i in range(k):
        row: list[Tensor] = []
        scaled: list[Tensor] = []  # row of L D
        for j in range(i):
            rest = gg[i, j]
            for m in range(j):
                rest = rest - scaled[m] * lower[j][m]
            scaled.append(rest)
            row.append(rest / pivots[j])
        pivot = gg[i, i] + ridge
        for m in range(i):
            pivot = pivot - scaled[m] * row[m]
        pivots.append(pivot)
        lower.append(row)
    forward: list[Tensor] = []
    for i in range(k):
        rest = gt[:, i]
        for m in range(i):
            rest = rest - lower[i][m][:, None] * forward[m]
        forward.append(rest)
    found: list[Tensor] = [rest / pivot[:, None] for rest, pivot in zip(forward, pivots, strict=True)]
    for i in reversed(range(k)):
        for m in range(i + 1, k):
            found[i] = found[i] - lower[m][i][:, None] * found[m]
    return torch.stack(found, dim=1)


def regression_detail(
    bands: Tensor,
    guides: Tensor,
    scale: int,
    window_px: int,
    ridge: float,
    limit: float = math.inf,
    smooth: Tensor | None = None,
) -> Tensor:
    """Predict detail (B, C, scale*h, scale*w) of bands (B, C, h, w) from guides (B, K, scale*h, scale*w).

    `smooth` are the guides' block means, upsampled, if they are at hand.

    Detail is limited to `limit` times the band's local standard deviation plus the detector noise sqrt(ridge). A
    regression over a few coarse pixels can otherwise extrapolate far on the contrast of the fine guides.
    """
    low = functional.avg_pool2d(guides, scale)
    slopes, spread = local_fit(bands, low, window_px, ridge)
    b, k, c = slopes.shape[:3]
    fine = functional.interpolate(slopes.flatten(1, 2), scale_factor=scale, mode="bilinear")
    fine = fine.reshape(b, k, c, *fine.shape[2:])
    detail = guides - (upsample(low, scale) if smooth is None else smooth)
    total = fine[:, 0] * detail[:, :1]
    for index in range(1, k):
        total = torch.addcmul(total, fine[:, index], detail[:, index, None])
    if math.isinf(limit):
        return total
    bound = limit * (functional.interpolate(spread, scale_factor=scale, mode="bilinear") + math.sqrt(ridge))
    return torch.clamp(total, -bound, bound)


class Trunk(nn.Module):
    """Convolution, residual blocks, convolution. The output starts at zero."""

    def __init__(self, channels_in: int, channels_out: int, width: int, blocks: int) -> None:
        super().__init__()
        self.entry = nn.Conv2d(channels_in, width, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))
        self.exit = nn.Conv2d(width, channels_out, 3, padding=1)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.get_parameter("bias"))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, h, w) -> (B, channels_out, h, w)."""
        h = self.entry(x).float()
        for block in self.blocks:
            h = block(h)
        out: Tensor = self.exit(functional.silu(h)).float()
        return out


class FusionNetwork(nn.Module):
    """The networks of both stages. `sharpen` is guided by the measured 10 m bands, `detail` by super-resolved RGB.

    `mask` is 1 for bands that the product has and 0 for bands that it lacks.
    """

    def __init__(
        self,
        sharpen_width: int = 48,
        sharpen_blocks: int = 5,
        detail_width: int = 64,
        detail_blocks: int = 5,
        normalisation: Mapping[str, Any] = NORMALISATION,
    ) -> None:
        super().__init__()
        self.normalisation = dict(normalisation)
        coarse, out = len(BANDS_20M) + len(BANDS_60M), len(OUT_BANDS)
        self.sharpen_trunk = Trunk(len(GUIDES) + 3 * coarse, coarse - REGRESSED, sharpen_width, sharpen_blocks)
        folded = FOLD * FOLD
        self.detail_trunk = Trunk(
            3 + 2 * out + (3 + out) * folded, (out - REGRESSED) * folded, detail_width, detail_blocks
        )

    def compand(self, x: Tensor) -> Tensor:
        """Map reflectance to network range."""
        n = self.normalisation
        root: Tensor = (x.clamp(0, n["reflectance_max"]) + n["input_floor"]).sqrt()
        normalised: Tensor = (root - n["input_centre"]) / n["input_spread"]
        return normalised

    def unit(self, x: Tensor) -> Tensor:
        """Return the reflectance of one unit of detail."""
        n = self.normalisation
        unit: Tensor = (x.clamp(0, n["reflectance_max"]) + n["output_floor"]) * n["output_scale"]
        return unit

    def regression(self, bands: Tensor, guides: Tensor, scale: int, smooth: Tensor | None = None) -> Tensor:
        """Call `regression_detail` with this network's window, ridge and limit."""
        n = self.normalisation
        return regression_detail(bands, guides, scale, n["window_px"], n["ridge"], n["detail_limit"], smooth)

    def sharpen(self, guides: Tensor, ms20: Tensor, ms60: Tensor, mask: Tensor) -> Tensor:
        """Guides (B, 4, h, w), ms20 (B, 6, h/2, w/2), ms60 (B, 2, h/6, w/6), mask (B, 8, 1, 1) -> (B, 8, h, w)."""
        parts = [(ms, FACTORS[gsd]) for gsd, ms in ((20, ms20), (60, ms60))]
        up = torch.cat([upsample(ms, scale) for ms, scale in parts], dim=1) * mask
        detail = torch.cat([self.regression(ms, guides, scale) for ms, scale in parts], dim=1) * mask
        base, unit = up + detail, self.unit(up)
        planes = mask.expand(-1, -1, *guides.shape[2:])
        inputs = [self.compand(guides), self.compand(base) * mask, detail / unit, planes]
        correction = unit[:, :-REGRESSED] * mask[:, :-REGRESSED] * self.sharpen_trunk(torch.cat(inputs, dim=1))
        return torch.cat([base[:, :-REGRESSED] + correction, base[:, -REGRESSED:]], dim=1)

    def interpolated(self, bands: Tensor, mask: Tensor) -> Tensor:
        """Return bands (B, 9, h, w) at 10 m, interpolated to (B, 9, 4h, 4w)."""
        return upsample(bands, FOLD) * mask

    def detail(self, rgb_sr: Tensor, bands: Tensor, mask: Tensor, up: Tensor | None = None) -> Tensor:
        """Return bands at 2.5 m, (B, 9, 4h, 4w).

        rgb_sr (B, 3, 4h, 4w), bands (B, 9, h, w) at 10 m, mask (B, 9, 1, 1); `up` are the bands `interpolated`, if they
        are at hand.
        """
        up = self.interpolated(bands, mask) if up is None else up
        rgb_low, bands = functional.avg_pool2d(rgb_sr, FOLD), bands * mask
        rgb_up = upsample(rgb_low, FOLD)
        detail = self.regression(bands, rgb_sr, FOLD, rgb_up) * mask
        unit = self.unit(up)
        inputs = [
            self.compand(rgb_low),
            self.compand(bands) * mask,
            mask.expand(-1, -1, *bands.shape[2:]),
            folded((rgb_sr - rgb_up) / self.unit(rgb_up), FOLD),
            folded(detail / unit, FOLD),
        ]
        learned = unfolded(self.detail_trunk(torch.cat(inputs, dim=1)), FOLD)
        base, correction = up + detail, unit[:, :-REGRESSED] * mask[:, :-REGRESSED] * learned
        return torch.cat([base[:, :-REGRESSED] + correction, base[:, -REGRESSED:]], dim=1)


class LiteFusion:
    """All bands beyond RGB at 2.5 m, from measured bands and super-resolved RGB."""

    out_bands: tuple[str, ...] = OUT_BANDS

    def __init__(self, network: FusionNetwork, bundle: Bundle) -> None:
        self.network = network.eval()
        self.bundle = bundle

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> LiteFusion:
        """Load the networks of a bundle on the CPU. Raises BundleError if the tensors do not fit."""
        network = FusionNetwork(**bundle.architecture, normalisation=bundle.normalisation)
        load_into(network, bundle)
        return cls(network.requires_grad_(False), bundle)

    def to(self, device: torch.device) -> LiteFusion:
        """Move the weights to `device` and return self."""
        moved(self.network, device)
        return self

    @torch.inference_mode()
    def predict(self, rgb_sr: Tensor, ms: Mapping[int, Tensor], present: Sequence[str]) -> Tensor:
        """Return reflectance (B, 9, 4h, 4w) of `OUT_BANDS` from rgb_sr (B, 3, 4h, 4w) and measured bands by GSD.

        ms[10] (B, 4, h, w), ms[20] (B, 6, h/2, w/2), ms[60] (B, 2, h/6, w/6) are reflectance; h and w are multiples of
        6. Bands not `present` must be zero and are zero in the output. ms[20] and ms[60] may be missing.
        """
        guides = ms[10]
        b, _, h, w = guides.shape
        held = constant((name in present for name in OUT_BANDS), guides)
        mask = held[None, :, None, None].expand(b, -1, 1, 1)
        ms20 = ms.get(20, guides.new_zeros(b, len(BANDS_20M), h // 2, w // 2))
        ms60 = ms.get(60, guides.new_zeros(b, len(BANDS_60M), h // 6, w // 6))
        sharp = self.network.sharpen(guides, ms20, ms60, mask[:, 1:])
        bands = torch.cat([guides[:, 3:4], sharp], dim=1)
        up = self.network.interpolated(bands, mask)
        return without_phase_pattern(self.network.detail(rgb_sr, bands, mask, up), up, FOLD)
