"""The shipped system: a small regression and diffusion for RGB, and a fusion for all other bands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.bands import RGB
from pipeline.superres.spec import Memory, Predictor, SystemSpec, Weights
from pipeline.superres.systems.guided_fusion import SHIPPED, build_fuser, fused, rgb_then_fusion

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipeline.superres.declared import Settings
    from pipeline.superres.spec import Bundles, Stage, StageInput


def stages(bundles: Bundles, options: Settings) -> tuple[Stage, ...]:
    """Return the stages: RGB from 10 m, then the other bands."""
    del options
    return rgb_then_fusion(bundles, regresses=True)


class Lite(Predictor):
    """`LiteSuperResolver` and a fusion."""

    def __init__(self, bundles: Bundles, options: Settings) -> None:
        del options
        from pipeline.models.lite import LiteSuperResolver

        self.resolver = LiteSuperResolver.from_bundle(bundles["sr"])
        self.fuser = build_fuser(bundles["fusion"])

    def to(self, device: torch.device) -> Lite:
        """Move the weights and return self."""
        self.resolver, self.fuser = self.resolver.to(device), self.fuser.to(device)
        return self

    def predict(self, stage: Stage, given: StageInput) -> Tensor:
        """Return the reflectance of a batch of windows."""
        if stage.name != "sr":
            return fused(self.fuser, given)
        if given.noise is None:
            return self.resolver.mean(given.images["rgb"])
        return self.resolver.sample(given.images["rgb"], given.noise(step=0, channels=len(RGB)))


SYSTEM = SystemSpec(
    name="lite",
    summary="our small diffusion network and fusion net, for CPU and GPU",
    stages=stages,
    build=Lite,
    weights=(Weights("sr", ("lite-sr",), "lite-sr.safetensors"), SHIPPED),
    stochastic=True,
    regresses=True,
    memory=Memory(weights_mib=20.0, floats_per_px=200.0),
)
