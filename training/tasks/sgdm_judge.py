"""Map guidance with its prior and styles, as it is evaluated on held-out images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pipeline.errors import UsageError
from pipeline.models.bundle import load_bundle
from pipeline.models.diffusion_prior import SYSTEM as PRIOR
from pipeline.models.resampling import upsample
from pipeline.models.sgdm import SGDM
from pipeline.models.style_model import SYSTEM as STYLE
from pipeline.models.tone import Tone
from pipeline.superres.weights import SHIPPED
from training import placement
from training.data.made_maps import CLASSES, made_maps
from training.data.triplets import one_hot
from training.quality.map_guidance import Guided

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from pipeline.models.bundle import Bundle
    from pipeline.models.guidance_parts import Style
    from training.quality.pairs import Pair

SHIPPED_PRIOR = f"{PRIOR}.safetensors"
_LEVELS = 3  # of the U-Net at which latents are halved


class JudgedGuidance:
    """A `GuidedSystem` of map guidance."""

    def __init__(self, system: SGDM, device: torch.device) -> None:
        self.system, self.device = system.to(device), device
        self.tone = Tone.of(system.bundle.normalisation)

    @property
    def bundle(self) -> Bundle:
        """The weights of guidance."""
        return self.system.bundle

    @property
    def scale(self) -> int:
        """Pixels of the output per pixel of the input, along one axis."""
        return self.system.bundle.scale

    @property
    def window_px(self) -> int:
        """Side of a window of the lattice."""
        return self.system.bundle.lattice.window_px

    @property
    def multiple_px(self) -> int:
        """Pixels of the smallest features."""
        return int(self.system.stride * 2**_LEVELS)

    @property
    def styled(self) -> bool:
        """Whether a distribution of styles was given."""
        return self.system.styles is not None

    def map_of(self, pair: Pair) -> Tensor:
        """Return the map of `CLASSES` of a held-out image: its own, or one made of it."""
        if pair.of_map is not None:
            return torch.from_numpy(one_hot(pair.of_map))[None].float()
        gsd_m = 10 / self.scale
        return torch.from_numpy(made_maps(pair.hr.numpy(), gsd_m, pair.bands)).float()

    @torch.inference_mode()
    def draw(self, lr: Tensor, of_map: Tensor | None, style: int | None, seed: int) -> Tensor:
        """Return a draw (1, 3, H, W) in reflectance."""
        coarse = upsample(self.tone.to_image(lr), self.scale).clamp(0, 1)
        shown = coarse.new_zeros(0) if of_map is None else self.system.as_trained(of_map, CLASSES)
        size = (1, self.system.latents, *(side // self.system.stride for side in coarse.shape[-2:]))
        generator = torch.Generator().manual_seed(seed)

        def made(coarse: Tensor, shown: Tensor) -> Tensor:
            return self.system.sample(
                coarse,
                None if of_map is None else shown,
                self._style(style),
                lambda _: torch.randn(size, generator=generator).to(self.device),
            )

        return self.tone.to_reflectance(placement.run(self.device, made, coarse, shown))

    def _style(self, number: int | None) -> Style | None:
        if number is None:
            return None
        generator = torch.Generator().manual_seed(number)
        noise = torch.randn(1, 2, self.system.guidance.style_width, generator=generator)
        return self.system.draw_style(noise.to(self.device))


def load(bundle: Bundle, others: Sequence[Bundle], device: torch.device) -> JudgedGuidance:
    """Load guidance with the prior that it names and styles, among others. Raises UsageError without the prior."""
    wanted = str(bundle.architecture.get("prior", ""))
    priors = [one for one in others if one.system == PRIOR]
    if (SHIPPED / SHIPPED_PRIOR).is_file():
        priors.append(load_bundle(SHIPPED / SHIPPED_PRIOR))
    fitting = [one for one in priors if wanted in ("", one.digest)]
    if not fitting:
        raise UsageError(
            f"no prior for {bundle.path}",
            f"the one of sha256 {wanted[:12]}" if wanted else f"weights of {PRIOR}",
            "give its file too",
        )
    styles = next((one for one in others if one.system == STYLE), None)
    return JudgedGuidance(SGDM.from_bundles(bundle, fitting[0], styles), device)


GUIDED = Guided(load, beside=(PRIOR, STYLE))
