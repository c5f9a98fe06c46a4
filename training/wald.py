"""Wald tests of fusion on the scene that no training sees: measured bands made coarser, sharpened, compared.

In: a fusion network and the scene's reflectance by GSD. Out: ERGAS and PSNR by method. The coarser bands follow DSen2
(Lanaras et al. 2018): Gaussian of 1/s coarse-to-fine px, then block means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from pipeline.models.lite_fusion import BANDS_20M, BANDS_60M, OUT_BANDS
from training import baselines
from training.degrade import Degradation, degrade
from training.metrics import ergas, trimmed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.models.lite_fusion import FusionNetwork

TEST_SCENE = "S2A_MSIL1C_20170527_T33UUB.mat"  # MGRS tile T33UUB, Level-1C: never in training
BORDER_PX = 6  # of the target grid, left out of every score


@dataclass(frozen=True)
class Row:
    """One task: scores by method. `projected` is after the block means were made those of the input."""

    task: str
    ergas: dict[str, float]
    psnr: dict[str, float]
    projected: dict[str, float]  # ERGAS


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


def band_psnr(x: Tensor, truth: Tensor) -> float:
    """Mean over bands of the PSNR in dB whose peak is the band's maximum."""
    mse = (x - truth).double().square().mean((1, 2))
    peak = truth.double().amax((1, 2))
    return float((10 * (peak**2 / mse).log10()).mean())


def measure(network: FusionNetwork, rho: dict[int, NDArray[np.float32]], *, sixty: bool = True) -> list[Row]:
    """Scores of bicubic, GSA, ATPRK-like, local regression alone and `network` on every task the scene allows."""
    rows, columns = (side // 2 * 2 for side in rho[60].shape[1:])  # so that every band can be halved
    bands = {
        gsd: torch.from_numpy(values[:, : rows * 60 // gsd, : columns * 60 // gsd].copy())
        for gsd, values in rho.items()
    }
    more = [twenty(network, bands, blur=False), sixty_m(network, bands)] if sixty else []
    return [twenty(network, bands), *more, nir(network, bands)]


def twenty(network: FusionNetwork, bands: dict[int, Tensor], blur: bool = True) -> Row:
    """20 m x2: bands of 40 m sharpened by four guides at 20 m, judged against the measured 20 m."""
    coarse = {gsd: wald_coarser(values, 2, blur) for gsd, values in bands.items()}
    out = _sharpen(network, coarse)
    return _row(
        "20 m x2" if blur else "20 m x2, block means only",
        coarse[20],
        coarse[10],
        bands[20],
        2,
        out[: len(BANDS_20M)],
        network,
    )


def sixty_m(network: FusionNetwork, bands: dict[int, Tensor]) -> Row:
    """60 m x6: bands of 360 m sharpened by four guides at 60 m, judged against the measured 60 m."""
    side = min(bands[60].shape[1:]) // 6 * 6
    cut = {gsd: values[:, : side * 60 // gsd, : side * 60 // gsd] for gsd, values in bands.items()}
    coarse = {gsd: wald_coarser(values, 6) for gsd, values in cut.items()}
    out = _sharpen(network, coarse)
    return _row("60 m x6", coarse[60], coarse[10], cut[60], 6, out[len(BANDS_20M) :], network)


def nir(network: FusionNetwork, bands: dict[int, Tensor]) -> Row:
    """NIR x4: B08 of 40 m sharpened by RGB at 10 m, judged against the measured 10 m."""
    coarse = wald_coarser(bands[10][3:], 4)
    at40 = torch.cat([coarse, wald_coarser(bands[20], 2), resampled(bands[60][None], coarse)[0]])
    ones = torch.ones(1, len(OUT_BANDS), 1, 1)
    out = network.detail(bands[10][None, :3], at40[None], ones)[0, :1]
    return _row("NIR x4", coarse, bands[10][:3], bands[10][3:], 4, out, network)


def _sharpen(network: FusionNetwork, coarse: dict[int, Tensor]) -> Tensor:
    mask = torch.ones(1, len(BANDS_20M) + len(BANDS_60M), 1, 1)
    return network.sharpen(coarse[10][None], coarse[20][None], coarse[60][None], mask)[0]


def _row(
    task: str, coarse: Tensor, guides: Tensor, truth: Tensor, scale: int, out: Tensor, network: FusionNetwork
) -> Row:
    up = baselines.bicubic(coarse[None], scale)[0]
    methods = {
        "bicubic": up,
        "GSA": baselines.gsa(coarse, guides, scale),
        "ATPRK-like": baselines.atprk_like(coarse, guides, scale),
        "local regression": up + network.regression(coarse[None], guides[None], scale)[0],
        "lite": out,
    }
    border = min(BORDER_PX, math.ceil(truth.shape[1] / 16))
    kept = trimmed(truth, border)
    return Row(
        task,
        {name: ergas(trimmed(x, border), kept, scale) for name, x in methods.items()},
        {name: band_psnr(trimmed(x, border), kept) for name, x in methods.items()},
        {name: ergas(trimmed(project(x, coarse, scale), border), kept, scale) for name, x in methods.items()},
    )
