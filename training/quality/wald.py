"""Wald's protocol for fusion: degrade measured bands, sharpen them, and compare with the measurement.

Degradation follows DSen2 (Lanaras et al. 2018): Gaussian with sigma 1/s px of the input grid, then block means. This
module measures 20 m x8, which any fusion supports. A task with more abilities declares them with `Judge`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch
from torch.nn import functional

from pipeline.bands import RGB, bands_at
from training.degradation.degrade import Degradation, degrade
from training.quality import baselines
from training.quality.metrics import band_psnr, correlation, ergas, sam, sre_db, ssim, trimmed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.models.bundle import Bundle

TEST_SCENE = "S2A_MSIL1C_20170527_T33UUB.mat"  # MGRS tile T33UUB, Level-1C; not used in training
BORDER_PX = 6  # px of the target grid, cropped from every score
SSIM_LEAST_PX = 11
BANDS_20M = bands_at(20)
OUT_BANDS = ("B08", *BANDS_20M, *bands_at(60))  # bands that fusion brings to 2.5 m
EIGHT = 8  # factor of 20 m -> 2.5 m and of 160 m -> 20 m
LEAST_COARSE = 10  # minimum side of a task in coarse pixels
EIGHTH_LEAST_M = 1920  # minimum side of a scene for 20 m x8: LEAST_COARSE pixels of 160 m, rounded up to 480 m


class Loaded(Protocol):
    """What a judge loads: the networks of a bundle, with others that it needs."""

    @property
    def bundle(self) -> Bundle:
        """The bundle that is judged."""
        ...


@runtime_checkable
class Fuser(Loaded, Protocol):
    """A fusion network that brings the other bands to 2.5 m."""

    out_bands: tuple[str, ...]

    def predict(self, rgb_sr: Tensor, ms: Mapping[int, Tensor], present: tuple[str, ...]) -> Tensor:
        """Predict reflectance (b, len(out_bands), 4h, 4w) from RGB (b, 3, 4h, 4w) and native rasters by GSD in m."""
        ...


@dataclass(frozen=True)
class Row:
    """Scores of one task by method and metric. `projected` is ERGAS after setting the block means to the input."""

    task: str
    scores: Mapping[str, Mapping[str, float]]
    bands: tuple[str, ...] = ()

    def by(self, metric: str) -> dict[str, float]:
        """Return one metric by method."""
        return {method: values[metric] for method, values in self.scores.items()}

    @property
    def ergas(self) -> dict[str, float]:
        """ERGAS by method."""
        return self.by("ERGAS")

    @property
    def projected(self) -> dict[str, float]:
        """ERGAS after projection by method."""
        return self.by("ERGAS, projected")


@dataclass(frozen=True)
class Judge:
    """Evaluation by Wald's protocol, for weights that no system takes first.

    load: loads the fusion of a bundle on the CPU. rows: returns its scores on a scene, given the fusion, reflectance by
    GSD and the scene's bands. Without `rows`, 20 m x8 is measured, which takes a `Fuser`. join: takes the place of
    `load` in an evaluation of several bundles, and is given all of them, for fusions that follow one another.
    """

    load: Callable[[Bundle], Loaded]
    rows: Callable[[Loaded, Mapping[int, NDArray[np.float32]], tuple[str, ...]], list[Row]] | None = None
    join: Callable[[Bundle, Sequence[Bundle]], Loaded] | None = None

    def loaded(self, bundle: Bundle, others: Sequence[Bundle] = ()) -> Loaded:
        """Return the fusion of a bundle, joined with `others` where it can be. Raises BundleError on a misfit."""
        return self.load(bundle) if self.join is None else self.join(bundle, others)

    def measure(self, fuser: Loaded, rho: Mapping[int, NDArray[np.float32]], present: tuple[str, ...]) -> list[Row]:
        """Return the scores of every task that the scene allows."""
        if self.rows is not None:
            return self.rows(fuser, rho, present)
        assert isinstance(fuser, Fuser)  # `load` says so
        return measure_by_predict(fuser, rho, fuser.bundle.system, present)


@dataclass(frozen=True)
class Task:
    """Coarse bands (C, h, w), guides (K, s*h, s*w), measured bands (C, s*h, s*w) and the networks' estimates."""

    name: str
    scale: int
    coarse: Tensor
    guides: Tensor
    truth: Tensor
    learned: Mapping[str, Tensor]
    bands: tuple[str, ...]


@dataclass(frozen=True)
class Scene:
    """Reflectance (bands, h, w) by GSD in the order of the fusion's inputs, and the output bands that it has."""

    rho: Mapping[int, Tensor]
    present: tuple[str, ...] = OUT_BANDS
    mask: Tensor = field(init=False)  # (1, 9, 1, 1), order of OUT_BANDS

    def __post_init__(self) -> None:
        held = torch.tensor([float(name in self.present) for name in OUT_BANDS])
        object.__setattr__(self, "mask", held[None, :, None, None])

    def held(self, bands: Sequence[str]) -> list[int]:
        """Return the indices of those of `bands` that the scene has."""
        return [i for i, name in enumerate(bands) if name in self.present]

    def cut(self, multiple_60m: int) -> Scene | None:
        """Crop the sides to multiples of `multiple_60m` pixels of 60 m. Return None if nothing is left."""
        rows, columns = (side // multiple_60m * multiple_60m for side in self.rho[60].shape[1:])
        if not min(rows, columns):
            return None
        parts = {g: values[:, : rows * 60 // g, : columns * 60 // g] for g, values in self.rho.items()}
        return Scene(parts, self.present)

    def coarser(self, factor: int, blur: bool = True) -> dict[int, Tensor]:
        """Return all bands degraded by one factor."""
        return {gsd: wald_coarser(values, factor, blur) for gsd, values in self.rho.items()}


def wald_coarser(rho: Tensor, factor: int, blur: bool = True) -> Tensor:
    """Degrade (C, h, w) to (C, h/factor, w/factor): Gaussian of sigma 1/factor px of the input grid, block means."""
    if not blur:
        return baselines.box(rho[None], factor)[0]
    return degrade(rho[None], Degradation(sigma_px=1 / factor, decimator="box", noise=0.0, scale=factor))[0]


def resampled(rho: Tensor, like: Tensor) -> Tensor:
    """Resample 60 m bands (B, C, h, w) to the grid of `like`. They are network inputs only and are not scored."""
    return functional.interpolate(rho, size=like.shape[-2:], mode="bicubic", align_corners=False)


def project(fine: Tensor, coarse: Tensor, factor: int) -> Tensor:
    """Replace the block means of `fine` (C, H, W) by `coarse` (C, H/factor, W/factor), exactly."""
    return fine + baselines.nearest((coarse - baselines.box(fine[None], factor)[0])[None], factor)[0]


def largest_measured(
    rho: Mapping[int, NDArray[np.float32]], valid: NDArray[np.bool_]
) -> dict[int, NDArray[np.float32]] | None:
    """Return the largest rectangle of a scene with all of `valid` (h, w) at 60 m True, or None without any.

    For each row as the bottom, take the height of measured pixels above it per column. For every height, the widest run
    of columns of at least that height gives a rectangle.
    """
    heights = np.zeros(valid.shape[1], int)
    best, corners = 0, (0, 0, 0, 0)
    for row, measured in enumerate(valid):
        heights = np.where(measured, heights + 1, 0)
        for height in np.unique(heights[heights > 0]):
            edges = np.flatnonzero(np.diff(np.concatenate([[0], heights >= height, [0]]).astype(int)))
            left, right = max(zip(edges[::2], edges[1::2], strict=True), key=lambda run: run[1] - run[0])
            if height * (right - left) > best:
                best, corners = height * (right - left), (row + 1 - height, row + 1, left, right)
    top, bottom, left, right = (int(corner) for corner in corners)
    if not best:
        return None
    return {g: v[:, top * 60 // g : bottom * 60 // g, left * 60 // g : right * 60 // g] for g, v in rho.items()}


def measure_by_predict(
    fuser: Fuser, rho: Mapping[int, NDArray[np.float32]], name: str, present: tuple[str, ...] = OUT_BANDS
) -> list[Row]:
    """Measure 20 m x8 of any fusion: the same computation as 20 m -> 2.5 m with all GSDs eight times larger."""
    scene = Scene({gsd: torch.from_numpy(values.copy()) for gsd, values in rho.items()}, present)
    return [row_of(task) for task in eight_by_predict(fuser, scene, name)]


def eight_by_predict(fuser: Fuser, scene: Scene, name: str) -> Iterator[Task]:
    """Yield the 20 m x8 task by `predict`, under a name. Yield nothing if the scene is too small."""
    for part in eighths(scene):
        coarse, guides, held = part.coarser(EIGHT), wald_coarser(part.rho[10][:3], 2), part.held(BANDS_20M)
        given = {gsd: values[None] for gsd, values in coarse.items()}
        out = fuser.predict(guides[None], given, (*RGB, *scene.present))[0]
        learned = {name: out[[fuser.out_bands.index(band) for band in named(BANDS_20M, held)]]}
        yield of_eight(part, coarse, guides, learned)


def eighths(scene: Scene) -> Iterator[Scene]:
    """Yield the scene cropped for 20 m x8. Yield nothing if it is too small or has no 20 m band."""
    part = scene.cut(EIGHT)
    if part is not None and part.held(BANDS_20M) and min(part.rho[20].shape[1:]) >= LEAST_COARSE * EIGHT:
        yield part


def of_eight(part: Scene, coarse: Mapping[int, Tensor], guides: Tensor, learned: Mapping[str, Tensor]) -> Task:
    """Return the 20 m x8 task of a part of `eighths`, given the networks' estimates."""
    held = part.held(BANDS_20M)
    truth = part.rho[20][held]
    return Task("20 m x8, RGB guide", EIGHT, coarse[20][held], guides, truth, learned, named(BANDS_20M, held))


def named(bands: Sequence[str], held: Sequence[int]) -> tuple[str, ...]:
    """Return the bands at indices `held`."""
    return tuple(bands[i] for i in held)


def row_of(task: Task, more: Mapping[str, Tensor] | None = None) -> Row:
    """Score all methods on one task. `more` are estimates besides the classical ones and those of the task."""
    return _row(task, _estimates(task, more or {}))


def rows_by_band(task: Task) -> list[Row]:
    """Score all methods on one task, then on each of its bands; SAM of a single band is NaN."""
    estimates = _estimates(task, {})
    rows = [_row(task, estimates)]
    for i, band in enumerate(task.bands):
        one = replace(task, name=f"{task.name}, {band}", coarse=task.coarse[i, None], truth=task.truth[i, None])
        rows.append(_row(replace(one, bands=(band,)), {name: x[i, None] for name, x in estimates.items()}))
    return rows


def _estimates(task: Task, more: Mapping[str, Tensor]) -> dict[str, Tensor]:
    given = (task.coarse, task.guides, task.scale)
    return {**{name: method(*given) for name, method in baselines.SHARPENERS.items()}, **more, **task.learned}


def _row(task: Task, estimates: Mapping[str, Tensor]) -> Row:
    return Row(task.name, {name: _scores(task, x) for name, x in estimates.items()}, task.bands)


def _scores(task: Task, estimate: Tensor) -> dict[str, float]:
    border = min(BORDER_PX, math.ceil(task.truth.shape[1] / 16))
    x, truth = trimmed(estimate, border), trimmed(task.truth, border)
    small = min(truth.shape[1:]) < SSIM_LEAST_PX
    return {
        "ERGAS": ergas(x, truth, task.scale),
        "ERGAS, projected": ergas(trimmed(project(estimate, task.coarse, task.scale), border), truth, task.scale),
        "PSNR": band_psnr(x, truth),
        "SSIM": math.nan if small else ssim(x, truth),
        "SAM": sam(x, truth),
        "CC": correlation(x, truth),
        "SRE": sre_db(x, truth),
    }
