"""Formats of vector maps, by suffix and first bytes.

The suffix of an untrusted file proves nothing, and a driver chosen by GDAL may follow references in the file.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

OSM, PARQUET, GEOJSON = "OSM", "Parquet", "GeoJSON"
VECTOR_SUFFIXES = {
    ".gpkg": "GPKG",
    ".fgb": "FlatGeobuf",
    ".geojson": GEOJSON,
    ".json": GEOJSON,
    ".shp": "ESRI Shapefile",
    ".parquet": PARQUET,
    ".geoparquet": PARQUET,
    ".pbf": OSM,
    ".osm": OSM,
}
UNINDEXED = frozenset({OSM, PARQUET, GEOJSON})  # formats that are read from their beginning whatever is asked for
_HEAD_BYTES = 1024
_OSM_XML = re.compile(rb"\s*(<\?xml[^>]*\?>\s*)?(<!--.*?-->\s*)*<osm\b", re.DOTALL)
_BEGINNINGS = {
    "GPKG": re.compile(rb"SQLite format 3\0"),
    "FlatGeobuf": re.compile(rb"fgb"),
    GEOJSON: re.compile(rb"\s*\{"),
    "ESRI Shapefile": re.compile(rb"\0\0\x27\n"),
    PARQUET: re.compile(rb"PAR1"),
    OSM: re.compile(rb"\0\0..\n\x09OSMHeader", re.DOTALL),
}
_BLOB_HEADER_MAX = 64 * 1024  # of the format's specification; blobs have at most 32 MiB
_BLOB_MAX = 32 * 1024 * 1024


def driver_of(path: Path) -> str:
    """Return the GDAL driver of a vector file, or `PARQUET`, by its suffix.

    Raises UsageError if the content does not fit the suffix, or ends too early to be read.
    """
    suffix = path.suffix.lower()
    driver = VECTOR_SUFFIXES[suffix]
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES).removeprefix(b"\xef\xbb\xbf")
        if not head:
            raise UsageError(f"{path} is empty", "a file with a map", "fetch or write it anew")
        beginning = _OSM_XML if suffix == ".osm" else _BEGINNINGS[driver]
        if not beginning.match(head):
            shown = "OSM PBF" if suffix == ".pbf" else "OSM XML" if suffix == ".osm" else driver
            raise UsageError(f"{path} is no {shown} file", f"content that matches the suffix, {shown}")
        if suffix == ".pbf" and not _blobs_are_whole(file):
            raise UsageError(f"{path} ends within a block of data", "a whole OSM PBF file", "fetch it anew")
        if driver == PARQUET and not _ends_with(file, b"PAR1"):
            raise UsageError(f"{path} ends without the footer of Parquet", "a whole file", "fetch it anew")
    return driver


def _ends_with(file: BinaryIO, last: bytes) -> bool:
    size = file.seek(0, 2)
    file.seek(max(0, size - len(last)))
    return file.read() == last and size > len(last)


def _blobs_are_whole(file: BinaryIO) -> bool:
    """Return whether a PBF file ends where its last blob does.

    A blob follows its header, which follows its own length in 4 bytes (wiki.openstreetmap.org/wiki/PBF_Format).
    """
    end = file.seek(0, 2)
    at = 0
    while at < end:
        file.seek(at)
        length = int.from_bytes(file.read(4), "big")
        header = file.read(length) if length <= _BLOB_HEADER_MAX else b""
        size = _data_size(header)
        if not header or size is None or not 0 <= size <= _BLOB_MAX:
            return False
        at += 4 + length + size
    return at == end


def _data_size(header: bytes) -> int | None:
    """Return field 3, `datasize`, of a BlobHeader in protobuf's encoding, or None if it is not one."""
    at, size = 0, None
    while at < len(header):
        tag, at = _varint(header, at)
        value, at = _varint(header, at)
        if tag & 7 == 2:  # length-delimited: type and indexdata
            at += value
        elif tag == 3 << 3:
            size = value
    return size if at == len(header) else None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a base-128 number at an offset, and the offset behind it."""
    value = shift = 0
    while at < len(data):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            break
    return value, at
