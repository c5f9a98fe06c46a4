"""Metadata of exported GeoTIFFs: CRS, transform, nodata, scale, names, classes, provenance."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any

from pipeline.bands import BY_NAME, DN_OFFSET, DN_SCALE, LABELS, NODATA_DN, NODATA_SPREAD, finer_detail
from pipeline.store.gdal_names import COLOURS, band_title
from pipeline.store.selection import CLASSES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rasterio.io import DatasetWriter

    from pipeline.store.selection import Slab

_INTERPRETED = {"B02": "blue", "B03": "green", "B04": "red"}  # colour interpretations of GDAL before 3.10
# An item of GDAL's metadata in the file, and a placeholder of the same length until the file is finished.
_DATE_ITEM = 'ACQUISITIONDATETIME" domain="IMAGERY'
_DATE_MARK = "ACQUISITIONDATETIME".ljust(len(_DATE_ITEM), "_")
_SHOWN_SCENES = 50  # some readers limit the length of tags


def profile(slab: Slab, bands: tuple[str, ...]) -> dict[str, Any]:
    """Return the rasterio profile of a file of `bands` (one unnamed band for classes) over the slab's window."""
    import rasterio

    return {
        "count": max(1, len(bands)),
        "height": slab.window.ny,
        "width": slab.window.nx,
        "dtype": "uint8" if slab.variable in CLASSES else "uint16",
        "nodata": NODATA_SPREAD if slab.variable == "uncertainty" else NODATA_DN,
        "crs": f"EPSG:{slab.epsg}",
        "transform": rasterio.Affine(*slab.transform),
    }


def describe(file: DatasetWriter, slab: Slab, bands: tuple[str, ...], flags: Mapping[str, str]) -> None:
    """Write names, scale, colours and provenance into a new file, before any pixel.

    `flags` holds the long name and the class meanings from the array's attributes.
    """
    from rasterio.enums import ColorInterp

    file.update_tags(AREA_OR_POINT="Area", **_tags(slab, bands))
    file.update_tags(**{_DATE_MARK: slab.time_utc})
    if slab.variable in CLASSES:
        file.set_band_description(1, flags.get("long_name", slab.variable))
        file.update_tags(1, **{key: value for key, value in flags.items() if key != "long_name"})
        file.write_colormap(1, {value: (*colour, 255) for value, colour in enumerate(COLOURS[slab.variable])})
        return
    reflectance = slab.variable == "reflectance"
    file.scales = (DN_SCALE,) * len(bands)
    file.offsets = (DN_OFFSET if reflectance else 0.0,) * len(bands)
    if len(bands) > 1:
        named = [_INTERPRETED.get(name, "undefined") if reflectance else "undefined" for name in bands]
        file.colorinterp = [ColorInterp[name] for name in named]
    for number, name in enumerate(bands, start=1):
        wavelength_nm = BY_NAME[name].wavelength_nm
        file.set_band_description(number, band_title(name, slab.variable))
        file.update_tags(
            number,
            band=name,
            wavelength_nm=f"{wavelength_nm:g}",
            native_gsd_m=str(BY_NAME[name].gsd_m),
            generated=str(name in slab.generated).lower(),
            detail=finer_detail(name, generated=name in slab.generated),
        )
        file.update_tags(number, ns="IMAGERY", CENTRAL_WAVELENGTH_UM=f"{wavelength_nm / 1000:.4f}")


def date_image(path: Path) -> None:
    """Move the date of a finished file into the domain IMAGERY, where rio-stac reads it, in place.

    GDAL's COG driver copies that domain only with COPY_SRC_MDD=YES, which loses band metadata (3.9 to 3.12). Writing it
    afterwards would move the file's header to its end. Raises ValueError if the placeholder is missing.
    """
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        at = content.find(_DATE_MARK.encode())
        if at < 0:
            raise ValueError(f"{path} holds no {_DATE_MARK}")
        content[at : at + len(_DATE_ITEM)] = _DATE_ITEM.encode()


def _tags(slab: Slab, bands: tuple[str, ...]) -> dict[str, str]:
    """Return the provenance tags, from the attributes of the group."""
    stated = slab.attributes
    period = _period(slab)
    scenes = [str(name) for name in period.get("scenes", [])]
    shown = ", ".join(scenes[:_SHOWN_SCENES]) + (
        f" and {len(scenes) - _SHOWN_SCENES} more" if scenes[_SHOWN_SCENES:] else ""
    )
    generated = [name for name in bands if name in slab.generated]
    tags = {
        "TIFFTAG_IMAGEDESCRIPTION": f"{stated.get('title', '')}, {slab.variable}, {slab.date}".removeprefix(", "),
        "TIFFTAG_SOFTWARE": str(stated.get("software", "")),
        "TIFFTAG_COPYRIGHT": str(stated.get("credit") or stated.get("license") or ""),
        "TIFFTAG_DATETIME": slab.time_utc[:19].replace("-", ":").replace("T", " "),
        "datetime": slab.time_utc,
        "period": str(period.get("label", "")),
        "composite": str(period.get("composite", "")),
        "scenes": shown,
        "license": str(stated.get("license", "")),
        "credit": str(stated.get("credit", "")),
        "super_resolution": str(stated.get("super_resolution", "")),
        "weights_license": str(stated.get("weights_license", "")),
        "weights_credits": str(stated.get("weights_credits", "")),
        "plan_digest": str(stated.get("plan_digest", "")),
        "status": str(stated.get("status", "")),
        "gsd_m": f"{slab.gsd_m:g}",
        "generated_bands": ", ".join(generated) if bands else "",
        "comment": str(stated.get("comment", "")),
        **{name: str(stated.get(name, "")) for name in LABELS},
    }
    return {key: value for key, value in tags.items() if value}


def _period(slab: Slab) -> dict[str, Any]:
    """Return the attributes of the time step: label, composite and scenes."""
    periods: list[dict[str, Any]] = list(slab.attributes.get("periods", []))
    return periods[slab.time_index] if slab.time_index < len(periods) else {}
