"""The networks of WaveDiffUR's x2 level: what they read, what they estimate, and in which units.

Images are reflectance (B, C, H, W). Bands of the output (B, C, 2H, 2W) lie on the input's grid; coarse bands on (H/2,
W/2). H and W are even.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models import cross_scale, score_unet
from pipeline.models.cross_scale import DETAILS, CspEncoder, DetailRestoration
from pipeline.models.score_unet import ScoreUNet
from pipeline.models.wavelet import from_details, haar, twice

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NORMALISATION: dict[str, Any] = {
    # Network input: (sqrt(clip(rho, 0, max) + floor) - centre) / spread. It is the same for every scene, window and
    # level, so that one network can serve a cascade and chunks do not show.
    "input": "sqrt",
    "reflectance_max": 1.6,
    "input_floor": 0.01,
    "input_centre": 0.35,
    "input_spread": 0.15,
    # Outputs are in units of (local reflectance + floor), so that one network works on dark and on bright ground.
    "output_floor": 0.03,
}
SMALL: dict[str, Any] = {
    "csp_width": 48,
    "csp_heads": 4,
    "csp_blocks": 8,
    "detail_width": 24,
    "detail_heads": 4,
    "detail_blocks": 1,
    "score_widths": [32, 64, 64],
    "score_blocks": 1,
    "score_heads": 4,
    "window": 8,
    "process": "vp",
}
PAPER: dict[str, Any] = {
    "csp_width": 540,
    "csp_heads": 12,
    "csp_blocks": 0,
    "detail_width": 160,
    "detail_heads": 8,
    "detail_blocks": 1,
    "score_widths": [64, 128, 192],
    "score_blocks": 2,
    "score_heads": 8,
    "window": 8,
    "process": "vp",
}
LOG_SPREAD_RANGE = (-6.0, 1.0)  # of the residual, in output units: 0.25 % to 270 % of the local reflectance
_FIRST_SPREAD = 0.05


@dataclass(frozen=True)
class MeanEstimate:
    """What a level knows before it draws. All tensors have H x W px; V, H and D follow one another in `details`.

    low: band A as T_theta estimates it, (B, C). target: what eq. 9 pulls A towards, (B, C): 2 * image, or the literal
    tau. details: V, H, D, (B, 3C). spread: one standard deviation of A, V, H, D around them, (B, 4C), in the units of
    the bands. condition: what the score network is told, (B, 5C).
    """

    low: Tensor
    target: Tensor
    details: Tensor
    spread: Tensor
    condition: Tensor

    def standardised(self, truth: Tensor) -> Tensor:
        """Return the state x0 (B, 4C, H, W) of a true image (B, C, 2H, 2W): (bands - estimate) / spread."""
        bands = haar(truth)
        return (torch.cat((bands.A, bands.details()), 1) - torch.cat((self.low, self.details), 1)) / self.spread

    def bands(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return A (B, C, H, W) and V, H, D (B, 3C, H, W) of a state; undoes `standardised`."""
        residual, channels = self.spread * state, self.low.shape[1]
        return self.low + residual[:, :channels], self.details + residual[:, channels:]

    def image(self) -> Tensor:
        """Return the image (B, C, 2H, 2W) of the estimates, before eq. 9."""
        return from_details(self.low, self.details)


@dataclass(frozen=True)
class DetailInputs:
    """What M reads, normalised, on the coarse grid (H/2, W/2); V, H and D follow one another.

    lr: VHD of the image (B, 3C). upsampled, reference: VHD of the x2 upsampled image, and those of the reference less
    them, both folded by 2 (B, 3 * 4C). image: the image folded by 2, and a channel
    of 1 where a sensor has blurred it, else of 0, (B, 4C + 1).
    """

    lr: Tensor
    upsampled: Tensor
    reference: Tensor
    image: Tensor


class WaveletNetwork(nn.Module):
    """T_theta (`csp`), M (`cshr`), the spread around them, and the score network (`score`)."""

    def __init__(
        self,
        csp_width: int,
        csp_heads: int,
        csp_blocks: int,
        detail_width: int,
        detail_heads: int,
        detail_blocks: int,
        score_widths: Sequence[int],
        score_blocks: int,
        score_heads: int,
        window: int | None,
        normalisation: Mapping[str, Any] = NORMALISATION,
        *,
        bands: int,
        process: str = "vp",
    ) -> None:
        super().__init__()
        self.normalisation, self.bands = dict(normalisation), bands
        self.csp = CspEncoder(bands, csp_width, csp_heads, window, blocks=csp_blocks, details=len(DETAILS), flags=1)
        self.cshr = DetailRestoration(
            bands,
            detail_width,
            detail_heads,
            window,
            blocks=detail_blocks,
            lr_channels=9 * bands + 1,
            ref_channels=4 * bands,
        )
        self.spread = nn.Conv2d(3 * detail_width, 16 * bands, 3, padding=1)
        nn.init.zeros_(self.spread.weight)
        nn.init.constant_(self.spread.get_parameter("bias"), math.log(_FIRST_SPREAD))
        self.score = ScoreUNet(4 * bands, 5 * bands, score_widths, score_blocks, score_heads, window, process)

    def normalised(self, image: Tensor) -> Tensor:
        """Return network input of reflectance, of the same shape."""
        n = self.normalisation
        clipped = image.clamp(0.0, n["reflectance_max"])
        out: Tensor = ((clipped + n["input_floor"]).sqrt() - n["input_centre"]) / n["input_spread"]
        return out

    def unit(self, image: Tensor) -> Tensor:
        """Return the reflectance of one output unit, (B, C, H, W)."""
        n = self.normalisation
        unit: Tensor = image.clamp(0.0, n["reflectance_max"]) + n["output_floor"]
        return unit

    def inputs(
        self, image: Tensor, reference: Tensor | None = None, *, measured: bool = False
    ) -> tuple[Tensor, Tensor, DetailInputs]:
        """Return the normalised image (B, C, H, W) and reference (B, C, 2H, 2W), and the input of M.

        `reference` (B, C, 2H, 2W) is reflectance on the output's grid, NaN where there is none; there, and without a
        reference, the x2 upsampled image takes its place (self-reference).
        """
        normal, fine = self.normalised(image), self.normalised(twice(image))
        known = fine
        if reference is not None:
            known = torch.where(reference.isfinite(), self.normalised(reference.nan_to_num()), fine)
        ours, theirs = haar(fine).details(), haar(known).details()
        unfold = functional.pixel_unshuffle
        flagged = torch.cat((unfold(normal, 2), _flag(normal[..., ::2, ::2], measured)), dim=1)
        inputs = DetailInputs(haar(normal).details(), unfold(ours, 2), unfold(theirs - ours, 2), flagged)
        return normal, known, inputs

    def features(self, inputs: DetailInputs) -> list[Tensor]:
        """Return M's features (B, detail_width, H/2, W/2) of V, H and D."""
        parts = (tensor.chunk(3, dim=1) for tensor in (inputs.lr, inputs.upsampled, inputs.reference))
        image, reference = [], []
        for lr, upsampled, known in zip(*parts, strict=True):
            image.append(torch.cat((lr, upsampled, inputs.image), dim=1))
            reference.append(known)
        return self.cshr.features((image[0], image[1], image[2]), (reference[0], reference[1], reference[2]))

    def estimate(
        self, image: Tensor, reference: Tensor | None = None, *, measured: bool = False, literal: bool = False
    ) -> MeanEstimate:
        """Return the estimates for an image (B, C, H, W) and a reference as in `inputs`.

        `measured` says that a sensor has blurred the image; other images are means of the pixels sought.
        The residuals of T_theta and M are added to 2 * image and to the details of the x2 upsampled image. With
        `literal`, the paper's own words, they are added to upsampled bands of the image, which loses its detail.
        """
        normal, known, inputs = self.inputs(image, reference, measured=measured)
        flagged = torch.cat((normal, _flag(normal, measured)), dim=1)
        tau, refined = self.csp(flagged, known).split((self.bands, len(DETAILS) * self.bands), dim=1)
        features = self.features(inputs)
        residual, unit = self.cshr.details(features) + refined, self.unit(image)
        coarse = haar(image)
        target = twice(coarse.A) if literal else 2 * image
        base = twice(coarse.details()) if literal else haar(twice(image)).details()
        return MeanEstimate(
            low=target + 2 * unit * tau,
            target=target,
            details=base + unit.repeat(1, 3, 1, 1) * residual,
            spread=unit.repeat(1, 4, 1, 1) * self.relative_spread(features),
            condition=torch.cat((normal, tau, residual), dim=1),
        )

    def relative_spread(self, features: list[Tensor]) -> Tensor:
        """Return one standard deviation of A, V, H, D in output units (B, 4C, H, W) of M's features."""
        log_sd = functional.pixel_shuffle(self.spread(torch.cat(features, dim=1)), 2)
        return log_sd.clamp(*LOG_SPREAD_RANGE).exp()


def _flag(image: Tensor, measured: bool) -> Tensor:
    """Return a channel (B, 1, H, W) of ones for images (B, C, H, W) that a sensor has blurred, else of zeros."""
    return torch.full_like(image[:, :1], float(measured))


def reach_px(architecture: Mapping[str, Any]) -> int | None:
    """Return how many px of the input the estimates see in every direction at most, or None if they see everything.

    M runs on the coarse grid, whose pixels and those folded into them are 2 px wide; bicubic adds 2 px. The spread sees
    as far as M.
    """
    window = architecture["window"]
    details = cross_scale.reach_px(architecture["detail_blocks"], window)
    encoder = cross_scale.reach_px(architecture["csp_blocks"], window)
    return None if details is None or encoder is None else max(2 * details + 1, encoder) + 2


def reach_of_draws_px(architecture: Mapping[str, Any], steps: int) -> int | None:
    """Return how many px of the input a draw of `steps` evaluations sees at most, or None if it sees everything."""
    estimates = reach_px(architecture)
    levels, blocks = len(architecture["score_widths"]), architecture["score_blocks"]
    evaluation = score_unet.reach_px(levels, blocks, architecture["window"])
    return None if estimates is None or evaluation is None else estimates + steps * evaluation
