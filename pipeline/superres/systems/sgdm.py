"""SGDM: RGB at 1.25 or 0.625 m by a generative prior, guided by a vector map and a style; all other bands by fusion.

What it makes is imagination guided by a map. `radiometry=keep` ties it to the measurement as any other system;
`radiometry=styled` gives the colours of the style instead, and the store then holds no reflectance.
"""

from __future__ import annotations

from dataclasses import replace
from shlex import quote
from typing import TYPE_CHECKING

from pipeline.bands import BRIGHT_REFLECTANCE, RGB
from pipeline.errors import UsageError
from pipeline.superres.declared import Condition, Option, Variants, word_and_count
from pipeline.superres.map_classes import map_classes
from pipeline.superres.spec import Input, Memory, Predictor, Stage, SystemSpec, Weights, lattice_of
from pipeline.superres.systems.guided_fusion import EITHER, build_fuser, fused, fusion_stage
from pipeline.superres.systems.guided_fusion import NAME as FUSION

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor

    from pipeline.models.bundle import Bundle
    from pipeline.models.guidance_parts import Style
    from pipeline.superres.declared import Settings
    from pipeline.superres.spec import Bundles, SceneState, StageInput

SR, PRIOR, STYLES = "sr", "prior", "style"  # roles of weights
COARSE = "coarse"
MEASURED_GSD_M = 10
SYNTHETIC = "its detail is imagined by a generative prior under the guidance of a map and is no estimate of the ground"
_OF_STYLE, _OF_CONTENT = "style", "content"  # of the state: statistics of a style image, and of the scene
_SCENE_WINDOWS = 16  # from which statistics of the scene are taken

SCALE = Option("scale", 0, "how many times finer than 10 m: 8 is 1.25 m, 16 is 0.625 m; 0 for that of the weights")
STEPS = Option("steps", 0, "sampling steps, 2 to 1000; 0 for the number of the weights", 0, 1000)
START = Option(
    "start",
    0.0,
    "share of the schedule at which sampling starts from the coarse image; 1 for noise, 0 for that of the weights",
    0,
    1,
)
STYLE = Option(
    "style",
    "none",
    "none for the colours of the scene, image for those of --condition style=FILE, sample for one that is drawn, "
    "sample:N for an image in each of N that are drawn",
    choices=("none", "image", "sample"),
    counted=("sample",),
)
SEED = Option("style_seed", 0, "which style is drawn with style=sample; the first of sample:N", 0, 2**31 - 1)
RADIOMETRY = Option(
    "radiometry",
    "keep",
    "keep to give the measured values back, styled for the colours of the style, which are no reflectance",
    choices=("keep", "styled"),
)
_CONVERT = "python -m training.convert --from"
TINY = "tiny"
PRIOR_FILE = Option(
    "prior", TINY, "tiny for the prior that ships, or a file: trained, or of training.convert --from stable-diffusion"
)
GUIDED = Option("map", "required", "none to go without a map", choices=("required", "none"))
MAP = Condition(
    "map",
    "a vector map with buildings, roads, railways, water, green and farmland",
    classes=map_classes(),
    exclusive=True,
)
STYLE_IMAGE = Condition(
    "style",
    "an image with red, green and blue, of any place, whose colours are wanted",
    kind="raster",
    bands=RGB,
    whole=True,
)


def _of_guidance(path: Path) -> str:
    """Return the command that converts the authors' checkpoint, one file; up to `--out`."""
    return "" if path.is_dir() else f"{_CONVERT} sgdm {quote(str(path))}"


def _of_styles(path: Path) -> str:
    """Return the command that converts the authors' flows, a folder or a file; up to `--out`."""
    return f"{_CONVERT} sgdm-style {quote(str(path))}"


def _of_prior(path: Path) -> str:
    """Return the command that converts Stable Diffusion; up to `--out`. Raises BundleError for another model's folder.

    One file does not have the texts, which come from a folder of the model.
    """
    from pipeline.models.diffusion_prior import PUBLISHED_PRIOR
    from pipeline.models.stable_diffusion import check_folder

    if not path.is_dir():
        return f"{_CONVERT} stable-diffusion {quote(str(path))} --text FOLDER_WITH_TOKENIZER"
    check_folder(path, PUBLISHED_PRIOR)
    return f"{_CONVERT} stable-diffusion {quote(str(path))}"


_SR_WEIGHTS = Weights(SR, ("sgdm",), "sgdm.safetensors", conversion=_of_guidance)
_PRIOR_WEIGHTS = Weights(PRIOR, ("sgdm-prior",), "sgdm-prior.safetensors", conversion=_of_prior)
_STYLE_WEIGHTS = Weights(STYLES, ("sgdm-style",), "sgdm-style.safetensors", conversion=_of_styles)
# The published networks have 1.0 thousand million parameters. Attention that guidance replaces is held twice.
_SMALL, _PUBLISHED = Memory(weights_mib=40.0, floats_per_px=400.0), Memory(weights_mib=4400.0, floats_per_px=1500.0)


def weights_of(options: Settings) -> tuple[Weights, ...]:
    """Return the weights: guidance, fusion, prior, and the distribution of styles where one is drawn."""
    named = "" if options[PRIOR_FILE.name] == TINY else str(options[PRIOR_FILE.name])
    prior = replace(_PRIOR_WEIGHTS, named=named)
    drawn = (_STYLE_WEIGHTS,) if _style(options) == "sample" else ()
    return _SR_WEIGHTS, EITHER, prior, *drawn


def conditions_of(options: Settings) -> tuple[Condition, ...]:
    """Return the map, unless the options go without, and the image whose style is wanted."""
    maps = () if options[GUIDED.name] == "none" else (MAP,)
    return (*maps, STYLE_IMAGE) if _style(options) == "image" else maps


def variants_of(options: Settings) -> Variants:
    """Return the seeds of the styles, in each of which there is an image, if several were asked for."""
    first, count = int(options[SEED.name]), word_and_count(options[STYLE.name])[1]
    return Variants(STYLES, tuple(range(first, first + count))) if count else Variants()


def _style(options: Settings) -> str:
    """Return where the style is from: none, image or sample."""
    return word_and_count(options[STYLE.name])[0]


def memory_of(bundles: Bundles) -> Memory:
    """Return the memory of the small prior, or of Stable Diffusion."""
    return _SMALL if bundles[PRIOR].architecture.get("networks") == "small" else _PUBLISHED


def stages(bundles: Bundles, options: Settings) -> tuple[Stage, ...]:
    """Return the guided stage and the fusion. Raises UsageError for a scale or style that the weights do not have."""
    from pipeline.models.diffusion_prior import stride_of

    guidance = bundles[SR]
    scale = _scale(guidance, int(options[SCALE.name]))
    _check(guidance, options)
    gsd_m = MEASURED_GSD_M / scale
    reads = [Input(COARSE, RGB, MEASURED_GSD_M)]
    if options[GUIDED.name] != "none":
        reads.append(Input(MAP.name, MAP.channels, gsd_m, MAP.source))
    guided = Stage(
        SR,
        reads=tuple(reads),
        gives=RGB,
        gsd_m=gsd_m,
        lattice=lattice_of(guidance),
        stochastic=True,
        scene_state=_style(options) != "none",
        whole=(STYLE_IMAGE.name,) if _style(options) == "image" else (),
        weights=SR,
        multiple_px=8 * stride_of(bundles[PRIOR].architecture),  # the U-Net halves latents three times
        bright_reflectance=float(guidance.normalisation.get("white", BRIGHT_REFLECTANCE)),
    )
    return guided, fusion_stage(bundles[FUSION], guided)


def _scale(guidance: Bundle, wanted: int) -> int:
    """Return the scale. Raises UsageError if the weights were not trained for it."""
    known = guidance.architecture.get("scales") or [guidance.scale]
    if wanted and wanted not in known:
        raise UsageError(
            f"--option {SCALE.name}={wanted} with weights {guidance.path}", f"{' or '.join(map(str, known))}, or 0"
        )
    return wanted or int(guidance.scale)


class MapGuided(Predictor):
    """The guided prior and a fusion."""

    def __init__(self, bundles: Bundles, options: Settings) -> None:
        from pipeline.models.sgdm import SGDM
        from pipeline.models.tone import Tone

        self.guided = SGDM.from_bundles(bundles[SR], bundles[PRIOR], bundles.get(STYLES))
        self.tone = Tone.of(bundles[SR].normalisation)
        seeds = variants_of(options).numbers or (int(options[SEED.name]),)
        self.styles = {seed: self._drawn(seed) for seed in seeds} if _style(options) == "sample" else {}
        self.fuser = build_fuser(bundles[FUSION])

    def to(self, device: torch.device) -> MapGuided:
        """Move the weights and return self."""
        self.guided, self.fuser = self.guided.to(device), self.fuser.to(device)
        return self

    def scene_state(self, stage: Stage, windows: Tensor) -> SceneState:
        """Return the statistics of the scene's features, which a style replaces: the same for all of its windows.

        They are taken without a map, which the planning does not read over the scene.
        """
        import torch

        with torch.inference_mode():
            coarse = [self._coarse(stage, window[None]) for window in windows[:_SCENE_WINDOWS]]
            found = self.guided.content_of_scene(coarse)
        return _numbers(_OF_CONTENT, found)

    def image_state(self, condition: str, image: Tensor) -> SceneState:
        """Return the style of an image: mean and deviation of its features, by channel, where it has pixels."""
        import torch

        try:
            with torch.inference_mode():
                return _numbers(_OF_STYLE, self.guided.style_of_picture(image))
        except ValueError as error:
            found, _, expected = str(error).partition("; expected ")
            raise UsageError(f"--condition {condition}: {found}", expected) from None

    def predict(self, stage: Stage, given: StageInput) -> Tensor:
        """Return the reflectance of a batch of windows. Raises ValueError without noise."""
        if stage.name == FUSION:
            return fused(self.fuser, stage, given)
        noise = given.noise
        if noise is None:
            msg = "no noise given; expected some, since the system has no regression"
            raise ValueError(msg)
        image = self.guided.sample(
            self._coarse(stage, given.images[COARSE]),
            self._map(given),
            self._style(given),
            lambda number: noise(step=number, channels=self.guided.latents, coarser=self.guided.stride),
            int(given.options[STEPS.name]),
            content=_statistics(_OF_CONTENT, given),
            start=float(given.options[START.name]),
        )
        return self.tone.to_reflectance(image)

    def _coarse(self, stage: Stage, reflectance: Tensor) -> Tensor:
        """Return the coarse image (b, 3, T, T), 0 to 1, on the grid of the output."""
        from pipeline.models.resampling import upsample

        return upsample(self.tone.to_image(reflectance), round(MEASURED_GSD_M / stage.gsd_m)).clamp(0, 1)

    def _map(self, given: StageInput) -> Tensor | None:
        """Return the map as the weights take it, None without one."""
        found = given.images.get(MAP.name)
        return None if found is None else self.guided.as_trained(found, MAP.channels)

    def _style(self, given: StageInput) -> Style | None:
        """Return the style drawn, or that of the given image; None if none is wanted. Raises ValueError without it."""
        if self.styles:
            only = next(iter(self.styles))
            drawn = self.styles[given.variant if len(self.styles) > 1 else only]
            return drawn.to(given.images[COARSE].device)
        found = _statistics(_OF_STYLE, given)
        if found is None and _style(given.options) == "image":
            msg = "no style given; expected that of an image"
            raise ValueError(msg)
        return found

    def _drawn(self, seed: int) -> Style:
        """Return the style of a seed, the same in every process."""
        import torch

        noise = torch.randn(1, 2, self.guided.guidance.style_width, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            return self.guided.draw_style(noise)


def _check(guidance: Bundle, options: Settings) -> None:
    """Raise UsageError for options that do not go together, or not with the weights."""
    style, seed, steps = _style(options), options[SEED.name], options[STEPS.name]
    variant = guidance.architecture["guidance"].get("variant", "real")
    if steps == 1:
        raise UsageError(f"--option {STEPS.name}=1", "2 to 1000, or 0")
    if style == "none" and options[RADIOMETRY.name] == "styled":
        raise UsageError(
            f"--option {RADIOMETRY.name}=styled with {STYLE.name}=none", f"{STYLE.name}=image or {STYLE.name}=sample"
        )
    if style != "sample" and seed != SEED.default:
        raise UsageError(f"--option {SEED.name}={seed} with {STYLE.name}={style}", f"{STYLE.name}=sample")
    if style != "none" and variant != "real":
        raise UsageError(f"--option {STYLE.name}={style} with weights {guidance.path}", "weights with styles")
    if variant == "no-map" and options[GUIDED.name] != "none":
        raise UsageError(
            f"weights {guidance.path}, which take no map", f"--option {GUIDED.name}=none, or weights with maps"
        )


def _numbers(name: str, style: Style) -> SceneState:
    return {f"{name}_mean": style.mean[0].tolist(), f"{name}_deviation": style.std[0].tolist()}


def _statistics(name: str, given: StageInput) -> Style | None:
    """Return statistics from the state, (1, C); None if it has none of this name."""
    from pipeline.models.constants import constant
    from pipeline.models.guidance_parts import Style

    if not given.state or f"{name}_mean" not in given.state:
        return None
    like = given.images[COARSE]
    return Style(*(constant(given.state[f"{name}_{of}"], like)[None] for of in ("mean", "deviation")))


SYSTEM = SystemSpec(
    name="sgdm",
    summary="a generative prior guided by a vector map (SGDM): imagined detail at 1.25 or 0.625 m, opt-in",
    stages=stages,
    build=MapGuided,
    weights=(_SR_WEIGHTS, EITHER, _PRIOR_WEIGHTS),
    weights_of=weights_of,
    memory=_SMALL,
    memory_of=memory_of,
    options=(SCALE, STEPS, START, STYLE, SEED, RADIOMETRY, PRIOR_FILE, GUIDED),
    conditions=(MAP, STYLE_IMAGE),
    conditions_of=conditions_of,
    synthetic=SYNTHETIC,
    variants=variants_of,
    restyles=lambda options: options[RADIOMETRY.name] == "styled",
)
