"""Interpolation: the baseline that generates nothing."""

from pipeline.superres.spec import Memory, SystemSpec

SYSTEM = SystemSpec(
    name="bicubic",
    summary="interpolation and projection: the honest baseline, invents nothing",
    stages=lambda _bundles, _options: (),
    memory=Memory(weights_mib=0.0, floats_per_px=100.0),
)
