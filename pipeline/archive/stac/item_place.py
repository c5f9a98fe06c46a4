"""Time, UTM zone and footprint of a STAC item, and the check that its pixel grid lies inside the footprint."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pipeline.archive.stac.assets import Asset, epsg_number
from pipeline.archive.stac.hrefs import RejectedItem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.archive.scene import Raster


def item_utc(properties: dict[str, Any]) -> str:
    """Acquisition time, ISO 8601 with Z; `start_datetime` where `datetime` is null. Without time zone it is UTC."""
    text = properties.get("datetime") or properties.get("start_datetime")
    if not isinstance(text, str):
        raise RejectedItem("no datetime")
    try:
        moment = datetime.fromisoformat(text.strip().upper())
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise RejectedItem(f"datetime {text[:40]!r} is not one ({error})") from None
    return moment.isoformat().replace("+00:00", "Z")


def item_epsg(properties: dict[str, Any], assets: Mapping[str, Asset]) -> int:
    """UTM zone of the item; all bands must agree. RejectedItem where there is none, or another system."""
    codes = {asset.epsg for asset in assets.values() if asset.epsg is not None}
    own = epsg_number(properties)
    if own is not None:
        codes.add(own)
    if not codes:
        raise RejectedItem("no CRS: none of proj:epsg, proj:code, proj:wkt2, proj:projjson tells an EPSG number")
    if len(codes) > 1:
        raise RejectedItem(f"its files are in different CRS: {sorted(codes)}")
    epsg = codes.pop()
    if not (32601 <= epsg <= 32660 or 32701 <= epsg <= 32760):
        raise RejectedItem(f"EPSG:{epsg} is not a UTM zone of WGS 84")
    return epsg


def item_footprint(item: dict[str, Any]) -> dict[str, Any]:
    """GeoJSON Polygon or MultiPolygon: the geometry, the polygons of a collection, or `bbox` where it is null."""
    import shapely
    from shapely.errors import ShapelyError
    from shapely.geometry import mapping, shape

    geometry = item.get("geometry")
    if geometry is None:
        return _of_bbox(item.get("bbox"))
    if not isinstance(geometry, dict):
        raise RejectedItem("no footprint polygon")
    kind = geometry.get("type")
    if kind not in ("Polygon", "MultiPolygon", "GeometryCollection"):
        raise RejectedItem(f"no footprint polygon but a {str(kind)[:40]}")
    try:
        found = shape(geometry)
        bounds = found.bounds
    except (ShapelyError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise RejectedItem(f"footprint is no polygon ({error})") from None
    if found.is_empty or not all(map(math.isfinite, bounds)):
        raise RejectedItem("footprint is empty or not finite")
    if max(abs(bounds[0]), abs(bounds[2])) > 540 or max(abs(bounds[1]), abs(bounds[3])) > 90:
        raise RejectedItem(f"footprint reaches {bounds[2]:.6g} {bounds[3]:.6g}; expected longitude and latitude")
    if kind != "GeometryCollection":
        return geometry
    parts = [part for part in shapely.get_parts(found) if part.geom_type in ("Polygon", "MultiPolygon")]
    if not parts:
        raise RejectedItem("no footprint polygon in its GeometryCollection")
    union = shapely.union_all([shapely.make_valid(part) for part in parts])
    return _of_text(mapping(union))


def _of_bbox(bbox: object) -> dict[str, Any]:
    """Polygon of [west, south, east, north], or of six numbers with heights."""
    import shapely
    from shapely.geometry import mapping

    numbers = bbox if isinstance(bbox, list) and len(bbox) in (4, 6) else []
    if not numbers or not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
        raise RejectedItem("no footprint polygon, and no bbox either")
    west, south, east, north = (*numbers[:2], *numbers[2:]) if len(numbers) == 4 else (*numbers[:2], *numbers[3:5])
    if south >= north or west == east:
        raise RejectedItem("no footprint polygon, and a bbox without area")
    return _of_text(mapping(shapely.box(west, south, east if east > west else east + 360, north)))


def _of_text(geometry: object) -> dict[str, Any]:
    """GeoJSON with lists for tuples, as JSON gives it back."""
    import json

    plain: dict[str, Any] = json.loads(json.dumps(geometry))
    return plain


def check_place(geometry: dict[str, Any], epsg: int, rasters: tuple[Raster, ...]) -> None:
    """RejectedItem unless the pixel grid lies at the footprint; otherwise tile or zone are mislabelled."""
    from pyproj import Transformer
    from shapely.geometry import shape

    if not rasters:
        return
    west, south, east, north = shape(geometry).bounds
    raster = rasters[0]
    x_m = raster.left_m + raster.nx * raster.gsd_m / 2
    y_m = raster.top_m - raster.ny * raster.gsd_m / 2
    lon, lat = Transformer.from_crs(epsg, 4326, always_xy=True).transform(x_m, y_m)
    half_deg = max(raster.nx, raster.ny) * raster.gsd_m / 111_000 + 0.01
    half_lon_deg = half_deg / max(0.1, math.cos(math.radians(min(abs(lat), 89.0))))
    turns = (0.0, 360.0, -360.0)  # footprints across the antimeridian are written in several ways
    inside_lon = any(west - half_lon_deg <= lon + turn <= east + half_lon_deg for turn in turns)
    if not (inside_lon and south - half_deg <= lat <= north + half_deg):
        raise RejectedItem(f"its pixels lie at {lon:.2f} {lat:.2f} (lon lat), far from its footprint")
