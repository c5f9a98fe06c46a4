"""Attributes of the stored arrays, in the conventions of CF."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.bands import DN_OFFSET, DN_SCALE, NODATA_DN, NODATA_SPREAD
from pipeline.store import extras, gdal_names, levels

if TYPE_CHECKING:
    from pipeline.store.extras import MapRaster
    from pipeline.store.levels import Level


def array_attributes(
    name: str, level: Level, fill: int, meanings: str, of_map: MapRaster | None, *, styled: bool, with_mtf: bool
) -> dict[str, Any]:
    """Return the attributes of an array of a level: names, units, packing, classes.

    fill: its nodata value. meanings: names of its classes from 0 on. of_map: the map, of the array that holds it.
    styled: colours are those of a style. with_mtf: bands have a coordinate `mtf`.
    """
    georeference = {"grid_mapping": "spatial_ref", "coordinates": "spatial_ref"}
    coarse = {"cell_methods": "area: mean"} if level.path.startswith(levels.OVERVIEWS) else {}
    if name == "reflectance":
        measured = level.path.startswith(levels.MEASURED)
        styled = styled and not measured
        what = "colours of a style, on the scale of reflectance" if styled else "bottom-of-atmosphere reflectance"
        return {
            **({} if styled else {"standard_name": "surface_bidirectional_reflectance"}),
            "long_name": f"{what} as measured, the input" if measured else what,
            "units": "1",
            "scale_factor": DN_SCALE,
            "add_offset": DN_OFFSET,
            "_FillValue": NODATA_DN,
            **coarse,
            "grid_mapping": "spatial_ref",
            "coordinates": f"spatial_ref wavelength_nm native_gsd_m generated{' mtf' if with_mtf else ''}",
        }
    if name == "uncertainty":
        return {
            "long_name": "standard deviation over members of the generated detail",
            "units": "1",
            "scale_factor": DN_SCALE,
            "add_offset": 0.0,
            **({"_FillValue": NODATA_SPREAD} if fill == NODATA_SPREAD else {}),
            **coarse,
            **georeference,
        }
    if name == extras.MAP_CLASS and of_map is not None:
        return {**of_map.attributes, **georeference}
    if name == "scl":
        values = list(range(len(gdal_names.SCL_MEANINGS.split())))
        return {"long_name": "Sen2Cor scene classification, 20 m, nearest", "flag_values": values,
                "flag_meanings": gdal_names.SCL_MEANINGS, **georeference}  # fmt: skip
    values = list(range(len(meanings.split())))
    return {"long_name": "what the RGB of a pixel rests on", "flag_values": values,
            "flag_meanings": meanings, **georeference}  # fmt: skip
