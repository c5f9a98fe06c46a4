"""Interpolation: the baseline that generates nothing."""

from pipeline.superres.spec import Memory, SystemSpec

SYSTEM = SystemSpec(
    name="bicubic",
    summary="bicubic interpolation and projection: the baseline without generated detail",
    stages=lambda _bundles, _options: (),
    memory=Memory(weights_mib=0.0, floats_per_px=100.0),
)
