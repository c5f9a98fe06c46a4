"""The report page of a store: one self-contained HTML file with images, numbers and tables.

It is assembled from the files under web/. External text is escaped, and a Content-Security-Policy in the page forbids
every request.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.bands import BY_NAME, NODATA_SPREAD, TARGET_GSD_M, bands_at
from pipeline.products.page import tables
from pipeline.products.page.disclaimer import honesty_section
from pipeline.products.page.escaping import escape
from pipeline.products.page.facts import read_facts, require_chunks
from pipeline.products.page.images import (
    Plane,
    Set,
    encode_all_exact,
    encode_classes,
    encode_lossy,
    encode_set,
    stretch,
)
from pipeline.products.page.region import WHOLE_PX, choose_window, focus_m
from pipeline.products.page.residuals import residuals, summary_line
from pipeline.products.page.source import Context, Part, Zone, context_gsd_m, open_zone, read_context, read_part
from pipeline.store.overviews import mean_of_valid
from pipeline.store.selection import labels

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pipeline.products.page.facts import Facts
    from pipeline.products.page.residuals import Residual
    from pipeline.store.place import Where

GENERATOR = "sen2fine report page"  # identifies report pages, which may be replaced
LIMIT_BYTES = 15_000_000
_IMAGE_BYTES = 10_300_000  # before base64, which adds a third; the rest of the page takes 0.4 MB
_CONTEXT_BYTES = 1_500_000
_UNCERTAINTY_SHARE = 0.2
_MEASURED_BYTES = 3_500_000
_STYLES = ("leaflet/leaflet.css", "page.css")
_SCRIPTS = ("leaflet/leaflet.js", "planes.js", "picture.js", "map.js", "spectrum.js", "page.js")
_COMPOSITES = (  # first because natural colours need one stretch for all three bands
    ("True colour", ("B04", "B03", "B02")),
    ("False colour (near infrared)", ("B08", "B04", "B03")),
    ("Short-wave infrared", ("B12", "B8A", "B04")),
)
_LONLAT_NODES = 9


@dataclass
class Payload:
    """Binary parts of the page. Each becomes one base64 block with an id."""

    blocks: list[bytes] = field(default_factory=list)

    def add(self, content: bytes) -> str | None:
        """Add a block and return its id, or None for no bytes. Equal blocks are kept once."""
        if not content:
            return None
        if content not in self.blocks:
            self.blocks.append(content)
        return f"block-{self.blocks.index(content)}"

    def html(self) -> str:
        """Return the blocks as inert script elements."""
        return "\n".join(
            f'<script type="text/plain" id="block-{i}">{base64.b64encode(block).decode()}</script>'
            for i, block in enumerate(self.blocks)
        )


@dataclass(frozen=True)
class Page:
    """A finished page and a summary of it."""

    content: bytes
    label: str  # of the time step
    shown_km2: float
    whole: bool  # False: a part of the store at 2.5 m, the rest as an overview
    context_gsd_m: int | None
    exact: bool
    check: str  # result of the radiometric check, as text


def make_page(
    where: Where, zone: str | None = None, time: str | None = None, at: tuple[float, float] | None = None
) -> Page:
    """Make the report page of one zone and time of a store.

    `at` (longitude, latitude) is the place to show if the store is too large for one page. Raises UsageError for an
    unknown store, zone, time or place, NoDataError if nothing is measured, and IntegrityError if bytes are damaged.
    """
    source = open_zone(where, zone, time)
    facts = read_facts(source)
    window = choose_window(source, at)
    whole = window == source.whole
    around = None if whole else context_gsd_m(source)
    hidden = require_chunks(source, facts, window, around)
    context = read_context(source, around, hidden) if around else None
    part = read_part(source, window, hidden)
    checked = residuals(part, source)
    images = _Images.of(source, part, context)
    content = _filled(source, facts, part, context, checked, images).encode()
    left, bottom, right, top = source.bounds_m(window)
    return Page(
        content,
        labels(source.attributes, source.times)[source.time],
        (right - left) * (top - bottom) / 1e6,
        whole,
        context.gsd_m if context else None,
        images.output.exact,
        summary_line(checked),
    )


@dataclass(frozen=True)
class _Images:
    """All encoded images of a page."""

    output: Set
    measured: dict[int, Set]
    quality: Plane
    uncertainty: Set | None
    context: Set | None

    @classmethod
    def of(cls, zone: Zone, part: Part, context: Context | None) -> _Images:
        """Encode the images to fit the page: small ones first, and the output with the remaining bytes."""
        bands, room = zone.bands, _IMAGE_BYTES
        quality = encode_classes(part.quality)
        pixels = sum(dn.size for dn in part.measured.values())
        measured = {
            gsd: encode_set(bands_at(gsd, bands), dn, int(_MEASURED_BYTES * dn.size / pixels))
            for gsd, dn in part.measured.items()
        }
        around = encode_set(bands, context.dn, _CONTEXT_BYTES) if context else None
        room -= quality.size + sum(planes.size for planes in measured.values()) + (around.size if around else 0)
        spread = _spread_set(bands, part.uncertainty, int(room * _UNCERTAINTY_SHARE))
        output = encode_set(bands, part.dn, room - (spread.size if spread else 0))
        return cls(output, measured, quality, spread, around)


def _spread_set(bands: tuple[str, ...], spread: NDArray[np.uint16] | None, room: int) -> Set | None:
    """Encode the uncertainty in DN + 1, 0 for nodata: exact at 2.5 m if that fits, else its mean over 5 m."""
    if spread is None:
        return None
    raised = spread + np.uint16(1)  # nodata, 65535, wraps to 0
    exact = encode_all_exact(dict(zip(bands, raised, strict=True)), room)
    if exact is not None:
        return exact
    means = mean_of_valid(spread, NODATA_SPREAD) + np.uint16(1)
    return encode_lossy(dict(zip(bands, means, strict=True)), room)


def _filled(
    zone: Zone, facts: Facts, part: Part, context: Context | None, checked: list[Residual], images: _Images
) -> str:
    """Return the filled template."""
    payload = Payload()
    about = _about_images(zone, facts, part, context, images, payload)
    scripts = [_web(name) for name in _SCRIPTS]
    styles = [_web(name) for name in _STYLES]
    kinds = [("output", images.output), ("uncertainty", images.uncertainty), ("overview", images.context)]
    kinds += [(f"measured {gsd} m pixels", planes) for gsd, planes in images.measured.items()]
    label = labels(zone.attributes, zone.times)[zone.time]
    return Template(_web("page.html")).substitute(
        policy=_policy(scripts, styles),
        generator=escape(f"{GENERATOR}, {facts.attributes.get('software', '')}"),
        title=escape(f"{facts.aoi_name} · {label}"),
        name=escape(facts.aoi_name),
        summary=_summary(zone, facts, part, label),
        banner=tables.banner(facts, zone),
        shown=escape(_shown(zone, part, context)),
        left_label="measured" if part.measured_kept else "block means",
        honesty=honesty_section(zone, part),
        check=tables.check_section(checked, part, zone.consistency),
        scenes=tables.scenes_section(facts, zone),
        run=tables.run_section(facts),
        quarantined=tables.quarantine_section(facts),
        settings=tables.settings_section(facts, zone),
        precision=tables.precision_section(kinds, images.output, images.uncertainty),
        credit=f"<p>{escape(str(facts.attributes['credit']))}</p>" if facts.attributes.get("credit") else "",
        leaflet_licence=escape(_web("leaflet/LICENSE")),
        facts=_json(about),
        payload=payload.html(),
        styles="\n".join(f"<style>{style}</style>" for style in styles),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def _web(name: str) -> str:
    """Return a file under web/, without its source-map address, which developer tools would request."""
    text = files("pipeline.products.page").joinpath("web", *name.split("/")).read_text(encoding="utf-8")
    return text.partition("\n//# sourceMappingURL=")[0]


def _policy(scripts: list[str], styles: list[str]) -> str:
    """Return a Content-Security-Policy that only allows the page's own scripts and styles, by digest."""

    def digests(texts: list[str]) -> str:
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in texts)

    own = f"script-src {digests(scripts)}; style-src {digests(styles)}"
    return f"default-src 'none'; {own}; base-uri 'none'; form-action 'none'"


def _json(about: Mapping[str, Any]) -> str:
    """Return JSON that cannot close its script element."""
    return json.dumps(about, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")


def _summary(zone: Zone, facts: Facts, part: Part, label: str) -> str:
    """Return the line below the title."""
    names = zone.bands
    system = facts.attributes.get("super_resolution", "")
    ny, nx = zone.ny, zone.nx
    km = f"{nx * TARGET_GSD_M / 1000:.3g} × {ny * TARGET_GSD_M / 1000:.3g} km"
    said = [
        f"Sentinel-2 L2A, {label}",
        f"{len(names)} bands at 2.5 m by {system}{_estimate(zone, part)}",
        *_finer(facts.attributes.get("finer_generated_bands")),
        km,
        f"EPSG:{zone.epsg}",
    ]
    return " · ".join(f"<span>{escape(item)}</span>" for item in said)


def _finer(bands: object) -> list[str]:
    """Describe the bands stored at GSDs below 2.5 m, which the page does not show."""
    found = bands.items() if isinstance(bands, dict) else ()
    return [f"{len(names)} of them at {gsd} m too, generated, not shown here" for gsd, names in found]


def _estimate(zone: Zone, part: Part) -> str:
    """Return the kind of estimate, shown after the system's name."""
    if part.uncertainty is not None:
        return f", mean of {zone.drawn} members"
    if not zone.generated:
        return ""
    return ", best estimate" if zone.estimate == "mean" else ", one sample"


def _shown(zone: Zone, part: Part, context: Context | None) -> str:
    """Describe which part is shown at which GSD."""
    if part.window == zone.whole:
        return "The whole store is shown: output at 2.5 m, measured bands at their own 10, 20 or 60 m."
    side = f"{part.window.nx * TARGET_GSD_M / 1000:.3g} × {part.window.ny * TARGET_GSD_M / 1000:.3g} km"
    limit = f"{WHOLE_PX * TARGET_GSD_M**2 / 1e6:.0f} km²"
    words = (
        f"This store is larger than a page can hold at full resolution ({limit}). Inside the frame ({side}) the map "
        "shows the output at 2.5 m and the measured bands at their own 10, 20 or 60 m; choose another place with --at "
        "LON LAT. "
    )
    if context is None:
        return words + "Outside the frame nothing is shown, because the store has no overview that is small enough."
    return words + (f"Outside the frame both sides show the store's overview of the output at {context.gsd_m} m.")


def _about_images(
    zone: Zone, facts: Facts, part: Part, context: Context | None, images: _Images, payload: Payload
) -> dict[str, Any]:
    """Return the data for the page's scripts: bands, grids, and the block of each image."""
    left, _, _, top = zone.bounds_m(part.window)
    bands = [
        {"name": name, "nm": BY_NAME[name].wavelength_nm, "gsd": BY_NAME[name].gsd_m,
         "generated": name in zone.generated, "stretch": stretch(_native(part, zone.bands, name))}
        for name in zone.bands
    ]  # fmt: skip

    def grid(gsd_m: float, planes: Mapping[str, Plane], corner: tuple[float, float] = (left, top)) -> dict[str, Any]:
        first = next(iter(planes.values()))
        return {"gsd": gsd_m, "left": corner[0], "top": corner[1], "ny": first.ny, "nx": first.nx,
                "planes": {name: _plane(plane, payload) for name, plane in planes.items()}}  # fmt: skip

    return {
        "system": str(facts.attributes.get("super_resolution", "")),
        "bands": bands,
        "composites": [
            {"name": name, "bands": names, "together": name == _COMPOSITES[0][0]}
            for name, names in _COMPOSITES
            if set(names) <= set(zone.bands)
        ],
        "focus": focus_m(zone, part),
        "frame": zone.bounds_m(zone.whole),
        "part": zone.bounds_m(part.window),
        "measuredKept": part.measured_kept,
        "output": grid(TARGET_GSD_M, images.output.planes),
        "measured": [grid(gsd, planes.planes) for gsd, planes in images.measured.items()],
        "uncertainty": grid(_gsd(images.uncertainty, part), images.uncertainty.planes) if images.uncertainty else None,
        "quality": grid(TARGET_GSD_M, {"quality": images.quality}),
        "context": grid(context.gsd_m, images.context.planes, (zone.left_m, zone.top_m))
        if context and images.context
        else None,
        "lonlat": _lonlat(zone),
    }


def _gsd(planes: Set, part: Part) -> float:
    """Return the GSD of planes that cover the part."""
    return TARGET_GSD_M * part.window.nx / next(iter(planes.planes.values())).nx


def _native(part: Part, bands: tuple[str, ...], name: str) -> NDArray[np.uint16]:
    gsd = BY_NAME[name].gsd_m
    dn: NDArray[np.uint16] = part.measured[gsd][bands_at(gsd, bands).index(name)]
    return dn


def _plane(plane: Plane, payload: Payload) -> dict[str, Any]:
    about: dict[str, Any] = {"codec": plane.codec, "content": payload.add(plane.content), "error": plane.max_error_dn}
    if plane.codec == "jpeg":
        about |= {"table": plane.table, "mask": payload.add(plane.mask), "fixes": payload.add(plane.fixes),
                  "fixed": plane.fixes_count, "bound": plane.bound_dn}  # fmt: skip
    return about


def _lonlat(zone: Zone) -> dict[str, Any]:
    """Return longitude and latitude at the nodes of a coarse mesh over the zone. The page interpolates between them."""
    import pyproj

    left, bottom, right, top = zone.bounds_m(zone.whole)
    xs, ys = np.linspace(left, right, _LONLAT_NODES), np.linspace(top, bottom, _LONLAT_NODES)
    turn = pyproj.Transformer.from_crs(zone.epsg, 4326, always_xy=True)
    lon, lat = turn.transform(*np.meshgrid(xs, ys))
    return {"nodes": _LONLAT_NODES, "lon": np.round(lon, 7).tolist(), "lat": np.round(lat, 7).tolist()}
