"""The size of what a run will store, from its area alone, and the limit beyond which it has to be asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.superres.chain import Output
    from pipeline.superres.passes import Pass

# Uncompressed; 200,000 km2 of all bands at 2.5 m are 768 GB. A group of half the GSD holds four times as much.
MAX_OUTPUT_GB = 1000.0
_VALUE_BYTES = 2


def output_gb(area_km2: float, steps: int, passes: Sequence[Pass]) -> dict[float, float]:
    """Return the uncompressed size in GB of the reflectance of all bands, by GSD, for `steps` time steps."""
    outputs = [output for one in passes for output in one.outputs]
    return {output.gsd_m: _bytes(output, area_km2) * steps / 1e9 for output in outputs}


def require_output(area_km2: float, steps: int, passes: Sequence[Pass], limit_gb: float) -> None:
    """Raise UsageError if a run would store more than `limit_gb` (GB, uncompressed)."""
    sizes = output_gb(area_km2, steps, passes)
    total = sum(sizes.values())
    if total <= limit_gb:
        return
    groups = ", ".join(f"{size:,.0f} GB at {gsd_m:g} m" for gsd_m, size in sizes.items())
    raise UsageError(
        f"{area_km2:,.0f} km2 would make {total:,.0f} GB before compression ({groups})",
        f"at most {limit_gb:g} GB",
        f"a smaller area, a smaller scale, fewer bands, or --max-output-gb {_rounded_up(total):g} if this is meant",
    )


def _bytes(output: Output, area_km2: float) -> float:
    return area_km2 * 1e6 / output.gsd_m**2 * len(output.bands) * _VALUE_BYTES


def _rounded_up(size: float) -> int:
    return int(-(-size // 100) * 100)
