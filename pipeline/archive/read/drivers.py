"""Which of GDAL's drivers may open files of archives, whatever the user's own GDAL configuration says.

Two fences: drivers that open other files named inside a file are not registered (GDAL_SKIP), and each file is opened
with its driver named, which neither GDAL_SKIP, GDAL_DRIVER_PATH nor a configuration file can widen.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from pipeline.errors import ReadError

if TYPE_CHECKING:
    from rasterio import DatasetReader

ALLOWED_DRIVERS: tuple[str, ...] = ("GTiff", "JP2OpenJPEG")  # of bands' files; to GDAL a COG is a GTiff
# Drivers that open other files or addresses named inside a file: a remote VRT reads local files (OSGeo/gdal#12645).
_INDIRECT_DRIVERS = (
    "VRT,GTI,DERIVED,STACIT,STACTA,Zarr,WMS,WMTS,WCS,OGCAPI,HTTP,PLMOSAIC,DAAS,EEDA,EEDAI,NGW,PostGISRaster,"
    "Rasterlite,GDALG,TIL,DIMAP,SAFE,SENTINEL2,KMLSUPEROVERLAY,MBTiles,ESRIC,netCDF,HDF5,HDF5Image"
)


def restrict_drivers() -> bool:
    """Keep GDAL from opening files that point to other files; True when it took effect.

    GDAL reads GDAL_SKIP only while it registers drivers, and only from the process environment (an option of
    rasterio.Env comes too late), so call this before rasterio is first used. WarpedVRT, hence stackstac, still works.
    A second fence: files of archives are opened by `open_raster`, which names the drivers that may be tried.
    """
    os.environ["GDAL_SKIP"] = skipped_drivers()
    import rasterio

    with rasterio.Env() as env:
        return "VRT" not in env.drivers()


def skipped_drivers() -> str:
    """Our GDAL_SKIP and the user's own; GDAL splits at commas where there is one, else at spaces."""
    own = os.environ.get("GDAL_SKIP", "")
    names = [name.strip() for name in (own.split(",") if "," in own else own.split())]
    wanted = [*_INDIRECT_DRIVERS.split(","), *names]
    return ",".join(dict.fromkeys(name for name in wanted if name and name not in ALLOWED_DRIVERS))


def open_raster(path: str, what: str = "the file", **options: object) -> DatasetReader:
    """A file that GDAL may open, by one of ALLOWED_DRIVERS whatever else is registered.

    rasterio's errors. ReadError, which names `what`, for a file on this machine that is neither GeoTIFF nor JPEG 2000.
    """
    import rasterio
    from rasterio.errors import RasterioIOError

    first, *others = sorted(ALLOWED_DRIVERS, key=lambda name: (name == "GTiff") == (".jp2" in path.lower()))
    try:
        return rasterio.open(path, driver=first, **options)
    except RasterioIOError as error:
        if "not recognized as" not in str(error):
            raise
        for driver in others:
            with suppress(RasterioIOError):
                return rasterio.open(path, driver=driver, **options)
        if not path.startswith("/vsi") and os.path.getsize(path):
            raise ReadError(
                f"{what} at {path} cannot be read as GeoTIFF or JPEG 2000",
                f"a file that GDAL opens with {' or '.join(ALLOWED_DRIVERS)}",
                "leave the scene out, or fetch the file again",
            ) from None
        raise
