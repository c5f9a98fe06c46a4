"""The Zarr store: its arrays and attributes, written once as a template, then filled by aligned regions.

In: a `Template` (grid, bands, times, attributes), then DN per region. Out: a Zarr v3 group that a plain
`xarray.open_zarr` opens with CRS, band names and dates. Imports grid, bands, errors and place.

Every chunk carries zstd's own content checksum, so damaged bytes raise instead of being read. All-nodata chunks are
not written: whether a piece is done is the ledger's business (receipts.py), never the chunks'.
"""

from __future__ import annotations

import json
import warnings
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.bands import BY_NAME, DN_OFFSET, DN_SCALE, NODATA_DN
from pipeline.errors import IntegrityError
from pipeline.store.place import place_of
from pipeline.store.place import storage_error as storage_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    import zarr
    from numpy.typing import NDArray

    from pipeline.grid.grid import Grid
    from pipeline.store.place import Place, Where

RUN_FOLDER = "_run"  # plan, receipts and completion mark, inside the store and ignored by Zarr readers
STATUS_INCOMPLETE, STATUS_COMPLETE = "incomplete", "complete"
STATUS_QUARANTINE = "complete_with_quarantine"
_ZSTD_LEVEL = 1
_DIMS = {
    "reflectance": ("time", "band", "y", "x"),
    "uncertainty": ("time", "band", "y", "x"),
    "quality": ("time", "y", "x"),
    "scl": ("time", "y", "x"),
}
_SCL_MEANINGS = (
    "no_data saturated_or_defective dark_area cloud_shadow vegetation not_vegetated water unclassified "
    "cloud_medium_probability cloud_high_probability thin_cirrus snow_or_ice"
)


@dataclass(frozen=True)
class Template:
    """What one zone's group holds before any pixel is written."""

    grid: Grid  # 2.5 m
    bands: tuple[str, ...]
    times_utc: tuple[str, ...]  # ISO 8601 with Z
    chunk_px: int
    generated: tuple[str, ...]  # bands whose detail a network generates
    with_scl: bool = False
    with_uncertainty: bool = False
    shard_px: int = 0  # 0: unsharded
    quality_meanings: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)


def group_name(epsg: int, zones: int) -> str:
    """Path of a zone's group within the store: the root when there is one zone, else "utm32n"."""
    return "" if zones == 1 else f"utm{epsg % 100:02d}{'n' if epsg // 100 == 326 else 's'}"


def create(store: Where, group: str, template: Template) -> None:
    """Write metadata and coordinates of one group; no data chunk. Raises StorageError."""
    import zarr

    place = place_of(store)
    with place.writing():
        # attributes go with the group's first write: a killed start is still recognised as ours
        attributes = {"status": STATUS_INCOMPLETE, **_conventions(template), **template.attributes}
        root = zarr.create_group(store=place.zarr_store(group), attributes=attributes, overwrite=True, zarr_format=3)
        _coordinates(root, template)
        for name in _data_arrays(template):
            _data_array(root, name, template)


def create_root(store: Where, attributes: Mapping[str, Any]) -> None:
    """Write the root group above several zones' groups; it holds attributes only. Raises StorageError."""
    import zarr

    place, stated = place_of(store), {"status": STATUS_INCOMPLETE, **attributes}
    with place.writing():
        zarr.create_group(store=place.zarr_store(), attributes=stated, overwrite=True, zarr_format=3)


def _conventions(template: Template) -> dict[str, Any]:
    grid = template.grid
    left, bottom, right, top = grid.bounds_m
    return {
        "Conventions": "CF-1.11",
        "proj:code": f"EPSG:{grid.epsg}",
        "spatial:dimensions": ["y", "x"],
        "spatial:transform": list(grid.transform),
        "spatial:bbox": [left, bottom, right, top],
        "spatial:shape": list(grid.shape),
    }


def _data_arrays(template: Template) -> list[str]:
    names = ["reflectance", "quality"]
    names += ["scl"] if template.with_scl else []
    return names + (["uncertainty"] if template.with_uncertainty else [])


def _data_array(root: zarr.Group, name: str, template: Template) -> None:
    from zarr.codecs import ZstdCodec

    lengths = {"time": len(template.times_utc), "band": len(template.bands)}
    shape = tuple(lengths.get(dim, 0) for dim in _DIMS[name][:-2]) + template.grid.shape
    whole = {"time": 1, "band": len(template.bands)}
    lead = tuple(whole[dim] for dim in _DIMS[name][:-2])
    chunk = (template.chunk_px, template.chunk_px)
    shards = (*lead, template.shard_px, template.shard_px) if template.shard_px else None
    root.create_array(
        name,
        shape=shape,
        chunks=(*lead, *chunk),
        shards=shards,
        dtype="uint8" if name in ("quality", "scl") else "uint16",
        fill_value=0,
        compressors=[ZstdCodec(level=_ZSTD_LEVEL, checksum=True)],
        dimension_names=_DIMS[name],
        attributes=_array_attributes(name, template),
    )


def _array_attributes(name: str, template: Template) -> dict[str, Any]:
    georeference = {"grid_mapping": "spatial_ref", "coordinates": "spatial_ref"}
    if name == "reflectance":
        return {
            "standard_name": "surface_bidirectional_reflectance",
            "long_name": "bottom-of-atmosphere reflectance",
            "units": "1",
            "scale_factor": DN_SCALE,
            "add_offset": DN_OFFSET,
            "_FillValue": NODATA_DN,
            "grid_mapping": "spatial_ref",
            "coordinates": "spatial_ref wavelength_nm native_gsd_m generated",
        }
    if name == "uncertainty":
        return {
            "long_name": "standard deviation over members of the generated detail; block means agree by construction",
            "units": "1",
            "scale_factor": DN_SCALE,
            "add_offset": 0.0,
            **georeference,
        }
    if name == "scl":
        values = list(range(len(_SCL_MEANINGS.split())))
        return {"long_name": "Sen2Cor scene classification, 20 m, nearest", "flag_values": values,
                "flag_meanings": _SCL_MEANINGS, **georeference}  # fmt: skip
    values = list(range(len(template.quality_meanings.split())))
    return {"long_name": "what the RGB of a pixel rests on", "flag_values": values,
            "flag_meanings": template.quality_meanings, **georeference}  # fmt: skip


def _coordinates(root: zarr.Group, template: Template) -> None:
    import pyproj
    from zarr.core.dtype import VariableLengthUTF8

    grid = template.grid
    ny, nx = grid.shape
    x = grid.left_m + (np.arange(nx) + 0.5) * grid.gsd_m
    y = grid.top_m - (np.arange(ny) + 0.5) * grid.gsd_m
    axis = {"units": "m", "long_name": "pixel centre"}
    _vector(root, "x", x, {**axis, "standard_name": "projection_x_coordinate", "axis": "X"})
    _vector(root, "y", y, {**axis, "standard_name": "projection_y_coordinate", "axis": "Y"})
    seconds = np.array([np.datetime64(t.removesuffix("Z"), "s").astype(np.int64) for t in template.times_utc])
    calendar = {"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian"}
    _vector(root, "time", seconds, {"standard_name": "time", "axis": "T", **calendar})
    names = root.create_array(
        "band", shape=(len(template.bands),), chunks=(len(template.bands),), dtype=VariableLengthUTF8(),
        fill_value="", dimension_names=("band",), attributes={"long_name": "Sentinel-2 MSI band"},
    )  # fmt: skip
    names[:] = np.array(template.bands, dtype=object)
    bands = [BY_NAME[name] for name in template.bands]
    wavelength = np.array([b.wavelength_nm for b in bands], np.float32)
    _vector(root, "wavelength_nm", wavelength, {"units": "nm", "long_name": "central wavelength"}, dim="band")
    gsd = np.array([b.gsd_m for b in bands], np.int16)
    _vector(root, "native_gsd_m", gsd, {"units": "m", "long_name": "GSD at which the band is measured"}, dim="band")
    generated = np.array([b.name in template.generated for b in bands])
    about = "detail finer than the native GSD is generated by a network, not measured"
    _vector(root, "generated", generated, {"long_name": about}, dim="band")
    crs = pyproj.CRS.from_epsg(grid.epsg)
    transform = " ".join(repr(v) for v in _gdal_transform(grid))
    root.create_array(
        "spatial_ref", shape=(), dtype="int64", fill_value=0,
        attributes={**crs.to_cf(), "spatial_ref": crs.to_wkt(), "GeoTransform": transform},
    )  # fmt: skip


def _gdal_transform(grid: Grid) -> tuple[float, ...]:
    a, b, c, d, e, f = grid.transform
    return c, a, b, f, d, e


def _vector(
    root: zarr.Group, name: str, values: NDArray[Any], attributes: Mapping[str, Any], dim: str | None = None
) -> None:
    array = root.create_array(
        name, shape=values.shape, chunks=values.shape, dtype=values.dtype, fill_value=np.zeros((), values.dtype)[()],
        dimension_names=(dim or name,), attributes=dict(attributes),
    )  # fmt: skip
    array[:] = values


class RegionWriter:
    """Writes whole chunks of one time step of one group; refuses regions that would touch a neighbour's chunk."""

    def __init__(self, store: Where, group: str, time_index: int) -> None:
        import zarr

        self._place, self._prefix = place_of(store), f"{group}/" if group else ""
        with self._place.reading():
            self._group = zarr.open_group(store=self._place.zarr_store(group), mode="r+", zarr_format=3)
        self._time = time_index

    def write(self, rows: slice, cols: slice, arrays: Mapping[str, NDArray[Any]]) -> dict[str, list[int]]:
        """Write `arrays` (..., ny, nx) at `rows`, `cols` of the grid. Returns {chunk key: [bytes, crc32]} as stored.

        Raises ValueError when the region is not made of whole chunks (or shards), StorageError when the disk refuses.
        """
        stored: dict[str, list[int]] = {}
        for name, values in arrays.items():
            with self._place.reading():
                array = self._group[name]
            self._check(array, rows, cols)
            lead = (self._time,) if values.ndim == 2 else (self._time, slice(None))
            with self._place.writing():
                array[(*lead, rows, cols)] = values
            stored.update(_chunk_facts(self._place, self._prefix, name, self._keys(array, rows, cols, values.ndim)))
        return stored

    def _check(self, array: zarr.Array, rows: slice, cols: slice) -> None:
        step = (array.shards or array.chunks)[-1]
        for part, length in ((rows, array.shape[-2]), (cols, array.shape[-1])):
            if part.start % step or (part.stop % step and part.stop != length):
                msg = f"region {rows}, {cols} cuts chunks of {step} px in two; a neighbour's pixels would be lost"
                raise ValueError(msg)

    def _keys(self, array: zarr.Array, rows: slice, cols: slice, ndim: int) -> list[str]:
        step = (array.shards or array.chunks)[-1]
        lead = f"c/{self._time}/" + ("0/" if ndim == 3 else "")
        return [
            f"{lead}{row}/{col}"
            for row in range(rows.start // step, -(-rows.stop // step))
            for col in range(cols.start // step, -(-cols.stop // step))
        ]


def _chunk_facts(place: Place, prefix: str, array: str, keys: list[str]) -> dict[str, list[int]]:
    """{"array/key": [bytes, crc32]} of the chunks that exist; all-nodata chunks do not and are left out.

    They are read back, so that what a receipt says was seen in the store.
    """
    facts = {}
    for key in keys:
        content = place.read(f"{prefix}{array}/{key}")
        if content is not None:
            facts[f"{array}/{key}"] = [len(content), zlib.crc32(content)]
    return facts


def verify_chunks(store: Where, facts: Mapping[str, list[int]], *, full: bool, group: str = "") -> list[str]:
    """Each recorded chunk that is missing, has the wrong size, or (full) holds other bytes; empty when all is right."""
    place, prefix = place_of(store), f"{group}/" if group else ""
    faults = []
    for key, (size, crc) in facts.items():
        content = place.read(prefix + key) if full else None
        found = len(content) if content is not None else None if full else place.size(prefix + key)
        if found is None:
            faults.append(f"{key} is missing")
        elif found != size:
            faults.append(f"{key} has {found} bytes, expected {size}")
        elif content is not None and zlib.crc32(content) != crc:
            faults.append(f"{key} has other bytes than were written")
    return faults


def finish(store: Where, groups: list[str], attributes: Mapping[str, Any], status: str = STATUS_COMPLETE) -> None:
    """Consolidate metadata and flip every group to `status`, the root last. Raises StorageError."""
    import zarr

    place = place_of(store)
    with place.writing():
        for group in sorted(groups, key=len, reverse=True):
            folder = zarr.open_group(store=place.zarr_store(group), mode="r+", zarr_format=3)
            folder.attrs.update({**attributes, "status": status})
        if "" not in groups:
            root = zarr.open_group(store=place.zarr_store(), mode="r+", zarr_format=3)
            root.attrs.update({**attributes, "status": status})
        consolidate(place)


def consolidate(store: Where) -> None:
    """Write consolidated metadata, so that one request opens the store. Raises StorageError."""
    import zarr
    from zarr.errors import ZarrUserWarning

    place = place_of(store)
    with warnings.catch_warnings(), place.writing():
        # v3 has consolidated metadata by convention only, and the run folder is not a Zarr node: both are known here
        warnings.simplefilter("ignore", ZarrUserWarning)
        zarr.consolidate_metadata(place.zarr_store())


def status(store: Where) -> str:
    """Status word of a store. IntegrityError when there is no readable group."""
    try:
        attributes = json.loads(place_of(store).read("zarr.json") or b"")["attributes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{store} has no readable zarr.json", "a store written by this pipeline") from error
    return str(attributes.get("status", ""))
