"""Records of Sentinel-2 L2A scenes and time steps, frozen and JSON-serialisable."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.grid.grid import Phase

# Item properties in which an index of ours keeps an `OffsetDecision`.
OFFSET_KEY, EVIDENCE_KEY, BY_USER_KEY = "sen2fine:offset_dn", "sen2fine:offset_evidence", "sen2fine:offset_by_user"
MARK_KEY = "sen2fine:index_mark"  # proof that this user's `pipeline.index` wrote the item (archive/stac/index_marks.py)
# Status of an `OffsetDecision` before the pixel audit.
STATED, DOUBTED, OPEN = "stated", "doubted", "open"


@dataclass(frozen=True)
class OffsetDecision:
    """BOA_ADD_OFFSET that still has to be added to the stored DN (0 or -1000), and the evidence for it.

    `by_user`: set by hand, now or when an index was made; pixels and metadata are not asked to confirm it.
    `standing`: STATED; DOUBTED, where the metadata may be wrong, noted unless the pixels confirm them;
    OPEN, where the metadata are silent: `offset_dn` is a guess, and the scene is used only if its pixels settle it.
    """

    offset_dn: int
    evidence: str
    by_user: bool = False
    standing: str = STATED


@dataclass(frozen=True)
class Raster:
    """Native grid of one resolution of a scene: upper-left corner in metres and size in pixels."""

    gsd_m: int
    left_m: float
    top_m: float
    ny: int
    nx: int


@dataclass(frozen=True)
class Scene:
    """One L2A product (one granule, one sensing time). Hrefs are unsigned; `SCL` is among them where present."""

    id: str
    datetime_utc: str  # ISO 8601 with Z
    epsg: int
    footprint: dict[str, Any]  # GeoJSON geometry, EPSG:4326
    hrefs: dict[str, str]  # band name -> href
    rasters: tuple[Raster, ...] = ()  # by GSD; empty when the archive does not say
    baseline: str = ""  # processing baseline, "05.11"
    offset: OffsetDecision = OffsetDecision(0, "unset")
    cloud_pct: float | None = None
    tile: str = ""  # MGRS tile, "31TCJ"
    properties: dict[str, Any] = field(default_factory=dict)  # for provenance: platform, orbit, product id

    @property
    def phase(self) -> Phase:
        """Phase of the pixel grid; ESA's where the archive does not give rasters. ValueError when bands do not nest."""
        if not self.rasters:
            return Phase.official(self.epsg)
        return Phase.of({r.gsd_m: (r.left_m, r.top_m) for r in self.rasters}, self.epsg)

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary, as a plan holds it."""
        return asdict(self)


@dataclass(frozen=True)
class Period:
    """One time step of the output: its scenes, best first, and how they are combined."""

    label: str  # "2024-06-17", "2024-06-01/2024-08-31" or "2024-06", a month
    datetime_utc: str  # ISO 8601 with Z, value of the time coordinate
    scene_ids: tuple[str, ...]
    composite: str  # "mosaic" or "median"
    variant: int | None = None  # number of the image, where a system gives several of a time step
