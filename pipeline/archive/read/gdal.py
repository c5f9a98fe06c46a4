"""GDAL settings: its options for reading archives, and the drivers that may open their files.

They hold whatever the user's own GDAL configuration says. There are two fences: drivers that open other files named
inside a file are not registered (GDAL_SKIP), and each file is opened with its driver named, which neither GDAL_SKIP,
GDAL_DRIVER_PATH nor a configuration file can widen.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from pipeline.errors import ReadError

if TYPE_CHECKING:
    from rasterio import DatasetReader

ALLOWED_DRIVERS: tuple[str, ...] = ("GTiff", "JP2OpenJPEG")  # of bands' files; to GDAL a COG is a GTiff
_S3_EXTENSIONS = " .tif .tiff .jp2 .TIF .TIFF .JP2"
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


def gdal_env(signing: str, s3_endpoint: str, *, reads_s3: bool) -> dict[str, str]:
    """GDAL options as environment variables, each with its reason.

    rasterio.Env wants the cache size as a number of bytes, which `band_file.gdal_options` provides. GDAL_SKIP is meant
    for the environment of new processes; `restrict_drivers` does the same for the present one.
    """
    env = {
        "GDAL_HTTP_MAX_RETRY": "1",  # for a hiccup in a long read; `retrying` does the rest
        "GDAL_HTTP_RETRY_DELAY": "1",
        # GDAL >= 3.10. 408 is not in its own list; 429 and 503 make all reads of the host wait, not this one alone.
        "GDAL_HTTP_RETRY_CODES": "408,500,502,504",
        "GDAL_HTTP_CONNECTTIMEOUT": "10",
        "GDAL_HTTP_TIMEOUT": "60",
        "GDAL_HTTP_LOW_SPEED_TIME": "30",  # give up on a connection that delivers less than
        "GDAL_HTTP_LOW_SPEED_LIMIT": "1000",  # 1000 bytes/s for 30 s
        "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
        "GDAL_HTTP_MULTIRANGE": "SERIAL",  # one read, one connection; YES opens one for each row of blocks
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no listing, no side-car files
        "GDAL_INGESTED_BYTES_AT_OPEN": "32768",  # the header of a COG in one request
        # MB per process; the default is 5 % of RAM for every worker. A file is read and closed, which takes one row of
        # blocks; what is read again comes from the gateway or from the system's cache of files.
        "GDAL_CACHEMAX": "64",
        "GDAL_NUM_THREADS": "1",
        "GDAL_SKIP": skipped_drivers(),
        **fence(reads_s3=reads_s3),
        "VSICURL_PC_URL_SIGNING": "NO",  # GDAL does not sign
        "CPL_CURL_VERBOSE": "NO",  # would print headers, secrets included
        "GDAL_VRT_ENABLE_PYTHON": "NO",
        # GDAL caches a 404 for the life of the process unless told not to, so that a retry would have no effect.
        # It splits this list at every colon, hence the prefixes without host.
        "CPL_VSIL_CURL_NON_CACHED": "/vsicurl/http:/vsis3/",
    }
    if signing == "none" and reads_s3:
        env["AWS_NO_SIGN_REQUEST"] = "YES"
    if signing == "cdse-s3":
        env |= {"AWS_S3_ENDPOINT": s3_endpoint, "AWS_VIRTUAL_HOSTING": "FALSE", "AWS_HTTPS": "YES"}
    return env


def fence(*, reads_s3: bool) -> dict[str, str]:
    """The GDAL option that limits this process to network files of the gateway and of listed buckets.

    A GeoTIFF's own metadata can name another file for its overviews (OVERVIEW_FILE), anywhere.
    """
    from pipeline.archive.read.gateway import SUFFIX

    return {"CPL_VSIL_CURL_ALLOWED_EXTENSIONS": SUFFIX + (_S3_EXTENSIONS if reads_s3 else "")}


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
