"""DiffFuSR (arXiv 2506.11764): blind diffusion super-resolution of RGB, with its own fusion or the shipped one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.bands import RGB
from pipeline.superres.spec import Memory, Predictor, SystemSpec, Weights
from pipeline.superres.systems.guided_fusion import EITHER, build_fuser, fused, resolve_then_fuse

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipeline.superres.declared import Settings
    from pipeline.superres.spec import Bundles, SceneState, Stage, StageInput


def stages(bundles: Bundles, options: Settings) -> tuple[Stage, ...]:
    """Return the stages: RGB from 10 m, given the estimated degradation of the scene; then the other bands."""
    del options
    return resolve_then_fuse(bundles, scene_state=True, multiple_px=32)  # required by the U-Net


class DiffFuSRSystem(Predictor):
    """The published networks and a fusion."""

    def __init__(self, bundles: Bundles, options: Settings) -> None:
        del options
        from pipeline.models.difffusr import DiffFuSR

        self.resolver = DiffFuSR.from_bundle(bundles["sr"])
        self.fuser = build_fuser(bundles["fusion"])

    def to(self, device: torch.device) -> DiffFuSRSystem:
        """Move the weights and return self."""
        self.resolver, self.fuser = self.resolver.to(device), self.fuser.to(device)
        return self

    def scene_state(self, stage: Stage, windows: Tensor) -> SceneState:
        """Return the degradation vector of a scene."""
        del stage
        return self.resolver.scene_state(windows)

    def predict(self, stage: Stage, given: StageInput) -> Tensor:
        """Return the reflectance of a batch of windows. Raises ValueError without noise or the scene's state."""
        if stage.name != "sr":
            return fused(self.fuser, stage, given)
        if given.noise is None:
            msg = "no noise given; expected some, since the system has no regression"
            raise ValueError(msg)
        return self.resolver.sample(given.images["coarse"], given.noise(step=0, channels=len(RGB)), given.state)


SYSTEM = SystemSpec(
    name="difffusr",
    summary="DiffFuSR's networks (arXiv 2506.11764), weights converted from the authors' release",
    stages=stages,
    build=DiffFuSRSystem,
    weights=(Weights("sr", ("difffusr-sr",)), EITHER),
    memory=Memory(weights_mib=700.0, floats_per_px=2000.0),
)
