"""OpenSR's latent diffusion: RGB and near infrared x4, and three routes for the six bands of 20 m.

fusion: Fusion X2 to 10 m, guided by the measured 10 m bands, then Fusion X4, guided by the super-resolved ones. ldm6:
latent diffusion of six bands to 5 m, then Fusion X2. pipeline: the fusion of the other systems.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline.bands import TARGET_GSD_M, bands_at
from pipeline.errors import UsageError
from pipeline.superres.declared import Option
from pipeline.superres.spec import MEASURED, Input, Memory, Predictor, Stage, SystemSpec, Weights, lattice_of
from pipeline.superres.systems.guided_fusion import EITHER, NATIVE, build_fuser, fused, fusion_stage
from pipeline.superres.systems.guided_fusion import NAME as FUSION

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from pipeline.models.bundle import Bundle
    from pipeline.models.ldsr import LDSR, Sampling
    from pipeline.superres.declared import Settings
    from pipeline.superres.spec import Bundles, StageInput

SR, SIX, X2, X4 = "sr", "sr6", "x2", "x4"  # stages and roles of weights
COARSE, GUIDE, BANDS_20M = "coarse", "guide", bands_at(20)
_SIX_GSD_M = 5  # after latent diffusion of the 20 m bands
_AS_WEIGHTS = -1.0

STEPS = Option("steps", 0, "DDIM steps, a divisor of 1000; 0 for the number of the weights", 0, 1000, of_draws=True)
ETA = Option("eta", _AS_WEIGHTS, "noise of the DDIM steps, 0 to 1; -1 for that of the weights", -1, 1, of_draws=True)
TEMPERATURE = Option("temperature", 1.0, "factor on the noise of the DDIM steps", 0, 2, of_draws=True)
START = Option(
    "start_from_lr",
    1.0,
    "share of the schedule at which sampling starts from the coarse image; 1 for noise",
    0.01,
    1,
    of_draws=True,
)
MATCH = Option(
    "match",
    "none",
    "histogram to match each window's bands to the coarse ones, as released",
    choices=("none", "histogram"),
    of_draws=True,
)
NORMALISATION = Option(
    "normalisation",
    "released",
    "sound to encode the condition of weights before 1.0 as their training images, which the release does not",
    choices=("released", "sound"),
)
ROUTE = Option(
    "bands20",
    "fusion",
    "route of the 20 m bands: fusion for Fusion X2 and X4, ldm6 for latent diffusion to 5 m and Fusion X2, pipeline "
    "for the fusion of the other systems",
    choices=("fusion", "ldm6", "pipeline"),
)
_SR_WEIGHTS = Weights(SR, ("ldsr",), "ldsr.safetensors", bands_at(10))
_X2_WEIGHTS = Weights(X2, ("fusion-x2",), "fusion-x2.safetensors")
_X4_WEIGHTS = Weights(X4, ("fusion-x4",), "fusion-x4.safetensors")
_SIX_WEIGHTS = Weights(SIX, ("ldsr",), bands=BANDS_20M)
_BY_ROUTE = {
    "fusion": (_SR_WEIGHTS, EITHER, _X2_WEIGHTS, _X4_WEIGHTS),
    "ldm6": (_SR_WEIGHTS, EITHER, _SIX_WEIGHTS, _X2_WEIGHTS),
    "pipeline": (_SR_WEIGHTS, EITHER),
}


_SMALL, _PUBLISHED = Memory(weights_mib=40.0, floats_per_px=450.0), Memory(weights_mib=700.0, floats_per_px=1700.0)


def weights_of(options: Settings) -> tuple[Weights, ...]:
    """Return the weights of a route."""
    return _BY_ROUTE[str(options[ROUTE.name])]


def memory_of(bundles: Bundles) -> Memory:
    """Return the memory of small networks, or of the published ones if one of them is."""
    return _SMALL if all(_small(bundle) for bundle in _latent(bundles)) else _PUBLISHED


def _latent(bundles: Bundles) -> list[Bundle]:
    """Return the weights of latent diffusion: of the 10 m bands and, by route, of the 20 m bands."""
    return [bundles[name] for name in (SR, SIX) if name in bundles]


def _small(bundle: Bundle) -> bool:
    return bundle.architecture.get("networks") == "small"


def stages(bundles: Bundles, options: Settings) -> tuple[Stage, ...]:
    """Return the stages of a route. Raises UsageError for weights or options that do not fit.

    What is coarser than 2.5 m comes first, so that the stages at 2.5 m share windows.
    """
    resolve = _latent_stage(SR, bundles[SR], 10)
    _check_sampling(options, _latent(bundles))
    route = str(options[ROUTE.name])
    if route == "pipeline":
        return resolve, fusion_stage(bundles[FUSION], resolve)
    if route == "fusion":
        half = _fusion_stage(X2, bundles[X2], 20, 10)
        found = (half, resolve, _fusion_stage(X4, bundles[X4], 10, TARGET_GSD_M, X2, resolve))
    else:
        six = _latent_stage(SIX, bundles[SIX], 20)
        found = (six, resolve, _fusion_stage(X2, bundles[X2], _SIX_GSD_M, TARGET_GSD_M, SIX, resolve))
    return *found, fusion_stage(bundles[FUSION], resolve, made=BANDS_20M)


def _latent_stage(name: str, bundle: Bundle, gsd_m: int) -> Stage:
    """Return the stage that brings bands of `gsd_m` to a quarter of it. Raises UsageError for other weights."""
    bands = bundle.out_bands
    if bundle.in_bands != bands:
        raise UsageError(
            f"weights {bundle.path} make {', '.join(bands)} of {', '.join(bundle.in_bands)}", "equal bands"
        )
    small = _small(bundle)
    return Stage(
        name,
        reads=(Input(COARSE, bands, gsd_m),),
        gives=bands,
        gsd_m=gsd_m / bundle.scale,
        lattice=lattice_of(bundle),
        stochastic=True,
        regresses=small,
        weights=name,
        multiple_px=4 if small else 32,  # latents of published U-Nets are multiples of 8 px
        local=small,
    )


def _fusion_stage(
    name: str, bundle: Bundle, coarse_m: float, fine_m: float, coarse: str = "", guide: Stage | None = None
) -> Stage:
    """Return a stage of Fusion X2 or X4, from measured bands or from those of the stages `coarse` and `guide`.

    It shares the windows of the guide, since its own reach is finite. Raises BundleError for other weights.
    """
    from pipeline.models.span_fusion import check

    check(bundle)
    six = Input(COARSE, BANDS_20M, coarse_m, source=coarse or MEASURED, optional=not coarse)
    fine = Input(GUIDE, NATIVE[10], fine_m, source=guide.name if guide else MEASURED)
    return Stage(
        name,
        reads=(six, fine),
        gives=BANDS_20M,
        gsd_m=fine_m,
        lattice=guide.lattice if guide else lattice_of(bundle),
        weights=name,
        bright_reflectance=math.inf,  # the guide's stage decides where there is detail
    )


def _check_sampling(options: Settings, bundles: Sequence[Bundle]) -> None:
    """Raise UsageError for steps or eta that cannot be used, and for options that none of these weights reads."""
    from pipeline.models.latent_sampler import timesteps

    steps, eta = int(options[STEPS.name]), float(options[ETA.name])
    if eta < 0 and eta != _AS_WEIGHTS:
        raise UsageError(f"--option {ETA.name}={eta:g}", "0 to 1, or -1 for that of the weights")
    noisy = [float(bundle.sampler.get("eta", 0.0)) for bundle in bundles] if eta < 0 else [eta]
    if not any(noisy) and options[TEMPERATURE.name] != TEMPERATURE.default:
        raise UsageError(
            f"--option {TEMPERATURE.name}={options[TEMPERATURE.name]} with {ETA.name} 0, where steps draw no noise",
            f"an {ETA.name} above 0",
        )
    kinds = {bundle.normalisation.get("kind") for bundle in bundles}
    if options[NORMALISATION.name] != NORMALISATION.default and "before-1.0" not in kinds:
        raise UsageError(
            f"--option {NORMALISATION.name}={options[NORMALISATION.name]} with weights "
            + ", ".join(str(bundle.path) for bundle in bundles),
            "weights of a release before 1.0, which alone scale reflectance",
        )
    for bundle in bundles:
        try:
            timesteps(steps or int(bundle.sampler["steps"]))
        except ValueError as error:
            found, _, expected = str(error).partition("; expected ")
            raise UsageError(f"--option {STEPS.name}={steps}: {found}", expected) from None


class LatentDiffusion(Predictor):
    """`LDSR` of four and, by route, of six bands, Fusion X2 and X4, and the fusion of the other bands."""

    def __init__(self, bundles: Bundles, options: Settings) -> None:
        from pipeline.models.ldsr import LDSR
        from pipeline.models.span_fusion import SpanFusion

        self.resolvers: dict[str, LDSR] = {
            name: LDSR.from_bundle(bundles[name], sound=options[NORMALISATION.name] == "sound")
            for name in (SR, SIX)
            if name in bundles
        }
        self.fusions: dict[str, SpanFusion] = {
            name: SpanFusion.from_bundle(bundles[name]) for name in (X2, X4) if name in bundles
        }
        self.fuser = build_fuser(bundles[FUSION])

    def to(self, device: torch.device) -> LatentDiffusion:
        """Move the weights and return self."""
        self.resolvers = {name: one.to(device) for name, one in self.resolvers.items()}
        self.fusions = {name: one.to(device) for name, one in self.fusions.items()}
        self.fuser = self.fuser.to(device)
        return self

    def predict(self, stage: Stage, given: StageInput) -> Tensor:
        """Return the reflectance of a batch of windows."""
        if stage.name == FUSION:
            return fused(self.fuser, stage, given)
        if stage.name in self.fusions:
            return self.fusions[stage.name].predict(given.images[COARSE], given.images[GUIDE])
        return self._resolved(self.resolvers[stage.name], given)

    def _resolved(self, resolver: LDSR, given: StageInput) -> Tensor:
        """Return one sample, or the mean where no noise is given."""
        coarse, noise = given.images[COARSE], given.noise
        if noise is None:
            return resolver.mean(coarse)
        found = resolver.sample(
            coarse,
            lambda number: noise(step=number, channels=resolver.latents, coarser=resolver.bundle.scale),
            _sampling(resolver, given.options),
        )
        if given.options[MATCH.name] == "none":
            return found
        from pipeline.models.ldsr_release import match_histograms

        return match_histograms(found, coarse).clamp_min(0.0)


def _sampling(resolver: LDSR, options: Settings) -> Sampling:
    """Return how to sample with these options."""
    eta = float(options[ETA.name])
    return resolver.sampling_with(
        int(options[STEPS.name]),
        None if eta == _AS_WEIGHTS else eta,
        float(options[TEMPERATURE.name]),
        float(options[START.name]),
    )


SYSTEM = SystemSpec(
    name="ldsr",
    summary="latent diffusion of RGB and near infrared (OpenSR), with Fusion X2 and X4 for the 20 m bands",
    stages=stages,
    build=LatentDiffusion,
    weights=_BY_ROUTE[str(ROUTE.default)],
    weights_of=weights_of,
    memory=_SMALL,
    memory_of=memory_of,
    options=(STEPS, ETA, TEMPERATURE, START, MATCH, NORMALISATION, ROUTE),
    as_step={ROUTE.name: "pipeline"},
)
