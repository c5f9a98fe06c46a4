"""Whether a scene's pixels agree with the BOA offset that its archive claims.

In: stored DN of some bands, or a scene whose files are looked at. Out: an `OffsetAudit`. Imports bandfile and scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.archive.bandfile import BandFile, glance
from pipeline.bands import HOUSE_ADD_OFFSET_DN, NODATA_DN, RGB

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pipeline.archive.access import Access
    from pipeline.archive.scene import OffsetDecision, Scene

# Thresholds in stored DN, set on 24 real scenes (snow, desert, cloud, fields, forest, water; two carry the
# offset) and 60 random crops of each, half a scene wide: the truth is never contradicted, in none of 24 scenes and 1440
# crops, and confirmed in 23 scenes (the desert is too bright). With 1000 DN added to the 22 scenes without offset, 16
# are recognised and 6 are unknown; with it taken from the other two, both are recognised.
AUDIT_BANDS: tuple[str, ...] = ("B02", "B03", "B04", "B12")  # not B01: over water it is truly negative
_MIN_PIXELS = 100
_IMPOSSIBLE_DN = 800.0  # reflectance -0.02 with the offset; lowest 5th percentile: 1093 with it; 323 without
_FLOOR_B02_B04_DN = 1350.0  # 1st percentiles with the offset: B02 948, 1140; B04 1016, 1125
_FLOOR_SPREAD_DN = 150.0  # between B02 and B04: 68 and 15 with the offset; desert without it 1096
_FLOOR_B03_DN = 1500.0  # 1044 and 1166 with the offset
_FLOOR_B12_DN = 1700.0  # 1035 and 1200 with the offset; desert without it 2698


@dataclass(frozen=True)
class OffsetAudit:
    """What the pixels say about a claimed offset. `verdict` is "agrees", "contradicts" or "unknown"."""

    verdict: str
    fact: str


def audit_offset(sample_dn: Mapping[str, NDArray[np.uint16]], claimed: OffsetDecision) -> OffsetAudit:
    """Judge `claimed` by stored DN of B02, B03, B04 and B12 of one scene; arrays of any shape, 0 is nodata.

    Reflectance below -0.02 on 5 % of the ground does not exist, so DN below 800 means that no offset is in the pixels.
    The darkest ground of a scene reflects alike in blue, red and SWIR: floors together just above 1000 mean that it is.
    """
    valid = {band: dn[dn != NODATA_DN] for band, dn in sample_dn.items() if band in AUDIT_BANDS}
    valid = {band: dn for band, dn in valid.items() if dn.size >= _MIN_PIXELS}
    absent = [band for band in RGB if band not in valid]
    if absent:
        return OffsetAudit("unknown", f"fewer than {_MIN_PIXELS} valid pixels to audit in {', '.join(absent)}")
    floor = {band: float(np.percentile(dn, 1)) for band, dn in valid.items()}
    dark = {band: float(np.percentile(dn, 5)) for band, dn in valid.items()}
    shown = "1st percentile of stored DN " + ", ".join(f"{band} {floor[band]:.0f}" for band in sorted(floor))
    lowest = min(dark, key=lambda band: dark[band])
    if dark[lowest] < _IMPOSSIBLE_DN:
        found, why = 0, f"5 % of {lowest} lie below {max(dark[lowest], 1):.0f}, impossible with +1000 in the pixels"
    elif _piled_above_1000(floor):
        found, why = (
            HOUSE_ADD_OFFSET_DN,
            "dark ground piles up just above 1000 in every band, as with +1000 in the pixels",
        )
    else:
        return OffsetAudit("unknown", f"{shown}: too bright to tell")
    agrees = found == claimed.offset_dn
    said = f"the record says BOA offset {claimed.offset_dn} ({claimed.evidence})"
    joint = "and" if agrees else "but"
    return OffsetAudit("agrees" if agrees else "contradicts", f"{said} {joint} {shown}: {why}")


def _piled_above_1000(floor: Mapping[str, float]) -> bool:
    """True when the 1st percentiles look like dark ground plus 1000. Without SWIR haze looks the same: False."""
    if "B12" not in floor or min(floor[band] for band in (*RGB, "B12")) < _IMPOSSIBLE_DN:
        return False
    return (
        max(floor["B02"], floor["B04"]) <= _FLOOR_B02_B04_DN
        and abs(floor["B02"] - floor["B04"]) <= _FLOOR_SPREAD_DN
        and floor["B03"] <= _FLOOR_B03_DN
        and floor["B12"] <= _FLOOR_B12_DN
    )


def audit_scene(scene: Scene, access: Access) -> OffsetAudit:
    """Audit a scene on a cheap, decimated look at its files. ReadError when one of them cannot be read."""
    bands = [band for band in AUDIT_BANDS if band in scene.hrefs]
    return audit_offset({band: glance(BandFile.of(scene, band), access) for band in bands}, scene.offset)
