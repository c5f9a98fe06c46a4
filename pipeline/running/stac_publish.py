"""STAC output: the item of each finished store, and ItemCollections of several stores."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.archive.catalog import load_catalog
from pipeline.errors import IntegrityError, PipelineError, StorageError, StoreHeld, UsageError
from pipeline.planning.plan import load_plan
from pipeline.store.collection import collection_of, collection_path, named
from pipeline.store.identity import group_attributes, root_attributes
from pipeline.store.lease import lease
from pipeline.store.levels import FINER, MEASURED
from pipeline.store.nodes import dimensions, group_at, values_at
from pipeline.store.place import LocalPlace, place_of, write_atomic
from pipeline.store.selection import VARIABLES, require_finished
from pipeline.store.stac_item import ITEM_KEY, GroupFacts, ItemFacts, Source, build_item
from pipeline.temporary import require_ours

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import zarr
    from shapely import Geometry

    from pipeline.archive.catalog import Catalog
    from pipeline.planning.plan import Plan
    from pipeline.store.place import Place, Where

_DECIMALS = 7  # of degrees, about a centimetre
_SETTLED = ("status", "valid_fraction", "units", "quarantined", "plan_digest", "super_resolution", "sr_weights",
            "fusion_weights", "sr_weights_sha256", "fusion_weights_sha256", "weights_license", "weights_credits",
            "seed", "estimate", "members", "consistency", "detail", "finer_generated_bands", "options", "conditions",
            "synthetic", "synthetic_comment", "radiometry", "license", "credit", "notes", "bands_absent")  # fmt: skip
_FOLDERS = {
    FINER: "bands with detail below 2.5 m, which a network generated",
    MEASURED: "the input on its native grid",
}


@dataclass(frozen=True)
class Listed:
    """Result of `list_stores`: items with absolute hrefs, their stores, and notes for the user."""

    items: tuple[dict[str, Any], ...]
    stores: tuple[str, ...]
    notes: tuple[str, ...]
    collection: Path | None = None  # file of their Collection, if requested


def write_item(plan: Plan, store: Where) -> None:
    """Write the STAC item of a finished store to its root. Raises StorageError."""
    place = place_of(store)
    place.write(ITEM_KEY, _encoded(item_of(plan, place)))


def item_of(plan: Plan, place: Place) -> dict[str, Any]:
    """Return the STAC item of a store, with hrefs relative to its root.

    Raises IntegrityError if the store's metadata cannot be read.
    """
    attributes = root_attributes(place)
    try:
        groups = tuple(group for zone in plan.zones for group in _groups(place, plan.group(zone.epsg)))
    except (OSError, KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        found = f"the metadata of {place} cannot be read ({error})"
        raise IntegrityError(found, cure=f"python -m pipeline.check {place} --verify full") from error
    shape = _area(plan)
    used = [str(name) for name in attributes.get("scenes_used", plan.scenes)]
    scenes = [plan.scenes[name] for name in used if name in plan.scenes]
    catalog = _catalog(plan)
    geometry, bbox = _geojson(shape)
    return build_item(
        ItemFacts(
            id=f"{plan.aoi_name}_{plan.digest[:12]}",
            title=f"{plan.aoi_name}: Sentinel-2 L2A at 2.5 m",
            geometry=geometry,
            bbox=bbox,
            groups=groups,
            sources=tuple(Source(s.id, s.datetime_utc, _href(catalog, s.id, s.properties)) for s in scenes),
            created_utc=plan.created_utc,
            software_version=plan.version,
            licence=plan.licence,
            credit=plan.credit,
            facts={"composite": plan.config.composite}
            | ({"mtf": plan.mtf} if plan.mtf else {})
            | {name: attributes[name] for name in _SETTLED if name in attributes},
            platforms=tuple(sorted({str(s.properties["platform"]) for s in scenes if s.properties.get("platform")})),
        )
    )


def list_stores(
    stores: Sequence[Where], out: Path | None, *, relative: bool = False, collection: str | None = None
) -> Listed:
    """Rewrite the item of each finished store and, with `out`, write a FeatureCollection of all of them.

    `collection` is the id of a STAC Collection, which the items name and which is written beside `out`.
    Stores that cannot be listed are left out with a note. Raises UsageError with all notes if none is left, and
    StorageError if `out`, or without `out` an item, cannot be written.
    """
    if out is not None:
        require_ours(out)
    items, listed, notes = [], [], []
    for store in stores:
        place = place_of(store)
        try:
            item, remarks = _renewed(place, must_write=out is None)
        except StorageError:
            raise
        except PipelineError as error:
            notes.append(f"left out: {error}")
            continue
        except Exception as error:  # one broken store must not lose the others
            notes.append(f"left out: {place} cannot be read ({type(error).__name__}: {error})")
            continue
        notes += remarks
        listed.append(str(place))
        items.append(_placed(item, place, None if out is None or not relative else out.resolve().parent))
    if not items:
        raise UsageError(f"no finished store. {'. '.join(notes)}")
    beside = None
    if out is not None:
        if collection is not None:
            beside = collection_path(out)
            require_ours(beside, "--collection")
            write_atomic(beside, _encoded(collection_of(collection, items)))
            items = [named(item, collection, beside, relative=relative) for item in items]
        write_atomic(out, _encoded({"type": "FeatureCollection", "features": items}))
    return Listed(tuple(items), tuple(listed), tuple(notes), beside)


def stores_below(folder: Path) -> list[Path]:
    """Return the Zarr stores directly in a folder, of any origin."""
    return sorted(path.parent for path in folder.glob("*/zarr.json"))


def _renewed(place: Place, *, must_write: bool) -> tuple[dict[str, Any], list[str]]:
    """Return the store's item, rewritten if it differs from the plan, and notes for the user."""
    attributes = root_attributes(place)
    notes = require_finished(place, attributes, allow_incomplete=False)
    item = item_of(load_plan(place), place)
    content = _encoded(item)
    if place.read(ITEM_KEY) != content:
        try:
            with lease(place) as held:  # a run may have restarted the store
                require_finished(place, root_attributes(place), allow_incomplete=False)
                held.place.write(ITEM_KEY, content)
        except (StorageError, StoreHeld) as error:
            if must_write and isinstance(error, StorageError):
                raise
            notes.append(f"{place.shown(ITEM_KEY)} was not written: {error}")
    return item, notes


def _encoded(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1, allow_nan=False).encode()


def _placed(item: dict[str, Any], place: Place, relative_to: Path | None) -> dict[str, Any]:
    """Return the item with absolute hrefs, or relative to a folder if the store is local."""
    root = str(place.absolute())
    if relative_to is not None and isinstance(place, LocalPlace):
        root = Path(os.path.relpath(root, relative_to)).as_posix()

    def put(entry: dict[str, Any]) -> dict[str, Any]:
        href = str(entry["href"])
        if not href.startswith("./"):
            return entry
        return {**entry, "href": f"{root}/{href[2:]}".rstrip("/")}

    assets = {key: put(asset) for key, asset in item["assets"].items()}
    own = {"rel": "canonical", "href": f"{root}/{ITEM_KEY}", "type": "application/geo+json"}
    return {**item, "assets": assets, "links": [*map(put, item["links"]), own]}


def _groups(place: Place, group: str) -> Iterator[GroupFacts]:
    """Yield the assets of one zone: the 2.5 m arrays, finer bands, and the measured input if stored."""
    import zarr

    with place.reading():
        opened = zarr.open_group(place.zarr_store(group), mode="r")
        prefix = f"{group}-" if group else ""
        stated = group_attributes(place, group, opened)
        epsg = str(stated["proj:code"])
        yield _facts(opened, stated, group or "data", group, f"all bands at 2.5 m, {epsg}")
        for folder, what in _FOLDERS.items():
            below = f"{group}/{folder}" if group else folder
            for name in _gsd_names(opened, folder):
                title = f"{what}, {name.removesuffix('m')} m, {epsg}"
                level = group_at(opened, f"{folder}/{name}")
                attributes = group_attributes(place, f"{below}/{name}", level)
                yield _facts(level, attributes, f"{prefix}{folder}-{name}", f"{below}/{name}", title)


def _gsd_names(opened: zarr.Group, folder: str) -> list[str]:
    """Return the names of the levels in a folder of a zone's group, finest first."""
    names = group_at(opened, folder).group_keys() if folder in opened else ()
    return sorted(filter(_is_gsd, names), key=lambda name: float(name.removesuffix("m")))


def _is_gsd(name: str) -> bool:
    """Return True for names of levels such as "10m". Other groups are foreign."""
    return name.endswith("m") and name.removesuffix("m").replace(".", "", 1).isdecimal()


def _facts(opened: zarr.Group, stated: dict[str, Any], key: str, path: str, title: str) -> GroupFacts:
    bands = [str(name) for name in values_at(opened, "band")]
    transform = tuple(float(value) for value in stated["spatial:transform"])
    ny, nx = (int(value) for value in stated["spatial:shape"])
    return GroupFacts(
        key=key,
        path=path,
        title=title,
        epsg=int(str(stated["proj:code"]).removeprefix("EPSG:")),
        gsd_m=transform[0],
        shape=(ny, nx),
        transform=transform,
        bounds_m=tuple(float(value) for value in stated["spatial:bbox"]),
        bands=tuple(bands),
        times_utc=tuple(_utc(int(value)) for value in values_at(opened, "time")),
        arrays={name: dimensions(array) or () for name, array in sorted(opened.arrays())
                if name in VARIABLES},
        generated=tuple(name for name, flag in zip(bands, values_at(opened, "generated"), strict=True) if flag),
        multiscales="multiscales" in stated,
    )  # fmt: skip


def _utc(seconds: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _area(plan: Plan) -> Geometry:
    """Return the AOI in degrees, joined from its parts in metres."""
    import numpy as np
    import shapely
    from pyproj import Transformer
    from shapely.geometry import shape

    parts = []
    for zone in plan.zones:
        turn = Transformer.from_crs(zone.epsg, 4326, always_xy=True).transform
        degrees = shapely.transform(shape(zone.area), lambda xy, turn=turn: np.column_stack(turn(xy[:, 0], xy[:, 1])))
        # Long edges were divided before projection. Simplifying makes them straight again.
        parts.append(shapely.simplify(degrees, 10.0**-_DECIMALS))
    return shapely.set_precision(shapely.union_all(parts), 10.0**-_DECIMALS)


def _geojson(area: Geometry) -> tuple[dict[str, Any], tuple[float, float, float, float]]:
    """Return (geometry, bbox). The box of an area across the antimeridian has west > east (RFC 7946, 5.2)."""
    import shapely
    from shapely.geometry import mapping

    geometry = json.loads(json.dumps(mapping(shapely.normalize(area))))  # tuples to lists
    west, south, east, north = area.bounds
    if east - west > 180:
        parts = [part.bounds for part in shapely.get_parts(area)]
        west, east = min(b[0] for b in parts if b[0] > 0), max(b[2] for b in parts if b[2] < 0)
    box = [round(float(value), _DECIMALS) for value in (west, south, east, north)]
    return geometry, (box[0], box[1], box[2], box[3])


def _catalog(plan: Plan) -> Catalog | None:
    """Return the catalogue of the plan's scenes, or None if it cannot be loaded any more."""
    try:
        return load_catalog(plan.config.catalog)
    except PipelineError:
        return None


def _href(catalog: Catalog | None, scene: str, properties: dict[str, Any]) -> str:
    """Return the address of a scene's item: as recorded, else in the archive's API, else ""."""
    from urllib.parse import quote

    if properties.get("item"):
        return str(properties["item"])
    if catalog is None or catalog.kind != "api" or not catalog.collection:
        return ""
    return f"{catalog.url.rstrip('/')}/collections/{quote(catalog.collection)}/items/{quote(scene)}"
