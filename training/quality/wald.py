"""Wald tests of fusion: measured bands made coarser, sharpened, compared with what was measured.

In: a fusion network and a scene's reflectance by GSD. Out: scores by task and method. The coarser bands follow DSen2
(Lanaras et al. 2018): Gaussian of 1/s coarse-to-fine px, then block means. Imports baselines and metrics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch.nn import functional

from pipeline.bands import RGB
from pipeline.models.lite_fusion import BANDS_20M, BANDS_60M, OUT_BANDS
from training import placement
from training.degradation.degrade import Degradation, degrade
from training.quality import baselines
from training.quality.metrics import band_psnr, correlation, ergas, sam, sre_db, ssim, trimmed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.models.bundle import Bundle
    from pipeline.models.lite_fusion import FusionNetwork

TEST_SCENE = "S2A_MSIL1C_20170527_T33UUB.mat"  # MGRS tile T33UUB, Level-1C: never in training
BORDER_PX = 6  # of the target grid, left out of every score
LEARNED = "lite"
LEARNED_KEPT = "lite, block means kept between its stages"
SSIM_LEAST_PX = 11
_EIGHT = 8  # 20 m -> 2.5 m is 8; so is 160 m -> 20 m
_LEAST_COARSE = 10  # coarse pixels a side below which a task says nothing of its scale
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


def measure(
    network: FusionNetwork,
    rho: Mapping[int, NDArray[np.float32]],
    *,
    sixty: bool = True,
    present: tuple[str, ...] = OUT_BANDS,
) -> list[Row]:
    """Scores of `baselines.SHARPENERS`, local regression alone and `network` on every task that the scene allows.

    `sixty=False` leaves it at 20 m x2 and NIR x4.
    """
    scene = Scene({gsd: torch.from_numpy(values.copy()) for gsd, values in rho.items()}, present).cut(2)
    return [] if scene is None else [row_of(task, network) for task in tasks(network, scene, sixty)]


def measure_by_predict(
    fuser: Fuser, rho: Mapping[int, NDArray[np.float32]], name: str, present: tuple[str, ...] = OUT_BANDS
) -> list[Row]:
    """20 m x8 by any fusion of the pipeline, which does it as it does 20 m -> 2.5 m: everything eight times coarser."""
    scene = Scene({gsd: torch.from_numpy(values.copy()) for gsd, values in rho.items()}, present)
    return [row_of(task) for task in eight_by_predict(fuser, scene, name)]


def eight_by_predict(fuser: Fuser, scene: Scene, name: str) -> Iterator[Task]:
    """20 m x8 by `predict`, under a name; nothing where the scene is too small."""
    for part in eighths(scene):
        coarse, guides, held = part.coarser(_EIGHT), wald_coarser(part.rho[10][:3], 2), part.held(BANDS_20M)
        given = {gsd: values[None] for gsd, values in coarse.items()}
        out = fuser.predict(guides[None], given, (*RGB, *scene.present))[0]
        learned = {name: out[[fuser.out_bands.index(band) for band in _named(BANDS_20M, held)]]}
        yield _of_eight(part, coarse, guides, learned)


def tasks(network: FusionNetwork, scene: Scene, every: bool = True) -> Iterator[Task]:
    """The tasks in the order of the table."""
    if scene.held(BANDS_20M):
        yield twenty(network, scene)
        if every:
            yield twenty(network, scene, blur=False)
            yield from eight(network, scene)
    if every and scene.held(BANDS_60M):
        yield from sixty_m(network, scene)
    if "B08" in scene.present:
        yield nir(network, scene)


def twenty(network: FusionNetwork, scene: Scene, blur: bool = True) -> Task:
    """20 m x2: bands of 40 m sharpened by four guides at 20 m, judged against the measured 20 m."""
    coarse, held = scene.coarser(2, blur), scene.held(BANDS_20M)
    out = _sharpen(network, scene, coarse)[: len(BANDS_20M)]
    name = "20 m x2" if blur else "20 m x2, block means only"
    learned = {LEARNED: out[held]}
    return Task(name, 2, coarse[20][held], coarse[10], scene.rho[20][held], learned, _named(BANDS_20M, held))


def eight(network: FusionNetwork, scene: Scene) -> Iterator[Task]:
    """20 m x8: bands of 160 m sharpened by RGB at 20 m: DiffFuSR's task, 20 m -> 2.5 m, on ground whose truth is known.

    The network goes the pipeline's way: `sharpen` x2 by the four bands that are then measured at 80 m, `detail` x4 by
    RGB. Other methods have no use for measured bands between the two scales. Once more with block means kept between.
    """
    for part in eighths(scene):
        coarse, guides = part.coarser(_EIGHT), wald_coarser(part.rho[10][:3], 2)
        at80 = _sharpen(network, part, coarse)
        kept = torch.cat([project(at80[: len(BANDS_20M)], coarse[20], 2), at80[len(BANDS_20M) :]])
        learned = {
            name: _detail(network, part, guides, torch.cat([coarse[10][3:], sharp]))[1:]
            for name, sharp in ((LEARNED, at80), (LEARNED_KEPT, kept))
        }
        held = part.held(BANDS_20M)
        yield _of_eight(part, coarse, guides, {name: out[held] for name, out in learned.items()})


def eighths(scene: Scene) -> Iterator[Scene]:
    """The scene cut to what 20 m x8 needs; nothing where it is too small or has no band of 20 m."""
    part = scene.cut(_EIGHT)
    if part is not None and part.held(BANDS_20M) and min(part.rho[20].shape[1:]) >= _LEAST_COARSE * _EIGHT:
        yield part


def _of_eight(part: Scene, coarse: Mapping[int, Tensor], guides: Tensor, learned: Mapping[str, Tensor]) -> Task:
    held = part.held(BANDS_20M)
    truth = part.rho[20][held]
    return Task("20 m x8, RGB guide", _EIGHT, coarse[20][held], guides, truth, learned, _named(BANDS_20M, held))


def sixty_m(network: FusionNetwork, scene: Scene) -> Iterator[Task]:
    """60 m x6: bands of 360 m sharpened by four guides at 60 m, judged against the measured 60 m."""
    side = min(scene.rho[60].shape[1:]) // 6 * 6
    if side < 6 * _LEAST_COARSE:
        return
    cut = {gsd: values[:, : side * 60 // gsd, : side * 60 // gsd] for gsd, values in scene.rho.items()}
    part = Scene(cut, scene.present)
    coarse, held = part.coarser(6), scene.held(BANDS_60M)
    out = _sharpen(network, scene, coarse)[len(BANDS_20M) :]
    learned = {LEARNED: out[held]}
    yield Task("60 m x6", 6, coarse[60][held], coarse[10], part.rho[60][held], learned, _named(BANDS_60M, held))


def nir(network: FusionNetwork, scene: Scene) -> Task:
    """NIR x4: B08 of 40 m sharpened by RGB at 10 m, judged against the measured 10 m."""
    coarse = wald_coarser(scene.rho[10][3:], 4)
    at40 = torch.cat([coarse, wald_coarser(scene.rho[20], 2), resampled(scene.rho[60][None], coarse)[0]])
    out = _detail(network, scene, scene.rho[10][:3], at40)[:1]
    return Task("NIR x4", 4, coarse, scene.rho[10][:3], scene.rho[10][3:], {LEARNED: out}, ("B08",))


def _named(bands: Sequence[str], held: Sequence[int]) -> tuple[str, ...]:
    return tuple(bands[i] for i in held)


def _sharpen(network: FusionNetwork, scene: Scene, coarse: Mapping[int, Tensor]) -> Tensor:
    given = (coarse[10][None], coarse[20][None], coarse[60][None], scene.mask[:, 1:])
    return placement.run(placement.device_of(network), network.sharpen, *given)[0]


def _detail(network: FusionNetwork, scene: Scene, rgb: Tensor, bands: Tensor) -> Tensor:
    return placement.run(placement.device_of(network), network.detail, rgb[None], bands[None], scene.mask)[0]


def row_of(task: Task, network: FusionNetwork | None = None) -> Row:
    """All methods on one task; with a lite network also the local regression that it starts from."""
    estimates = {name: method(task.coarse, task.guides, task.scale) for name, method in baselines.SHARPENERS.items()}
    if network is not None:
        given = (task.coarse[None], task.guides[None], task.scale)
        regression = placement.run(placement.device_of(network), network.regression, *given)[0]
        estimates["local regression"] = baselines.bicubic(task.coarse[None], task.scale)[0] + regression
    estimates |= task.learned
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
