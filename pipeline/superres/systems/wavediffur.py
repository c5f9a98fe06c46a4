"""WaveDiffUR: a cascade of x2 levels by one network, or of steps by another system, with a fusion for all other bands.

Levels down to 2.5 m run in one pass with the fusion. Every finer level is a pass of its own over the group above.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline.bands import RGB, TARGET_GSD_M, bands_at
from pipeline.errors import UsageError
from pipeline.superres.declared import Condition, Option
from pipeline.superres.spec import (
    FINISHED,
    MEASURED,
    Input,
    Memory,
    Predictor,
    Stage,
    SystemSpec,
    Weights,
    lattice_of,
)
from pipeline.superres.systems import PLAIN, backbone
from pipeline.superres.systems.guided_fusion import NAME as FUSION
from pipeline.superres.systems.guided_fusion import NATIVE, SHIPPED, build_fuser, fused, fusion_stage

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipeline.grid.lattice import Lattice
    from pipeline.models.bundle import Bundle
    from pipeline.superres.declared import Settings
    from pipeline.superres.spec import Bundles, SceneState, StageInput

SR, IMAGE = "sr", "image"
OWN = "wavelet"  # value of the option `backbone` for this system's own network
MEASURED_GSD_M = 10
SCALES = (2, 4, 8, 16, 32, 64, 128)
SCALE = Option("scale", 4, "how many times finer than 10 m, a power of 2: 4 is 2.5 m, 16 is 0.625 m", 2, 128)
BACKBONE = Option(
    "backbone", OWN, f"{OWN} for x2 levels by its own network, {PLAIN} for interpolation, or another --sr as the step"
)
TAU = Option(
    "tau", "exact", "literal for the paper's eq. 6 word by word, a worse estimate", choices=("exact", "literal")
)
REFERENCE = Condition(
    "reference",
    "a finer image of the same ground with the bands red, green and blue",
    kind="raster",
    bands=RGB,
    resampling="area",
    required=False,
    nodata=math.nan,
    coarsest_px=2.0,
)
OWN_WEIGHTS = Weights(SR, ("wavediffur-sr",), "wavediffur-sr.safetensors")


def weights_of(options: Settings) -> tuple[Weights, ...]:
    """Return the weights of the backbone, and those of the fusion. Raises UsageError for no system's name."""
    name = str(options[BACKBONE.name])
    if name == OWN:
        return OWN_WEIGHTS, SHIPPED
    if name == "wavediffur":
        raise UsageError(f"--option {BACKBONE.name}={name}", f"{OWN}, or another system")
    return (SHIPPED,) if name == PLAIN else backbone.weights_of(name)


def stages(bundles: Bundles, options: Settings) -> tuple[Stage, ...]:
    """Return the levels, and the fusion behind the first of 2.5 m or finer. Raises UsageError for what does not fit."""
    scale, name = int(options[SCALE.name]), str(options[BACKBONE.name])
    if scale not in SCALES:
        raise UsageError(f"--option {SCALE.name}={scale}", f"one of {', '.join(map(str, SCALES))}")
    if name != OWN and options[TAU.name] != TAU.default:
        raise UsageError(f"--option {TAU.name}={options[TAU.name]} with {BACKBONE.name}={name}", f"the backbone {OWN}")
    if name in (OWN, PLAIN):
        levels = _own_levels(bundles, scale, name)
    else:
        levels = _steps(backbone.backbone_of(name, bundles), scale)
    guide = next(number for number, stage in enumerate(levels) if stage.gsd_m <= TARGET_GSD_M)
    fusion = fusion_stage(bundles[FUSION], levels[guide], lattice_of(bundles[FUSION]))
    return (*levels[: guide + 1], fusion, *levels[guide + 1 :])


def _own_levels(bundles: Bundles, scale: int, name: str) -> list[Stage]:
    """Return x2 levels by the own network, or by interpolation."""
    if name == OWN:
        bundle = bundles[SR]
        _check(bundle)
        bands, lattice = bundle.out_bands, lattice_of(bundle)
    else:
        bands, lattice = NATIVE[MEASURED_GSD_M], lattice_of(bundles[FUSION])
    return [_level(bands, lattice, number, scale, drawn=name == OWN) for number in range(1, scale.bit_length())]


def _level(bands: tuple[str, ...], lattice: Lattice, number: int, scale: int, *, drawn: bool) -> Stage:
    """Return one x2 level by its number from 1. The only level of x2 is interpolated from 5 to 2.5 m."""
    coarse_m = MEASURED_GSD_M / 2 ** (number - 1)
    fine_m = coarse_m / 2
    reads = [Input(IMAGE, bands, coarse_m, _source(number, coarse_m))]
    if drawn:
        reads.append(Input(REFERENCE.name, RGB, fine_m, REFERENCE.source))
    return Stage(
        _name(number),
        reads=tuple(reads),
        gives=bands,
        gsd_m=TARGET_GSD_M if scale == 2 else fine_m,
        lattice=lattice,
        stochastic=drawn,
        regresses=drawn,
        weights=SR if drawn else "",
        multiple_px=(8 if scale == 2 else 4) if drawn else 1,  # draws need an input of even sides
        local=True,
    )


def _steps(step: backbone.Backbone, scale: int) -> list[Stage]:
    """Return the steps of another system's network. Raises UsageError unless they make up the scale."""
    count = round(math.log(scale, step.factor))
    if step.factor**count != scale:
        fitting = [str(one) for one in SCALES if step.factor ** round(math.log(one, step.factor)) == one]
        raise UsageError(
            f"--option {SCALE.name}={scale} with {BACKBONE.name}={step.name}, which goes x{step.factor} at once",
            f"one of {', '.join(fitting)}",
        )
    coarse = [MEASURED_GSD_M / step.factor**number for number in range(count)]
    return [step.at(_name(number), gsd_m, _source(number, gsd_m)) for number, gsd_m in enumerate(coarse, 1)]


def _source(number: int, coarse_m: float) -> str:
    """Return what a level reads: the measured bands, a finished group, or the level before it."""
    if number == 1:
        return MEASURED
    return FINISHED if coarse_m <= TARGET_GSD_M else _name(number - 1)


def _name(number: int) -> str:
    return f"level {number}"


def _check(bundle: Bundle) -> None:
    """Raise UsageError for weights without RGB, or with bands that are not of 10 m."""
    if not set(RGB) <= set(bundle.out_bands) <= set(bands_at(MEASURED_GSD_M)):
        raise UsageError(
            f"weights {bundle.path} are for {', '.join(bundle.out_bands)}",
            f"{', '.join(RGB)}, which guide the other bands, and no band but those of 10 m",
        )


class Cascade(Predictor):
    """Levels of `WaveDiffUR`, of interpolation, or of another system's network; and a fusion."""

    def __init__(self, bundles: Bundles, options: Settings) -> None:
        name = str(options[BACKBONE.name])
        self.own, self.other, self.step = None, None, None
        if name == OWN:
            from pipeline.models.wavediffur import WaveDiffUR

            self.own = WaveDiffUR.from_bundle(bundles[SR])
        elif name != PLAIN:
            self.step = backbone.backbone_of(name, bundles)
            self.other = self.step.built(bundles)
        self.fuser = build_fuser(bundles[FUSION])

    def to(self, device: torch.device) -> Cascade:
        """Move the weights and return self."""
        self.own = self.own and self.own.to(device)
        self.other = self.other and self.other.to(device)
        self.fuser = self.fuser.to(device)
        return self

    def scene_state(self, stage: Stage, windows: Tensor) -> SceneState:
        """Return what the backbone needs to know of a scene."""
        return super().scene_state(stage, windows) if self.other is None else self.other.scene_state(stage, windows)

    def predict(self, stage: Stage, given: StageInput) -> Tensor:
        """Return the reflectance of a batch of windows. Means over the pixels of a level's input are that input.

        Only the measured level leaves this to the sensor's contract. No level adds reflectance below zero.
        """
        if stage.name == FUSION:
            return fused(self.fuser, stage, given)
        measured = stage.reads[0].gsd_m == MEASURED_GSD_M
        if self.own is not None:
            return self._own_level(stage, given, measured)
        from pipeline.models.wavelet import consistent, not_below_zero, twice

        if self.step is None or self.other is None:
            image = given.images[IMAGE]
            return _whole(stage, not_below_zero(consistent(twice(image), image), image))
        found = self.step.predict(self.other, given)
        image = given.images[self.step.input]
        return found if measured else not_below_zero(consistent(found, image), image)

    def _own_level(self, stage: Stage, given: StageInput, measured: bool) -> Tensor:
        from dataclasses import replace

        assert self.own is not None
        image = given.images[IMAGE]
        left, noise = _left(stage), given.noise
        drawn = None if noise is None else (lambda draw, channels, px: noise(draw, channels, px * left))
        options = replace(self.own.options, tau="literal" if given.options[TAU.name] == "literal" else "exact")
        return _whole(stage, self.own.level(image, drawn, self._reference(stage, given), options, measured=measured))

    def _reference(self, stage: Stage, given: StageInput) -> Tensor | None:
        """Return the reference fitted to a level's input, NaN for bands and ground without; None if none was given."""
        if REFERENCE.name not in given.present:
            return None
        from pipeline.models.reference import fitted_bands

        bands = stage.input(IMAGE).bands
        return fitted_bands(given.images[REFERENCE.name], given.images[IMAGE], [bands.index(band) for band in RGB])


def _left(stage: Stage) -> int:
    """Return the factor that a stage's x2 leaves to interpolation: 2 for the only level of x2, which gives 2.5 m."""
    return round(stage.input(IMAGE).gsd_m / (2 * stage.gsd_m))


def _whole(stage: Stage, image: Tensor) -> Tensor:
    """Return an image of 5 m interpolated to the stage's window, others as they are."""
    from pipeline.models.lite import finer

    left = _left(stage)
    return image if left == 1 else finer(image, left)


SYSTEM = SystemSpec(
    name="wavediffur",
    summary="wavelet cascade of x2 levels (WaveDiffUR), down to 2.5 m for all bands and to 0.08 m for its own",
    stages=stages,
    build=Cascade,
    weights=(OWN_WEIGHTS, SHIPPED),
    weights_of=weights_of,
    memory=Memory(weights_mib=130.0, floats_per_px=500.0),
    options=(SCALE, BACKBONE, TAU),
    conditions=(REFERENCE,),
)
