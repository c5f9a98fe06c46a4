"""SGDM: RGB at 1.25 or 0.625 m by a generative prior, guided by a vector map and a style; all other bands by fusion.

What it makes is imagination guided by a map. `radiometry=keep` ties it to the measurement as any other system;
`radiometry=styled` gives the colours of the style instead, and the store then holds no reflectance.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.bands import RGB
from pipeline.errors import UsageError
from pipeline.superres.declared import Condition, Option
from pipeline.superres.map_classes import map_classes
from pipeline.superres.spec import Input, Memory, Predictor, Stage, SystemSpec, Weights, lattice_of
from pipeline.superres.systems.guided_fusion import EITHER, build_fuser, fused, fusion_stage
from pipeline.superres.systems.guided_fusion import NAME as FUSION

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipeline.models.bundle import Bundle
    from pipeline.models.guidance_parts import Style
    from pipeline.superres.declared import Settings
    from pipeline.superres.spec import Bundles, SceneState, StageInput

SR, PRIOR, STYLES = "sr", "prior", "style"  # roles of weights
COARSE = "coarse"
MEASURED_GSD_M = 10
TINY = "tiny"
SYNTHETIC = "its detail is imagined by a generative prior under the guidance of a map and is no estimate of the ground"
_MEAN, _DEVIATION = "style_mean", "style_deviation"  # of the state that a style image gives

SCALE = Option("scale", 0, "how many times finer than 10 m: 8 is 1.25 m, 16 is 0.625 m; 0 for that of the weights")
STEPS = Option("steps", 0, "sampling steps; 0 for the number of the weights", 0, 1000)
STYLE = Option(
    "style",
    "none",
    "none for the colours of the scene, image for those of --condition style=FILE, sample for one that is drawn",
    choices=("none", "image", "sample"),
)
SEED = Option("style_seed", 0, "which style is drawn", 0, 2**31 - 1)
RADIOMETRY = Option(
    "radiometry",
    "keep",
    "keep to give the measured values back, styled for the colours of the style, which are no reflectance",
    choices=("keep", "styled"),
)
PRIOR_FILE = Option("prior", TINY, "tiny for the one that ships, or a file of training.convert --from stable-diffusion")
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
_SR_WEIGHTS = Weights(SR, ("sgdm",), "sgdm.safetensors")
_PRIOR_WEIGHTS = Weights(PRIOR, ("sgdm-prior",), "sgdm-prior.safetensors")
_STYLE_WEIGHTS = Weights(STYLES, ("sgdm-style",), "sgdm-style.safetensors")
# Of the published networks: 1.3 thousand million parameters.
_SMALL, _PUBLISHED = Memory(weights_mib=40.0, floats_per_px=400.0), Memory(weights_mib=4400.0, floats_per_px=1500.0)


def weights_of(options: Settings) -> tuple[Weights, ...]:
    """Return the weights: guidance, fusion, prior, and the distribution of styles where one is drawn."""
    named = str(options[PRIOR_FILE.name])
    prior = _PRIOR_WEIGHTS if named == TINY else replace(_PRIOR_WEIGHTS, named=named)
    drawn = (_STYLE_WEIGHTS,) if options[STYLE.name] == "sample" else ()
    return _SR_WEIGHTS, EITHER, prior, *drawn


def conditions_of(options: Settings) -> tuple[Condition, ...]:
    """Return the map, unless the options go without, and the image whose style is wanted."""
    maps = () if options[GUIDED.name] == "none" else (MAP,)
    return (*maps, STYLE_IMAGE) if options[STYLE.name] == "image" else maps


def memory_of(bundles: Bundles) -> Memory:
    """Return the memory of the small prior, or of Stable Diffusion."""
    return _SMALL if bundles[PRIOR].architecture.get("networks") == "small" else _PUBLISHED


def stages(bundles: Bundles, options: Settings) -> tuple[Stage, ...]:
    """Return the guided stage and the fusion. Raises UsageError for a scale or style that the weights do not have."""
    guidance = bundles[SR]
    scale = _scale(guidance, int(options[SCALE.name]))
    if options[STYLE.name] == "none" and options[RADIOMETRY.name] == "styled":
        raise UsageError(
            f"--option {RADIOMETRY.name}=styled with {STYLE.name}=none", f"{STYLE.name}=image or {STYLE.name}=sample"
        )
    if options[STYLE.name] != "none" and guidance.architecture["guidance"].get("variant") != "real":
        raise UsageError(
            f"--option {STYLE.name}={options[STYLE.name]} with weights {guidance.path}", "weights with styles"
        )
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
        whole=(STYLE_IMAGE.name,) if options[STYLE.name] == "image" else (),
        weights=SR,
        multiple_px=8 * _stride(bundles[PRIOR]),  # the U-Net halves latents three times
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


def _stride(prior: Bundle) -> int:
    """Return the pixels of an image per pixel of its latent."""
    return int(2 ** (len(prior.architecture["vae"]["block_out_channels"]) - 1))


class MapGuided(Predictor):
    """The guided prior and a fusion."""

    def __init__(self, bundles: Bundles, options: Settings) -> None:
        from pipeline.models.sgdm import SGDM
        from pipeline.models.tone import Tone

        self.guided = SGDM.from_bundles(bundles[SR], bundles[PRIOR], bundles.get(STYLES))
        self.tone = Tone.of(bundles[SR].normalisation)
        self.style = self._drawn(int(options[SEED.name])) if options[STYLE.name] == "sample" else None
        self.fuser = build_fuser(bundles[FUSION])

    def to(self, device: torch.device) -> MapGuided:
        """Move the weights and return self."""
        self.guided, self.fuser = self.guided.to(device), self.fuser.to(device)
        return self

    def image_state(self, condition: str, image: Tensor) -> SceneState:
        """Return the style of an image: mean and deviation of its features, by channel."""
        import torch

        del condition
        if bool(torch.isnan(image).any()):
            image = image.nan_to_num(float(image.nanmean()))
        with torch.inference_mode():
            style = self.guided.style_statistics(_whole(image, self.guided.guidance.stride))
        return {_MEAN: style.mean[0].tolist(), _DEVIATION: style.std[0].tolist()}

    def predict(self, stage: Stage, given: StageInput) -> Tensor:
        """Return the reflectance of a batch of windows. Raises ValueError without noise."""
        if stage.name == FUSION:
            return fused(self.fuser, stage, given)
        noise = given.noise
        if noise is None:
            msg = "no noise given; expected some, since the system has no regression"
            raise ValueError(msg)
        from pipeline.models.lite import upsample

        coarse = upsample(self.tone.to_image(given.images[COARSE]), round(MEASURED_GSD_M / stage.gsd_m)).clamp(0, 1)
        image = self.guided.sample(
            coarse,
            self._map(given),
            self._style(given),
            lambda number: noise(step=number, channels=self.guided.latents, coarser=self.guided.stride),
            int(given.options[STEPS.name]),
        )
        return self.tone.to_reflectance(image)

    def _map(self, given: StageInput) -> Tensor | None:
        """Return the map as the weights take it, None without one."""
        found = given.images.get(MAP.name)
        return None if found is None else self.guided.as_trained(found, MAP.channels)

    def _style(self, given: StageInput) -> Style | None:
        """Return the style drawn, or that of the given image."""
        from pipeline.models.guidance_parts import Style

        device = given.images[COARSE].device
        if self.style is not None:
            return Style(self.style.mean.to(device), self.style.std.to(device))
        if not given.state:
            return None
        mean, deviation = (given.images[COARSE].new_tensor(given.state[name])[None] for name in (_MEAN, _DEVIATION))
        return Style(mean, deviation)

    def _drawn(self, seed: int) -> Style:
        """Return the style of a seed, the same in every process."""
        import torch

        noise = torch.randn(1, 2, self.guided.guidance.style_width, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            return self.guided.draw_style(noise)


def _whole(image: Tensor, multiple: int) -> Tensor:
    """Return an image cut to whole features."""
    height, width = (max(multiple, side // multiple * multiple) for side in image.shape[-2:])
    return image[..., :height, :width]


SYSTEM = SystemSpec(
    name="sgdm",
    summary="a generative prior guided by a vector map (SGDM): imagined detail at 1.25 or 0.625 m, opt-in",
    stages=stages,
    build=MapGuided,
    weights=(_SR_WEIGHTS, EITHER, _PRIOR_WEIGHTS),
    weights_of=weights_of,
    memory=_SMALL,
    memory_of=memory_of,
    options=(SCALE, STEPS, STYLE, SEED, RADIOMETRY, PRIOR_FILE, GUIDED),
    conditions=(MAP, STYLE_IMAGE),
    conditions_of=conditions_of,
    synthetic=SYNTHETIC,
    restyles=lambda options: options[RADIOMETRY.name] == "styled",
)
