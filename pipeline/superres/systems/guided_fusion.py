"""The fusion stage, which brings all other bands to 2.5 m, guided by super-resolved RGB."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

from pipeline.bands import BLOCK_60M, BRIGHT_REFLECTANCE, RGB, TARGET_GSD_M, bands_at
from pipeline.errors import UsageError
from pipeline.superres.spec import Input, Stage, Weights, lattice_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from pipeline.grid.lattice import Lattice
    from pipeline.models.bundle import Bundle
    from pipeline.superres.spec import Bundles, StageInput

NAME = "fusion"
GUIDE = "guide"
SHIPPED = Weights(NAME, ("lite-fusion",), "lite-fusion.safetensors")
EITHER = Weights(NAME, ("difffusr-fusion", "lite-fusion"), SHIPPED.shipped)
# Channel order of the native rasters.
NATIVE: dict[int, tuple[str, ...]] = {10: (*RGB, "B08"), 20: bands_at(20), 60: bands_at(60)}


class Fuser(Protocol):
    """The networks of one fusion."""

    bundle: Bundle
    out_bands: tuple[str, ...]

    def to(self, device: torch.device) -> Fuser:
        """Move the weights and return self."""
        ...

    def predict(self, rgb_sr: Tensor, ms: Mapping[int, Tensor], present: tuple[str, ...]) -> Tensor:
        """Return reflectance (b, len(out_bands), 4h, 4w) from RGB (b, 3, 4h, 4w) and `NATIVE` rasters by GSD in metres.

        `ms[10]` is (b, 4, h, w), `ms[20]` (b, 6, h/2, w/2), `ms[60]` (b, 2, h/6, w/6). Bands that the product lacks are
        zeros and not among `present`.
        """
        ...


def resolve_then_fuse(
    bundles: Bundles,
    bands: tuple[str, ...] = RGB,
    *,
    gsd_m: float = TARGET_GSD_M,
    regresses: bool = False,
    scene_state: bool = False,
    multiple_px: int = 1,
) -> tuple[Stage, ...]:
    """Return two stages: `bands`, RGB among them, from 10 m by a stochastic network; then the fusion of all others.

    The network has the weights "sr" and gives its bands at `gsd_m`, 2.5 m or finer. Where it is 2.5 m, both stages
    share windows.
    """
    sr, lattice = bundles["sr"], lattice_of(bundles["sr"])
    resolve = Stage(
        "sr",
        reads=(Input("coarse", bands, 10),),
        gives=bands,
        gsd_m=gsd_m,
        lattice=lattice,
        stochastic=True,
        regresses=regresses,
        scene_state=scene_state,
        weights="sr",
        multiple_px=multiple_px,
        bright_reflectance=float(sr.normalisation.get("bright_reflectance", BRIGHT_REFLECTANCE)),
    )
    return resolve, fusion_stage(bundles[NAME], resolve)


def fusion_stage(bundle: Bundle, guide: Stage, lattice: Lattice | None = None, made: tuple[str, ...] = ()) -> Stage:
    """Return the stage for every band of `bundle` that the stage `guide` does not give, guided by its RGB.

    `lattice`: its windows; by default those of `guide` if they fit, else those of the bundle. `made`: bands that other
    stages give.
    """
    lattice = lattice or (guide.lattice if _fits(guide) else lattice_of(bundle))
    natives = (Input(f"native_{gsd}m", bands, gsd, optional=True) for gsd, bands in NATIVE.items())
    return Stage(
        NAME,
        reads=(Input(GUIDE, RGB, guide.gsd_m, source=guide.name), *natives),
        gives=tuple(band for band in bundle.out_bands if band not in (*guide.gives, *made)),
        gsd_m=TARGET_GSD_M,
        lattice=lattice,
        weights=NAME,
        bright_reflectance=math.inf,  # the guide's stage decides where there is detail
    )


def _fits(guide: Stage) -> bool:
    """Return whether the windows of a guide are at 2.5 m and hold whole pixels of 60 m."""
    whole = guide.lattice.stride_px % BLOCK_60M == 0 and guide.lattice.reach_px % BLOCK_60M == 0
    return guide.gsd_m == TARGET_GSD_M and whole


def build_fuser(bundle: Bundle) -> Fuser:
    """Return the fusion of a bundle, on the CPU. Raises BundleError on a misfit, UsageError on other kinds."""
    if bundle.system == "lite-fusion":
        from pipeline.models.lite_fusion import LiteFusion

        return LiteFusion.from_bundle(bundle)
    if bundle.system == "difffusr-fusion":
        from pipeline.models.difffusr_fusion import DiffFuSRFusion

        return DiffFuSRFusion.from_bundle(bundle)
    raise UsageError(f"weights {bundle.path} are for {bundle.system!r}", " or ".join(EITHER.kinds))


def fused(fuser: Fuser, stage: Stage, given: StageInput) -> Tensor:
    """Return the output of the fusion stage. A guide finer than 2.5 m is averaged."""
    from torch.nn import functional

    natives, guide = {gsd: given.images[f"native_{gsd}m"] for gsd in NATIVE}, given.images[GUIDE]
    times = guide.shape[-1] // stage.lattice.window_px
    found = fuser.predict(guide if times == 1 else functional.avg_pool2d(guide, times), natives, tuple(given.present))
    return found if stage.gives == fuser.out_bands else found[:, [fuser.out_bands.index(band) for band in stage.gives]]
