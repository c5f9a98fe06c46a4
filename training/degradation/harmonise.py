"""Sharp images as another sensor sees them: I_LR = gamma[delta(I_HR, eta)] + epsilon (OpenSR thesis, eq. 2.1).

delta is a Gaussian blur of `eta_px` per band and the mean of blocks, gamma a map of reflectance per band, and epsilon
normal noise. All are fitted on registered pairs of real images, robustly, since some ground has changed in between.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch

from pipeline.errors import UsageError
from training.degradation.degrade import MAX_SIGMA_PX, MIN_SIGMA_PX, apply_kernels, kernels_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    Floats = NDArray[np.float32]
    Doubles = NDArray[np.float64]

Gamma = Literal["power", "histogram", "identity"]
GAMMAS: tuple[str, ...] = get_args(Gamma)
FORMAT_VERSION = 1
QUANTILES = np.linspace(0.005, 0.995, 65)  # of the histograms that are matched
BORDER_PX = 3  # coarse pixels left out at every edge, where the blur reads mirrored ones
LEAST_PX, MOST_PX = 256, 20_000  # coarse pixels per band in a fit
DARKEST = 1e-4  # reflectance below which the power law is not evaluated
ETA_ERROR_PX = 0.01  # to which the width is found
OUTLIER = 3.0  # standard deviations beyond which a pixel counts no more


@dataclass(frozen=True)
class Fitted:
    """gamma, eta and epsilon of one band.

    eta_px: standard deviation of the blur in px of the sharp grid. epsilon: that of the noise, in reflectance. Power
    law: gain * x^exponent. Histograms: quantiles of the blurred sharp image (`given`) and of the coarse one (`wanted`).
    """

    band: str
    eta_px: float
    epsilon: float
    gain: float = 1.0
    exponent: float = 1.0
    given: tuple[float, ...] = ()
    wanted: tuple[float, ...] = ()

    def gamma(self, x: Doubles) -> Doubles:
        """Return the map of reflectance. Beyond the quantiles, the difference of the outermost goes on."""
        if not self.given:
            return x if self.gain == self.exponent == 1 else self.gain * np.maximum(x, DARKEST) ** self.exponent
        inside: Doubles = np.interp(x, self.given, self.wanted)
        return inside + np.minimum(x - self.given[0], 0) + np.maximum(x - self.given[-1], 0)


@dataclass(frozen=True)
class Harmoniser:
    """Eq. 2.1 for the bands in `fitted`. `fitted_on` says which data, for the provenance."""

    kind: Gamma
    scale: int
    fitted: tuple[Fitted, ...]
    fitted_on: dict[str, Any] = field(default_factory=dict)

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands, in channel order."""
        return tuple(one.band for one in self.fitted)

    def of(self, bands: Sequence[str]) -> Harmoniser:
        """Return the harmoniser of some bands, in this order. Raises UsageError if it lacks one."""
        by_name = {one.band: one for one in self.fitted}
        if lacking := [band for band in bands if band not in by_name]:
            raise UsageError(f"a harmoniser of {', '.join(self.bands)}", f"one that has {', '.join(lacking)}")
        return Harmoniser(self.kind, self.scale, tuple(by_name[band] for band in bands), self.fitted_on)

    def apply(self, hr: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return coarse images (B, bands, H/scale, W/scale) of sharp ones (B, bands, H, W). Noise needs a generator."""
        widths = [one.eta_px for one in self.fitted]
        lr = self.sharp(_blurred(hr, widths, self.scale))
        if generator is None:
            return lr
        spread = torch.tensor([one.epsilon for one in self.fitted])[:, None, None]
        return lr + spread * torch.randn(lr.shape, generator=generator)

    def sharp(self, hr: Tensor) -> Tensor:
        """Return images (B, bands, H, W) with the radiometry of the coarse sensor: gamma alone."""
        values = hr.numpy().astype(np.float64)
        mapped = np.stack([one.gamma(values[:, place]) for place, one in enumerate(self.fitted)], 1)
        return torch.from_numpy(mapped.astype(np.float32))

    def described(self) -> dict[str, Any]:
        """Return it for JSON and provenance."""
        return {"format_version": FORMAT_VERSION, **json.loads(json.dumps(asdict(self)))}

    @classmethod
    def stored(cls, content: Mapping[str, Any]) -> Harmoniser:
        """Restore from the output of `described`. Raises KeyError, TypeError or ValueError for anything else."""
        if content["format_version"] != FORMAT_VERSION or content["kind"] not in GAMMAS:
            msg = f"format {content['format_version']}, gamma {content['kind']}"
            raise ValueError(msg)
        fitted = tuple(
            Fitted(**{**one, "given": tuple(one["given"]), "wanted": tuple(one["wanted"])}) for one in content["fitted"]
        )
        return cls(content["kind"], content["scale"], fitted, content["fitted_on"])

    @classmethod
    def read(cls, path: Path) -> Harmoniser:
        """Read a file that `training.harmonise` wrote. Raises UsageError."""
        try:
            return cls.stored(json.loads(path.read_text()))
        except (OSError, KeyError, TypeError, ValueError) as error:
            found = f"{path} is no readable harmoniser ({type(error).__name__}: {error!s:.100})"
            raise UsageError(found, "a file that training.harmonise wrote") from error

    @classmethod
    def fit(
        cls, pairs: Sequence[tuple[Floats, Floats]], bands: Sequence[str], kind: Gamma = "power", scale: int = 4
    ) -> Harmoniser:
        """Fit on registered pairs of sharp (bands, scale*h, scale*w) and coarse (bands, h, w) images, NaN if not valid.

        The width eta is that of the smallest residual, and epsilon the residual's robust standard deviation. Raises
        UsageError if fewer than `LEAST_PX` coarse pixels are valid in a band.
        """
        fitted = tuple(
            _fitted(band, [(hr[place], lr[place]) for hr, lr in pairs], kind, scale) for place, band in enumerate(bands)
        )
        return cls(kind, scale, fitted)


def _fitted(band: str, pairs: Sequence[tuple[Floats, Floats]], kind: Gamma, scale: int) -> Fitted:
    """Fit one band on images (scale*h, scale*w) and (h, w)."""
    from scipy.optimize import minimize_scalar

    chosen = [_valid(sharp, coarse, scale) for sharp, coarse in pairs]
    count = sum(int(valid.sum()) for valid in chosen)
    if count < LEAST_PX:
        raise UsageError(f"{count} valid coarse pixels of {band} in {len(pairs)} pairs", f"at least {LEAST_PX}")
    sharp = [torch.from_numpy(_filled(image))[None, None] for image, _ in pairs]
    y = np.concatenate([coarse[valid] for (_, coarse), valid in zip(pairs, chosen, strict=True)]).astype(np.float64)
    used = np.random.default_rng(0).permutation(count)[:MOST_PX]

    def seen(eta: float) -> Doubles:
        """Return what a sensor with this blur sees of the sharp images, before gamma."""
        images = (_blurred(image, [eta], scale)[0, 0].numpy() for image in sharp)
        return np.concatenate([image[valid] for image, valid in zip(images, chosen, strict=True)]).astype(np.float64)

    def error(eta: float) -> float:
        x = seen(eta)[used]
        return _trimmed_square(y[used] - _gamma(band, x, y[used], kind).gamma(x))

    most = MAX_SIGMA_PX * max(1.0, scale / 4)
    bounds = MIN_SIGMA_PX, most
    eta = float(minimize_scalar(error, bounds=bounds, method="bounded", options={"xatol": ETA_ERROR_PX}).x)
    x = seen(eta)[used]
    found = _gamma(band, x, y[used], kind)
    residual = y[used] - found.gamma(x)
    epsilon = _robust_spread(residual - np.median(residual))
    return Fitted(band, eta, epsilon, found.gain, found.exponent, found.given, found.wanted)


def _gamma(band: str, x: Doubles, y: Doubles, kind: Gamma) -> Fitted:
    """Fit the map from reflectance x to y (n,)."""
    from scipy.optimize import least_squares

    if kind == "identity":
        return Fitted(band, 0.0, 0.0)
    if kind == "histogram":
        steps = 1e-9 * np.arange(len(QUANTILES))  # np.interp needs them to grow
        given, wanted = (np.quantile(values, QUANTILES) + steps for values in (x, y))
        return Fitted(band, 0.0, 0.0, given=tuple(given.tolist()), wanted=tuple(wanted.tolist()))
    logs = np.log(np.maximum(x, DARKEST))
    start = np.array([np.log(max(np.median(y), DARKEST) / max(np.median(x), DARKEST)), 1.0])
    spread = max(_robust_spread(y - np.exp(start[0]) * x), 1e-6)
    for _ in range(2):  # the second time with the scale of what the first leaves
        start = least_squares(
            lambda of: np.exp(of[0] + of[1] * logs) - y,
            start,
            lambda of: np.exp(of[0] + of[1] * logs)[:, None] * np.stack([np.ones_like(logs), logs], 1),
            loss="soft_l1",
            f_scale=spread,
        ).x
        spread = max(_robust_spread(y - np.exp(start[0] + start[1] * logs)), 1e-6)
    return Fitted(band, 0.0, 0.0, float(np.exp(start[0])), float(start[1]))


def _blurred(hr: Tensor, etas: Sequence[float], scale: int) -> Tensor:
    """Return delta of images (B, C, H, W), with a width for each channel."""
    one = torch.ones(1)
    kernels = kernels_of(one, one, torch.zeros(1), scale, "box", [float(eta) for eta in etas])
    return apply_kernels(hr.float(), kernels.expand(len(hr), *kernels.shape[1:]), scale)


def _valid(sharp: Floats, coarse: Floats, scale: int) -> NDArray[np.bool_]:
    """Return the coarse pixels (h, w) with a value, away from the edges, seen by valid sharp pixels at any width."""
    holes = torch.from_numpy((~np.isfinite(sharp)).astype(np.float32))[None, None]
    touched = _blurred(holes, [MAX_SIGMA_PX * max(1.0, scale / 4)], scale)[0, 0].numpy() > 1e-6
    found = np.isfinite(coarse) & ~touched
    inside = np.zeros_like(found)
    inside[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX] = True
    valid: NDArray[np.bool_] = found & inside
    return valid


def _filled(image: Floats) -> Floats:
    """Return an image (h, w) with its mean where it is not valid."""
    return np.where(np.isfinite(image), image, np.nan_to_num(np.nanmean(image))).astype(np.float32)


def _robust_spread(values: Doubles) -> float:
    """Return the standard deviation of normal numbers around 0 with outliers."""
    return 1.4826 * float(np.median(np.abs(values)))


def _trimmed_square(residual: Doubles) -> float:
    """Return the mean square, in which outliers count as much as the limit."""
    limit = OUTLIER * _robust_spread(residual)
    return float(np.minimum(residual**2, limit**2).mean())
