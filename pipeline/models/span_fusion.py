"""Fusion X2 and Fusion X4: the six 20 m bands at 10 m guided by the 10 m bands, then at 2.5 m guided by finer ones.

Both are `Span` networks on the grid of the guide. Weights released with SEN2SR read the bands interpolated bilinearly
and the guide, and give the bands themselves; a Fourier mask over the window constrains them. Ours add a residual to a
local regression on the guide, and smoothed block means constrain them (see `low_pass`). What weights need stands in
their bundle: the order of the guide in `in_bands`, `inputs`, `constraint` and the rest in `normalisation`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from pipeline.models import low_pass
from pipeline.models.bundle import Bundle, BundleError, LatticeSpec, load_into
from pipeline.models.layout import moved
from pipeline.models.lite_fusion import BANDS_20M, GUIDES, regression_detail
from pipeline.models.lite_fusion import LATTICE as LATTICE_X4
from pipeline.models.resampling import upsample
from pipeline.models.span import Span

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    Constraint = Callable[[Tensor, Tensor, int, str], Tensor]

X2, X4 = "fusion-x2", "fusion-x4"
SCALES = {X2: 2, X4: 4}
LATTICES = {X2: LatticeSpec(window_px=120, stride_px=96, ramp_px=12, margin_px=6), X4: LATTICE_X4}
PUBLISHED_GUIDES = ("B02", "B03", "B04", "B08")
PUBLISHED_ARCHITECTURE: dict[str, Any] = {"features": 24, "blocks": 6, "graph": "published"}
# `smooth`: interpolation whose low frequencies a mask takes. The release reads its bands already interpolated to 10 m
# in X2, which is bilinear, and interpolates them again in X4, cubically.
PUBLISHED_NORMALISATION: dict[str, dict[str, Any]] = {
    X2: {"inputs": "reflectance", "constraint": "ideal", "smooth": "bilinear"},
    X4: {"inputs": "reflectance", "constraint": "ideal", "smooth": "bicubic"},
}
ARCHITECTURE: dict[str, Any] = {"features": 24, "blocks": 6, "graph": "chained"}
NORMALISATION: dict[str, Any] = {
    "inputs": "regression",  # see `regressed`
    "constraint": "smoothed means",
    "reflectance_max": 1.6,
    "input_floor": 0.01,  # (sqrt(clip(rho, 0, max) + floor) - centre) / spread, as in lite
    "input_centre": 0.4,
    "input_spread": 0.2,
    "output_floor": 0.03,  # residuals are in units of (local reflectance + floor) * output_scale
    "output_scale": 0.1,
    "ridge": 1e-6,  # of the regression, in reflectance^2
    # Limit of its detail, in local standard deviations of the band. Half of it cuts off borders of even fields: at x4,
    # errors of near infrared grow by 5 % then.
    "detail_limit": 6.0,
    "window_px": 7,  # in px of the coarse bands
}
CHANNELS = {"reflectance": len(BANDS_20M) + len(GUIDES), "regression": 2 * (len(BANDS_20M) + len(GUIDES))}


def network(architecture: Mapping[str, Any], normalisation: Mapping[str, Any]) -> Span:
    """Return the network of a bundle, new. Raises ValueError for an unknown graph, KeyError for unknown inputs."""
    return Span(CHANNELS[normalisation["inputs"]], len(BANDS_20M), **architecture)


def bilinear(x: Tensor, scale: int) -> Tensor:
    """Interpolate (B, C, h, w) to (B, C, scale*h, scale*w), with pixel areas aligned."""
    return functional.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)


def estimate(span: Span, six: Tensor, guide: Tensor, normalisation: Mapping[str, Any]) -> Tensor:
    """Return six bands (B, 6, scale*h, scale*w) from six (B, 6, h, w) and a guide (B, 4, scale*h, scale*w).

    Reflectance; the order of the guide is the network's. With gradients, for training.
    """
    scale = guide.shape[-1] // six.shape[-1]
    if normalisation["inputs"] == "regression":
        fine = regressed(span, six, guide, scale, normalisation)
    else:
        fine = span(torch.cat([bilinear(six, scale), guide], dim=1))
    constrain = CONSTRAINTS[normalisation["constraint"]]
    return constrain(fine.clamp_min(0), six, scale, normalisation.get("smooth", "bilinear"))


def regressed(span: Span, six: Tensor, guide: Tensor, scale: int, normalisation: Mapping[str, Any]) -> Tensor:
    """Return a local regression of `six` on the guide, corrected by the network. Shapes as `estimate`.

    The network reads both images on a square-root scale, and their detail relative to the local reflectance. Both are
    interpolated cubically, as inside the regression: a band that follows the guide is then found exactly.
    """
    n = normalisation
    up = upsample(six, scale)
    low = upsample(functional.avg_pool2d(guide, scale), scale)
    detail = regression_detail(six, guide, scale, n["window_px"], n["ridge"], n["detail_limit"], low)
    unit = _unit(up, n)
    inputs = [_compand(up + detail, n), _compand(guide, n), detail / unit, (guide - low) / _unit(low, n)]
    residual: Tensor = span(torch.cat(inputs, dim=1))
    return up + detail + unit * residual.float()


def _compand(x: Tensor, n: Mapping[str, Any]) -> Tensor:
    """Map reflectance to network range."""
    root: Tensor = (x.clamp(0, n["reflectance_max"]) + n["input_floor"]).sqrt()
    normalised: Tensor = (root - n["input_centre"]) / n["input_spread"]
    return normalised


def _unit(x: Tensor, n: Mapping[str, Any]) -> Tensor:
    """Return the reflectance of one unit of detail."""
    unit: Tensor = (x.clamp(0, n["reflectance_max"]) + n["output_floor"]) * n["output_scale"]
    return unit


def _masked(mask_of: Callable[[int, int, int], Tensor]) -> Constraint:
    """Return a constraint by a mask over the window."""

    def constrain(fine: Tensor, six: Tensor, scale: int, smooth: str) -> Tensor:
        height, width = fine.shape[-2:]
        low = bilinear(six, scale) if smooth == "bilinear" else low_pass.published_upsample(six, (height, width))
        return low_pass.by_mask(fine, low, mask_of(height, width, scale))

    return constrain


def _local(of: Callable[[Tensor, Tensor, int], Tensor]) -> Constraint:
    """Return a constraint of finite reach, which interpolates nothing."""

    def constrain(fine: Tensor, six: Tensor, scale: int, smooth: str) -> Tensor:
        del smooth
        return of(fine, six, scale)

    return constrain


CONSTRAINTS: dict[str, Constraint] = {
    "smoothed means": _local(low_pass.by_smoothed_means),
    "block means": _local(low_pass.by_block_means),
    "ideal": _masked(low_pass.ideal_mask),
    "butterworth": _masked(low_pass.butterworth_mask),
}


class SpanFusion:
    """One fusion, as its weights say."""

    out_bands: tuple[str, ...] = BANDS_20M

    def __init__(self, span: Span, bundle: Bundle) -> None:
        self.network = span.eval()
        self.bundle = bundle
        self.scale = bundle.scale
        self._order = [GUIDES.index(band) for band in bundle.in_bands[len(BANDS_20M) :]]

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> SpanFusion:
        """Load a bundle on the CPU. Raises BundleError if it is of another kind or does not fit its network."""
        check(bundle)
        try:
            span = network(bundle.architecture, bundle.normalisation)
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"weights {bundle.path} describe no network of {bundle.system} ({error!r})") from error
        load_into(span, bundle)
        return cls(span.requires_grad_(False), bundle)

    def to(self, device: torch.device) -> SpanFusion:
        """Move the weights to `device` and return self."""
        moved(self.network, device)
        return self

    @torch.inference_mode()
    def predict(self, six: Tensor, guide: Tensor) -> Tensor:
        """Return reflectance (B, 6, scale*h, scale*w) of `BANDS_20M` from theirs (B, 6, h, w), coarser, and a guide.

        guide (B, 4, scale*h, scale*w): reflectance in the order B04, B03, B02, B08. Raises ValueError if the sides do
        not fit.
        """
        if guide.shape[-2:] != (six.shape[-2] * self.scale, six.shape[-1] * self.scale):
            msg = (
                f"guide of {tuple(guide.shape[-2:])} px for bands of {tuple(six.shape[-2:])} px; expected x{self.scale}"
            )
            raise ValueError(msg)
        return estimate(self.network, six, guide[:, self._order], self.bundle.normalisation)


def check(bundle: Bundle) -> None:
    """Raise BundleError if a bundle is of no kind known here, or says of its bands, scale or constraint what is not."""
    if bundle.system not in SCALES:
        raise BundleError(f"weights {bundle.path} hold {bundle.system}", " or ".join(SCALES))
    guides, constraint = bundle.in_bands[len(BANDS_20M) :], bundle.normalisation.get("constraint")
    wrong = {
        "scale": bundle.scale != SCALES[bundle.system],
        "in_bands": bundle.in_bands[: len(BANDS_20M)] != BANDS_20M or sorted(guides) != sorted(GUIDES),
        "out_bands": bundle.out_bands != BANDS_20M,
        "constraint": constraint not in CONSTRAINTS,
    }
    if any(wrong.values()):
        named = ", ".join(name for name, bad in wrong.items() if bad)
        raise BundleError(
            f"weights {bundle.path} of {bundle.system} have another {named}",
            f"x{SCALES[bundle.system]} of {' '.join(BANDS_20M)}, then {' '.join(GUIDES)} in any order, constrained by "
            f"{' or '.join(CONSTRAINTS)}",
        )


def chained(x2: SpanFusion, x4: SpanFusion, six: Tensor, guide: Tensor, fine_guide: Tensor) -> Tensor:
    """Return six bands eight times finer, (B, 6, 8h, 8w), by Fusion X2 and then X4.

    six (B, 6, h, w), guide (B, 4, 2h, 2w) and fine_guide (B, 4, 8h, 8w) are reflectance, in a run of 20, 10 and 2.5 m.
    """
    return x4.predict(x2.predict(six, guide), fine_guide)


def fusion_bundle(
    kind: str,
    architecture: Mapping[str, Any],
    provenance: dict[str, Any] | None = None,
    licence: str = "",
    *,
    published: bool = False,
) -> Bundle:
    """Return the bundle of weights of `kind`, `X2` or `X4`; of the released networks if `published`."""
    return Bundle(
        system=kind,
        architecture=dict(architecture),
        in_bands=(*BANDS_20M, *(PUBLISHED_GUIDES if published else GUIDES)),
        out_bands=BANDS_20M,
        scale=SCALES[kind],
        lattice=LATTICES[kind],
        normalisation=PUBLISHED_NORMALISATION[kind] if published else NORMALISATION,
        provenance=provenance or {},
        licence=licence,
    )
