"""The shipped system: a small regression and diffusion for RGB, and a fusion for all other bands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.bands import BRIGHT_REFLECTANCE, RGB, TARGET_GSD_M
from pipeline.superres.spec import Input, Memory, Predictor, Stage, SystemSpec, Weights, lattice_of
from pipeline.superres.systems.guided_fusion import SHIPPED, build_fuser, fused, fusion_stage

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipeline.superres.spec import Bundles, StageInput


def stages(bundles: Bundles) -> tuple[Stage, ...]:
    """RGB from 10 m, then the other bands."""
    sr, fusion = bundles["sr"], bundles["fusion"]
    lattice = lattice_of(sr)
    resolve = Stage(
        "sr",
        reads=(Input("rgb", RGB, 10),),
        gives=RGB,
        gsd_m=TARGET_GSD_M,
        lattice=lattice,
        stochastic=True,
        regresses=True,
        weights="sr",
        bright_reflectance=float(sr.normalisation.get("bright_reflectance", BRIGHT_REFLECTANCE)),
    )
    return resolve, fusion_stage(fusion, resolve.name, lattice)


class Lite(Predictor):
    """`LiteSuperResolver` and a fusion."""

    def __init__(self, bundles: Bundles) -> None:
        from pipeline.models.lite import LiteSuperResolver

        self.resolver = LiteSuperResolver.from_bundle(bundles["sr"])
        self.fuser = build_fuser(bundles["fusion"])

    def to(self, device: torch.device) -> Lite:
        """Move the weights and return self."""
        self.resolver, self.fuser = self.resolver.to(device), self.fuser.to(device)
        return self

    def predict(self, stage: Stage, given: StageInput) -> Tensor:
        """Reflectance of a batch of windows."""
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
