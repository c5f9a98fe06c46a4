"""The shipped system: a small regression and diffusion, and a fusion for all other bands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.bands import RGB, SCALE_10M, TARGET_GSD_M, bands_at
from pipeline.errors import UsageError
from pipeline.superres.spec import Memory, Predictor, SystemSpec, Weights
from pipeline.superres.systems.guided_fusion import SHIPPED, build_fuser, fused, resolve_then_fuse

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipeline.models.bundle import Bundle
    from pipeline.superres.declared import Settings
    from pipeline.superres.spec import Bundles, Stage, StageInput

SR = "sr"
SCALES = (2, SCALE_10M, 8)


def stages(bundles: Bundles, options: Settings) -> tuple[Stage, ...]:
    """Return the stages: the bands of the first weights from 10 m, then the other bands. Raises UsageError.

    A network of x2 is interpolated from 5 to 2.5 m; one of x8 gives a group of 1.25 m beside its means at 2.5 m.
    """
    del options
    bundle = bundles[SR]
    _check(bundle)
    gsd_m = min(10 / bundle.scale, TARGET_GSD_M)
    return resolve_then_fuse(bundles, bundle.out_bands, gsd_m=gsd_m, regresses=True)


def _check(bundle: Bundle) -> None:
    """Raise UsageError for weights of bands or a scale that cannot begin this chain."""
    bands, where = bundle.out_bands, f"weights {bundle.path}"
    if bundle.in_bands != bands:
        raise UsageError(f"{where} make {', '.join(bands)} of {', '.join(bundle.in_bands)}", "the bands that they read")
    if not set(RGB) <= set(bands) <= set(bands_at(10)):
        raise UsageError(
            f"{where} are for {', '.join(bands)}",
            f"{', '.join(RGB)}, which guide the other bands, and no band but those of 10 m ({', '.join(bands_at(10))})",
        )
    if bundle.scale not in SCALES:
        raise UsageError(f"{where} are for x{bundle.scale}", f"x{', x'.join(map(str, SCALES))}")


class Lite(Predictor):
    """`LiteSuperResolver` and a fusion."""

    def __init__(self, bundles: Bundles, options: Settings) -> None:
        del options
        from pipeline.models.lite import LiteSuperResolver

        self.resolver = LiteSuperResolver.from_bundle(bundles[SR])
        self.fuser = build_fuser(bundles["fusion"])

    def to(self, device: torch.device) -> Lite:
        """Move the weights and return self."""
        self.resolver, self.fuser = self.resolver.to(device), self.fuser.to(device)
        return self

    def predict(self, stage: Stage, given: StageInput) -> Tensor:
        """Return the reflectance of a batch of windows."""
        if stage.name != SR:
            return fused(self.fuser, stage, given)
        return self._resolved(given)

    def _resolved(self, given: StageInput) -> Tensor:
        """Return the output of the first stage: that of the network, interpolated if its GSD is above 2.5 m."""
        from pipeline.models.lite import finer

        image, left = given.images["coarse"], max(1, SCALE_10M // self.resolver.bundle.scale)
        if given.noise is None:
            found = self.resolver.mean(image)
        else:
            noise = given.noise(step=0, channels=image.shape[1], coarser=left)
            found = self.resolver.sample(image, noise)
        return found if left == 1 else finer(found, left)


SYSTEM = SystemSpec(
    name="lite",
    summary="our small diffusion network and fusion net, for CPU and GPU",
    stages=stages,
    build=Lite,
    weights=(Weights(SR, ("lite-sr",), "lite-sr.safetensors"), SHIPPED),
    memory=Memory(weights_mib=20.0, floats_per_px=200.0),
)
