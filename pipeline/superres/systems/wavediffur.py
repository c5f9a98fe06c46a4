"""WaveDiffUR: a wavelet cascade of x2 levels by one network, from x2 to x128, with a fusion for all other bands.

Levels down to 2.5 m run in one pass with the fusion. Every finer level is a pass of its own over the group above.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.bands import RGB, TARGET_GSD_M, bands_at
from pipeline.errors import UsageError
from pipeline.superres.declared import Option
from pipeline.superres.spec import FINISHED, Input, Memory, Predictor, Stage, SystemSpec, Weights, lattice_of
from pipeline.superres.systems.guided_fusion import NAME as FUSION
from pipeline.superres.systems.guided_fusion import SHIPPED, build_fuser, fused, fusion_stage

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipeline.models.bundle import Bundle
    from pipeline.superres.declared import Settings
    from pipeline.superres.spec import Bundles, StageInput

SR = "sr"
MEASURED_GSD_M = 10
SCALES = (2, 4, 8, 16, 32, 64, 128)
SCALE = Option("scale", 4, "how many times finer than 10 m, a power of 2: 4 is 2.5 m, 16 is 0.625 m", 2, 128)


def stages(bundles: Bundles, options: Settings) -> tuple[Stage, ...]:
    """Return the levels, and the fusion behind the one of 2.5 m. Raises UsageError for unfit weights or scales."""
    bundle, scale = bundles[SR], int(options[SCALE.name])
    _check(bundle, scale)
    levels = [_level(bundle, number, scale) for number in range(1, scale.bit_length())]
    at_target = next(number for number, stage in enumerate(levels) if stage.gsd_m == TARGET_GSD_M)
    fusion = fusion_stage(bundles[FUSION], levels[at_target], lattice_of(bundles[FUSION]))
    return (*levels[: at_target + 1], fusion, *levels[at_target + 1 :])


def _level(bundle: Bundle, number: int, scale: int) -> Stage:
    """Return one level by its number from 1. The only level of x2 is interpolated from 5 to 2.5 m."""
    bands, coarse_m = bundle.out_bands, MEASURED_GSD_M / 2 ** (number - 1)
    if number == 1:
        read = Input("image", bands, MEASURED_GSD_M)
    else:
        finished = coarse_m <= TARGET_GSD_M
        read = Input("image", bands, coarse_m, FINISHED if finished else _name(number - 1))
    return Stage(
        _name(number),
        reads=(read,),
        gives=bands,
        gsd_m=TARGET_GSD_M if scale == 2 else coarse_m / 2,
        lattice=lattice_of(bundle),
        stochastic=True,
        regresses=True,
        weights=SR,
    )


def _name(number: int) -> str:
    return f"level {number}"


def _check(bundle: Bundle, scale: int) -> None:
    """Raise UsageError for a scale that is no power of 2, and weights without RGB or with other bands than of 10 m."""
    if scale not in SCALES:
        raise UsageError(f"--option scale={scale}", f"one of {', '.join(map(str, SCALES))}")
    if not set(RGB) <= set(bundle.out_bands) <= set(bands_at(MEASURED_GSD_M)):
        raise UsageError(
            f"weights {bundle.path} are for {', '.join(bundle.out_bands)}",
            f"{', '.join(RGB)}, which guide the other bands, and no band but those of 10 m",
        )


class Cascade(Predictor):
    """`WaveDiffUR`, level by level, and a fusion."""

    def __init__(self, bundles: Bundles, options: Settings) -> None:
        from pipeline.models.wavediffur import WaveDiffUR

        del options
        self.resolver = WaveDiffUR.from_bundle(bundles[SR])
        self.fuser = build_fuser(bundles[FUSION])

    def to(self, device: torch.device) -> Cascade:
        """Move the weights and return self."""
        self.resolver, self.fuser = self.resolver.to(device), self.fuser.to(device)
        return self

    def predict(self, stage: Stage, given: StageInput) -> Tensor:
        """Return the reflectance of a batch of windows."""
        if stage.name == FUSION:
            return fused(self.fuser, stage, given)
        from pipeline.models.lite import finer

        image, measured = given.images["image"], stage.input("image").gsd_m == MEASURED_GSD_M
        left = stage.lattice.window_px // (2 * image.shape[-1])
        noise = given.noise
        drawn = None if noise is None else (lambda draw, channels, px: noise(draw, channels, px * left))
        found = self.resolver.level(image, drawn, measured=measured)
        return found if left == 1 else finer(found, left)


SYSTEM = SystemSpec(
    name="wavediffur",
    summary="wavelet cascade of x2 levels (WaveDiffUR), down to 2.5 m for all bands and to 0.08 m for its own",
    stages=stages,
    build=Cascade,
    weights=(Weights(SR, ("wavediffur-sr",)), SHIPPED),
    stochastic=True,
    regresses=True,
    memory=Memory(weights_mib=130.0, floats_per_px=500.0),
    options=(SCALE,),
)
