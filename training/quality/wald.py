"""Wald tests of fusion: measured bands made coarser, sharpened, compared with what was measured.

The coarser bands follow DSen2 (Lanaras et al. 2018): Gaussian of 1/s coarse-to-fine px, then block means. What any
fusion of the pipeline can do, 20 m x8, is measured here; a task whose network does more declares it by `Judge`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

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

TEST_SCENE = "S2A_MSIL1C_20170527_T33UUB.mat"  # MGRS tile T33UUB, Level-1C: never in training
BORDER_PX = 6  # of the target grid, left out of every score
SSIM_LEAST_PX = 11
BANDS_20M = bands_at(20)
OUT_BANDS = ("B08", *BANDS_20M, *bands_at(60))  # that fusion brings to 2.5 m
EIGHT = 8  # 20 m -> 2.5 m is 8; so is 160 m -> 20 m
LEAST_COARSE = 10  # coarse pixels a side below which a task says nothing of its scale
EIGHTH_LEAST_M = 1920  # side of a scene that 20 m x8 needs: so many of 160 m, in whole 480 m


class Fuser(Protocol):
    """A fusion whose networks bring the other bands to 2.5 m."""

    bundle: Bundle
    out_bands: tuple[str, ...]

    def predict(self, rgb_sr: Tensor, ms: Mapping[int, Tensor], present: tuple[str, ...]) -> Tensor:
        """Reflectance (b, len(out_bands), 4h, 4w) from RGB (b, 3, 4h, 4w) and native rasters by GSD in metres."""
        ...


@dataclass(frozen=True)
class Row:
    """One task: `scores` by method and metric. `projected` is ERGAS after the block means were made the input's."""

    task: str
    scores: Mapping[str, Mapping[str, float]]
    bands: tuple[str, ...] = ()

    def by(self, metric: str) -> dict[str, float]:
        """One metric by method."""
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
    """How weights that no system takes first are judged by Wald's protocol.

    load: the fusion of a bundle, on the CPU. rows: what it scores on a scene's reflectance by GSD, whose bands are
    given last; without it 20 m x8 is measured.
    """

    load: Callable[[Bundle], Fuser]
    rows: Callable[[Fuser, Mapping[int, NDArray[np.float32]], tuple[str, ...]], list[Row]] | None = None

    def measure(self, fuser: Fuser, rho: Mapping[int, NDArray[np.float32]], present: tuple[str, ...]) -> list[Row]:
        """Scores of every task that the scene allows."""
        if self.rows is not None:
            return self.rows(fuser, rho, present)
        return measure_by_predict(fuser, rho, fuser.bundle.system, present)


@dataclass(frozen=True)
class Task:
    """Coarse bands (C, h, w), guides (K, s*h, s*w), the measured bands (C, s*h, s*w) and what networks make of them."""

    name: str
    scale: int
    coarse: Tensor
    guides: Tensor
    truth: Tensor
    learned: Mapping[str, Tensor]
    bands: tuple[str, ...]


@dataclass(frozen=True)
class Scene:
    """Reflectance by GSD (bands, h, w) in the order of the fusion's inputs, and which of its outputs it carries."""

    rho: Mapping[int, Tensor]
    present: tuple[str, ...] = OUT_BANDS
    mask: Tensor = field(init=False)  # (1, 9, 1, 1), order of OUT_BANDS

    def __post_init__(self) -> None:
        held = torch.tensor([float(name in self.present) for name in OUT_BANDS])
        object.__setattr__(self, "mask", held[None, :, None, None])

    def held(self, bands: Sequence[str]) -> list[int]:
        """Places of those of `bands` that the scene carries."""
        return [i for i, name in enumerate(bands) if name in self.present]

    def cut(self, multiple_60m: int) -> Scene | None:
        """The part whose sides are multiples of so many pixels of 60 m; None where nothing is left."""
        rows, columns = (side // multiple_60m * multiple_60m for side in self.rho[60].shape[1:])
        if not min(rows, columns):
            return None
        parts = {g: values[:, : rows * 60 // g, : columns * 60 // g] for g, values in self.rho.items()}
        return Scene(parts, self.present)

    def coarser(self, factor: int, blur: bool = True) -> dict[int, Tensor]:
        """All bands coarser by one factor."""
        return {gsd: wald_coarser(values, factor, blur) for gsd, values in self.rho.items()}


def wald_coarser(rho: Tensor, factor: int, blur: bool = True) -> Tensor:
    """(C, h, w) -> (C, h/factor, w/factor): Gaussian of sigma 1/factor px of the input grid, then block means."""
    if not blur:
        return baselines.box(rho[None], factor)[0]
    return degrade(rho[None], Degradation(sigma_px=1 / factor, decimator="box", noise=0.0, scale=factor))[0]


def resampled(rho: Tensor, like: Tensor) -> Tensor:
    """60 m bands (B, C, h, w) on the pixels of `like`; they only inform the network, no score is theirs."""
    return functional.interpolate(rho, size=like.shape[-2:], mode="bicubic", align_corners=False)


def project(fine: Tensor, coarse: Tensor, factor: int) -> Tensor:
    """`fine` (C, H, W) with its block means replaced by `coarse` (C, H/factor, W/factor): one exact pass."""
    return fine + baselines.nearest((coarse - baselines.box(fine[None], factor)[0])[None], factor)[0]


def largest_measured(
    rho: Mapping[int, NDArray[np.float32]], valid: NDArray[np.bool_]
) -> dict[int, NDArray[np.float32]] | None:
    """The largest rectangle of a scene in which all of `valid` (h, w) at 60 m is True; None where nothing is.

    Every row in turn is the bottom of columns of measured pixels; the widest run at least as high as each column
    gives a rectangle.
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
    """20 m x8 by any fusion of the pipeline, which does it as it does 20 m -> 2.5 m: everything eight times coarser."""
    scene = Scene({gsd: torch.from_numpy(values.copy()) for gsd, values in rho.items()}, present)
    return [row_of(task) for task in eight_by_predict(fuser, scene, name)]


def eight_by_predict(fuser: Fuser, scene: Scene, name: str) -> Iterator[Task]:
    """20 m x8 by `predict`, under a name; nothing where the scene is too small."""
    for part in eighths(scene):
        coarse, guides, held = part.coarser(EIGHT), wald_coarser(part.rho[10][:3], 2), part.held(BANDS_20M)
        given = {gsd: values[None] for gsd, values in coarse.items()}
        out = fuser.predict(guides[None], given, (*RGB, *scene.present))[0]
        learned = {name: out[[fuser.out_bands.index(band) for band in named(BANDS_20M, held)]]}
        yield of_eight(part, coarse, guides, learned)


def eighths(scene: Scene) -> Iterator[Scene]:
    """The scene cut to what 20 m x8 needs; nothing where it is too small or has no band of 20 m."""
    part = scene.cut(EIGHT)
    if part is not None and part.held(BANDS_20M) and min(part.rho[20].shape[1:]) >= LEAST_COARSE * EIGHT:
        yield part


def of_eight(part: Scene, coarse: Mapping[int, Tensor], guides: Tensor, learned: Mapping[str, Tensor]) -> Task:
    """20 m x8 on a part of `eighths`, given what networks make of it."""
    held = part.held(BANDS_20M)
    truth = part.rho[20][held]
    return Task("20 m x8, RGB guide", EIGHT, coarse[20][held], guides, truth, learned, named(BANDS_20M, held))


def named(bands: Sequence[str], held: Sequence[int]) -> tuple[str, ...]:
    """The bands at places `held`."""
    return tuple(bands[i] for i in held)


def row_of(task: Task, more: Mapping[str, Tensor] | None = None) -> Row:
    """All methods on one task; `more` are further estimates beside the classical ones and what the task has."""
    estimates = {name: method(task.coarse, task.guides, task.scale) for name, method in baselines.SHARPENERS.items()}
    estimates |= {**(more or {}), **task.learned}
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
