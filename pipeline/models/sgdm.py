"""SGDM: super-resolution of RGB by a generative prior that a coarse image, a vector map and a style guide.

Wang and Sun, "Semantic Guided Large Scale Factor Remote Sensing Image Super-resolution with Generative Diffusion
Prior". What it gives is imagination guided by a map. Windows must be whole and lie on the absolute lattice: the prior
normalises and attends over them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.models import guidance as guide
from pipeline.models.bundle import Bundle, BundleError, LatticeSpec, check_fit, load_tensors
from pipeline.models.diffusion_prior import BANDS, SMALL_PRIOR, Prior
from pipeline.models.diffusion_prior import SYSTEM as PRIOR
from pipeline.models.guidance import Guidance
from pipeline.models.guidance_parts import Style, pooled, statistics
from pipeline.models.latent_sampler import forward
from pipeline.models.layout import moved
from pipeline.models.map_words import case_of_classes, case_of_rendering, rendered
from pipeline.models.spaced_sampler import ancestral, spread_timesteps
from pipeline.models.style_model import StyleModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Drawn = Callable[[int], Tensor]  # standard normal noise (B, L, h, w) of a step, by its number

SYSTEM = "sgdm"
RENDERED = "rendered"  # value of `words`: maps are pictures in the colours of the released code
STEPS = 50
FIRST_NOISE = 0  # number of the draw at the start; step k of the sampler draws number k + 1
# `words`: the map's channels of each of `map_words.WORDS`. `prior`: sha256 of the only prior that fits, if any.
# `absent`: what all channels hold, 0 to 1, where no map is given.
PUBLISHED: dict[str, Any] = {"guidance": guide.PUBLISHED, "words": RENDERED, "prior": "", "absent": 0.0}
SMALL: dict[str, Any] = {
    "guidance": {
        "variant": guide.REAL,
        "norm": "none",
        "map_channels": 7,
        "stem": 16,
        "widths": [16, 32],
        "spade_width": 32,
        "merged": 48,
        "controls": SMALL_PRIOR["unet"]["block_out_channels"][:3],
    },
    "words": [[0], [1, 2], [5], [4]],
    "classes": ["building", "road-major", "road-minor", "rail", "water", "wood", "farmland"],
    "prior": "",
    # 0 in network range, as padding beyond the border. A map of no class would not do: it says that there is neither
    # wood nor water nor a building.
    "absent": 0.5,
}
# In px of the output; multiples of 16, so that windows hold whole pixels of 10 m at x8 and x16.
LATTICE = LatticeSpec(window_px=512, stride_px=416, ramp_px=64, margin_px=16)
SMALL_LATTICE = LatticeSpec(window_px=256, stride_px=192, ramp_px=32, margin_px=16)
_GUIDANCE, _UNET = "guidance.", "unet."  # prefixes of the bundle's tensors


class SGDM:
    """Guidance, the prior with what guidance has trained of its U-Net, and the distribution of styles, if any.

    That is the attention, as published, or more.
    """

    def __init__(self, guidance: Guidance, prior: Prior, bundle: Bundle, styles: StyleModel | None = None) -> None:
        self.guidance, self.prior, self.bundle, self.styles = guidance.eval(), prior.eval(), bundle, styles
        self.words = bundle.architecture["words"]
        self.absent = absent(bundle.architecture)

    @classmethod
    def from_bundles(cls, bundle: Bundle, prior: Bundle, style: Bundle | None = None) -> SGDM:
        """Load the networks on the CPU. Raises BundleError if tensors do not fit, or the weights not each other."""
        for given, kind in ((bundle, SYSTEM), (prior, PRIOR)):
            if given.system != kind:
                raise BundleError(f"weights {given.path} are of kind {given.system}", kind)
        tensors = load_tensors(bundle)
        expected = bundle.architecture.get("prior")
        if expected and expected != prior.digest:
            raise BundleError(
                f"weights {bundle.path} do not go with the prior {prior.path} of sha256 {prior.digest}",
                f"that with which they were trained, of sha256 {expected}",
            )
        trained = {name: tensor for name, tensor in tensors.items() if name.startswith(_UNET)}
        of_prior = load_tensors(prior)
        unet = {name: tensor for name, tensor in of_prior.items() if name.startswith(_UNET)}
        needed = {name: tensor for name, tensor in unet.items() if "attn" in name or name in trained}
        check_fit(trained, needed, f"the U-Net of {bundle.path} does not fit the prior {prior.path}")
        own = {name.removeprefix(_GUIDANCE): x for name, x in tensors.items() if name not in trained}
        with torch.device("meta"):
            guidance = Guidance(bundle.architecture["guidance"])
        check_fit(own, guidance.state_dict(), f"weights {bundle.path} do not fit {SYSTEM}")
        guidance.load_state_dict(own, assign=True)
        networks = Prior.of_tensors(prior, {**of_prior, **trained})
        check_together(guidance, networks, bundle)
        styles = None if style is None else StyleModel.from_bundle(style)
        if styles is not None and styles.dim != guidance.style_width:
            found = f"styles {style and style.path} of {styles.dim} channels with {bundle.path}"
            raise BundleError(found, f"{guidance.style_width} channels")
        return cls(guidance.requires_grad_(False), networks, bundle, styles)

    def to(self, device: torch.device) -> SGDM:
        """Move the weights to `device` and return self."""
        moved(self.guidance, device)
        moved(self.prior, device)
        if self.styles is not None:
            moved(self.styles, device)
        return self

    @property
    def stride(self) -> int:
        """Pixels of an image per pixel of its latent, along one axis."""
        stride: int = self.prior.stride
        return stride

    @property
    def latents(self) -> int:
        """Channels of a latent."""
        return self.prior.latents

    def style_statistics(self, image: Tensor) -> Style:
        """Return the style of an image (B, 3, H, W) from 0 to 1. Raises ValueError if the guidance has none."""
        return self.guidance.style_statistics(_ranged(image))

    def style_of_picture(self, image: Tensor) -> Style:
        """Return the style (1, C) of a picture (1, 3, H, W) from 0 to 1, NaN where it has no pixel.

        Sides of less than a feature, and features that see a pixel without data, are left out. Raises ValueError if
        nothing is left.
        """
        stride = self.guidance.stride
        height, width = (side // stride * stride for side in image.shape[-2:])
        image = image[..., :height, :width]
        lacking = image.isnan().any(1, keepdim=True)
        known = functional.max_pool2d(lacking.float(), stride)[0, 0] == 0 if height and width else lacking[0, 0]
        if not bool(known.any()):
            msg = f"a picture without {stride} x {stride} px of data; expected a larger one"
            raise ValueError(msg)
        means = image.nanmean((2, 3), keepdim=True)
        features = self.guidance.style_features(_ranged(torch.where(image.isnan(), means, image)))
        return statistics(features[..., known][..., None])

    def content_of_scene(self, windows: Sequence[Tensor]) -> Style:
        """Return the statistics (1, C) of content features over windows (1, 3, H, W) of one size, without a map."""
        found = [self.content_statistics(window, None) for window in windows]
        pixels = windows[0].shape[-2] * windows[0].shape[-1] // self.guidance.stride**2
        return pooled(Style(torch.cat([one.mean for one in found]), torch.cat([one.std for one in found])), pixels)

    def content_statistics(self, coarse: Tensor, of_map: Tensor | None) -> Style:
        """Return the statistics of content features, for `sample`, of images and maps as it takes them."""
        return self.guidance.content_statistics(_ranged(coarse), _ranged(self._shown(of_map, coarse)))

    def _shown(self, of_map: Tensor | None, coarse: Tensor) -> Tensor:
        """Return the map, or that of no map for the grid of `coarse`."""
        if of_map is not None:
            return of_map
        return coarse.new_full((len(coarse), self.guidance.map_channels, *coarse.shape[2:]), self.absent)

    def draw_style(self, noise: Tensor) -> Style:
        """Return one style for each of standard normal noise (B, 2, C). Raises ValueError without a style model."""
        if self.styles is None:
            msg = "no style model was given; styles are drawn from weights of their own"
            raise ValueError(msg)
        return self.styles.draw(noise)

    def context(self, of_map: Tensor) -> Tensor:
        """Return the number (B,) of the text context of a map (B, K, H, W) from 0 to 1: what it shows decides.

        0 if the prior has a single context, or the weights take no map.
        """
        return contexts(self.prior, self.guidance, self.words, of_map)

    def as_trained(self, of_map: Tensor, names: Sequence[str]) -> Tensor:
        """Return a map of classes (B, K, H, W) by name as the weights take it: rendered, or in their classes' order.

        Raises BundleError for classes that the map does not have.
        """
        if self.words == RENDERED:
            return rendered(of_map, names)
        own = self.bundle.architecture["classes"]
        if missing := [name for name in own if name not in names]:
            found = f"weights {self.bundle.path} of maps with {', '.join(missing)}"
            raise BundleError(found, f"some of {', '.join(names)}")
        return of_map[:, [names.index(name) for name in own]]

    def sample(
        self,
        coarse: Tensor,
        of_map: Tensor | None,
        style: Style | None,
        drawn: Drawn,
        steps: int = 0,
        context: Tensor | None = None,
        content: Style | None = None,
        start: float = 0.0,
    ) -> Tensor:
        """Draw an image (B, 3, H, W), about 0 to 1 and not clipped.

        coarse: interpolated to the output's grid, (B, 3, H, W) from 0 to 1; H and W are multiples of `stride`. of_map:
        (B, K, H, W) from 0 to 1, 0 in all channels where it shows nothing; None without one. style: mean and deviation
        (B, C) or (1, C), or None to keep the coarse image's. drawn(k): noise (B, latents, H / stride, W / stride), 0 at
        the start and k + 1 in step k. steps: 0 for those of the weights. context: numbers (B,) of text contexts, by
        default as `context` tells. content: statistics of content features over more than this window. start: share of
        the schedule at which sampling starts from the noisy coarse image, as SDEdit does (arXiv 2108.01073); 1 for
        noise alone, as published, 0 for that of the weights.
        """
        of_map = self._shown(of_map, coarse)
        numbers = (self.context(of_map) if context is None else context).to(coarse.device)
        controls = self.guidance(_ranged(coarse), _ranged(of_map), style, content)

        def epsilon(noisy: Tensor, timestep: int) -> Tensor:
            at = torch.full((len(noisy),), timestep, device=noisy.device)
            return self.prior.noise(noisy, at, numbers, controls)

        grid, x = self._begun(coarse, drawn(FIRST_NOISE), steps, start)
        latent = ancestral(epsilon, x, self.prior.alpha_bar, grid, lambda step: drawn(step + FIRST_NOISE + 1))
        return (self.prior.decode(latent) + 1) / 2

    def _begun(self, coarse: Tensor, noise: Tensor, steps: int, start: float) -> tuple[list[int], Tensor]:
        """Return the timesteps to visit, ascending, and the noisy latent (B, L, h, w) at the last; see `sample`."""
        grid = spread_timesteps(steps or int(self.bundle.sampler["steps"]), len(self.prior.alpha_bar))
        share = start or float(self.bundle.sampler.get("start", 1.0))
        if share >= 1:
            return grid, noise
        grid = grid[: max(2, round(share * len(grid)))]
        return grid, forward(self.prior.encode(_ranged(coarse)), float(self.prior.alpha_bar[grid[-1]]), noise)


def absent(architecture: Mapping[str, Any]) -> float:
    """Return what all channels of a map hold, 0 to 1, where weights of an architecture are given none."""
    return float({**PUBLISHED, **architecture}["absent"])


def contexts(prior: Prior, guidance: Guidance, words: str | Sequence[Sequence[int]], of_map: Tensor) -> Tensor:
    """Return the numbers (B,) of the contexts of maps (B, K, H, W) from 0 to 1, as `SGDM.context`."""
    if len(prior.contexts) == 1 or not guidance.map_channels:
        return of_map.new_zeros(len(of_map), dtype=torch.long)
    return case_of_rendering(of_map) if isinstance(words, str) else case_of_classes(of_map, words)


def check_together(guidance: Guidance, prior: Prior, bundle: Bundle) -> None:
    """Raise BundleError unless the guidance's features have the sizes of the prior's."""
    if guidance.stride != prior.stride:
        raise BundleError(
            f"guidance {bundle.path} with features at 1/{guidance.stride} for a prior with latents at 1/{prior.stride}",
            "the same for both",
        )
    controls = bundle.architecture["guidance"]["controls"]
    levels = list(prior.unet.config.block_out_channels[: len(controls)])
    if list(controls) != levels:
        raise BundleError(f"guidance {bundle.path} with controls of {controls} channels", f"{levels}, as in the prior")


def guidance_bundle(
    architecture: Mapping[str, Any] | None = None,
    scale: int = 16,
    provenance: Mapping[str, Any] | None = None,
    licence: str = "",
    lattice: LatticeSpec = LATTICE,
    normalisation: Mapping[str, Any] | None = None,
) -> Bundle:
    """Return the metadata of guidance for `save_bundle`. Its tensors are those of `guidance_tensors`."""
    return Bundle(
        system=SYSTEM,
        architecture={**PUBLISHED, **(architecture or {})},
        in_bands=BANDS,
        out_bands=BANDS,
        scale=scale,
        lattice=lattice,
        normalisation=dict(normalisation or {}),
        sampler={"name": "ancestral", "steps": STEPS},
        provenance=dict(provenance or {}),
        licence=licence,
    )


def guidance_tensors(guidance: Guidance, prior: Prior) -> dict[str, Tensor]:
    """Return the tensors of a guidance bundle: those of the guidance, and of the prior's U-Net what it has trained."""
    of_prior = prior.state_dict()
    own = {f"{_GUIDANCE}{name}": tensor for name, tensor in guidance.state_dict().items()}
    return own | {name: of_prior[name] for name in prior.attention_names()}


def _ranged(image: Tensor) -> Tensor:
    return 2 * image - 1
