"""What shorter number formats do to stored DN, on the CPU: float16 and bfloat16 by torch, TF32 emulated."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from pipeline.bands import BAND_NAMES, BY_NAME, GSDS_M, bands_at
from pipeline.grid.grid import Window
from pipeline.grid.native_rasters import NativeRasters, factor_at
from pipeline.superres.options import Options
from pipeline.superres.passes import passes_of
from pipeline.superres.registry import known
from pipeline.superres.spec import mean_draws
from pipeline.superres.superres import super_resolve
from pipeline.superres.system import load
from pipeline.superres.weights import choose

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.superres.system import System

Row = tuple[str, str, str]
# In the middle of a window of most lattices. Bands of 60 m are left out, whose sensor sees far: they would take nine.
AREA = Window(-79_872 + 144, 11_904 + 144, 96, 96)
BANDS = tuple(band for band in BAND_NAMES if BY_NAME[band].gsd_m < 60)
ATEN = torch.ops.aten
_PRODUCTS = {
    ATEN.convolution, ATEN.mm, ATEN.addmm, ATEN.bmm, ATEN.baddbmm, ATEN._scaled_dot_product_flash_attention_for_cpu,
    # in inference mode, before torch takes them apart
    ATEN.conv2d, ATEN.conv_transpose2d, ATEN.linear, ATEN.matmul, ATEN.einsum, ATEN.scaled_dot_product_attention,
}  # fmt: skip
_DROPPED_BITS = 13  # TF32 keeps 10 of the 23 bits of a fraction


class AsTf32(TorchDispatchMode):
    """Rounds the factors of convolutions and matrix products to 10 bits, halves away from zero, as tensor cores do."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in _PRODUCTS:
            args, kwargs = tree_map(rounded, (args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def rounded(value):
    """A float32 tensor rounded to TF32; anything else as it is."""
    if not (isinstance(value, torch.Tensor) and value.dtype == torch.float32):
        return value
    bits = value.contiguous().view(torch.int32) + (1 << (_DROPPED_BITS - 1))
    return (bits & -(1 << _DROPPED_BITS)).view(torch.float32)


@dataclass(frozen=True)
class Apart:
    """How DN of two results differ."""

    share: float
    mean: float
    largest: int

    @classmethod
    def of(cls, one: np.ndarray, other: np.ndarray) -> Apart:
        apart = np.abs(one.astype(np.int32) - other.astype(np.int32))
        return cls(float((apart > 0).mean()), float(apart.mean()), int(apart.max()))

    def __str__(self) -> str:
        return f"{100 * self.share:.1f} % / {self.mean:.3f} / {self.largest}"


def real_or_random(window: Window, data: Path) -> tuple[NativeRasters, bool]:
    """Rasters of a real patch of 12 bands, repeated over a window, or of random DN."""
    import rasterio

    patches = sorted(path for path in (data / "s2_l2a" / "bigearthnet").glob("*") if path.is_dir())
    names = {gsd: bands_at(gsd) for gsd in GSDS_M}
    dn = {}
    for gsd in GSDS_M:
        shape = window.coarsen(factor_at(gsd)).shape
        if not patches:
            dn[gsd] = np.random.default_rng(gsd).integers(1200, 4000, (len(names[gsd]), *shape), np.uint16)
            continue
        bands = []
        for band in names[gsd]:
            with rasterio.open(next(patches[0].glob(f"*_{band}.tif"))) as file:
                tile = file.read(1)
            mirrored = np.block([[tile, tile[:, ::-1]], [tile[::-1], tile[::-1, ::-1]]])  # no edge where they meet
            times = [-(-side // many) for side, many in zip(shape, mirrored.shape, strict=True)]
            bands.append(np.tile(mirrored, times)[: shape[0], : shape[1]] + 1000)  # today's convention
        dn[gsd] = np.stack(bands).astype(np.uint16)
    return NativeRasters(window, dn, names), bool(patches)


def computed(system: System, native: NativeRasters, area: Window, members: int) -> np.ndarray:
    """DN of the bands at 2.5 m."""
    return super_resolve(native, area, system, BANDS, Options(members=members), lambda _window: None).dn


def rows(data: Path, names: tuple[str, ...] = ()) -> Iterator[Row]:
    """Differences to float32 of every system with shipped weights. One draw where a system has no regression."""
    for name in names or shipped():
        choice = choose(name)
        exact = load(choice, "cpu")
        of = passes_of(exact.stages, BANDS)[0]
        native, real = real_or_random(of.read_window(AREA.pad(of.reach_px(Options()))).snap_out(24), data)
        members = min(1, mean_draws(exact.stages))
        began = time.process_time()
        expected = computed(exact, native, AREA, members)
        spent = time.process_time() - began
        where = f"{name}, {'a real patch' if real else 'random DN'}{', one draw' * members}"
        for precision in ("tf32", "bfloat16", "float16"):
            emulated = precision == "tf32"
            began = time.process_time()
            with AsTf32() if emulated else nullcontext():
                other = computed(exact if emulated else replace(exact, precision=precision), native, AREA, members)
            times = "" if emulated else f" ({(time.process_time() - began) / spent:.1f} times the CPU seconds)"
            what = f"{precision}{' (emulated)' * emulated}: share of DN that differ / mean / largest{times}"
            yield where, what, str(Apart.of(expected, other))


def shipped() -> tuple[str, ...]:
    """Systems with networks whose weights are shipped."""
    return tuple(name for name, spec in known().items() if spec.weights and all(one.shipped for one in spec.weights))
