"""What a band file declares about its values: nodata, masks, scale and offset, including its sidecar files.

GDAL is told to open no sidecar files (`gdal.gdal_env`), since an `.aux.xml` may name any file as an overview. The
statements that matter are read here: the `.msk` mask, and nodata, scale and offset in the `.aux.xml`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.archive.read import zipped
from pipeline.bands import CANONICAL_OFFSET_DN, DN_SCALE

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from rasterio import DatasetReader

_MAX_AUX_BYTES = 10_000_000  # histograms and attribute tables of one band; real ones stay below 1 MB
_VSIZIP = "/vsizip/"
_CLOSE = 1e-9  # of scales; decimals in text


@dataclass(frozen=True)
class Declared:
    """`nodata`: values without data. `masked`: the file holds a mask or alpha. `mask`: path of a `.msk` beside it."""

    nodata: tuple[float, ...] = ()
    masked: bool = False
    mask: str = ""
    offset_dn: int | None = None  # BOA offset by the scale and offset tags; None without them


def declared_by(dataset: DatasetReader) -> Declared:
    """Declarations of an open file and its sidecar files. ValueError for values that are not DN, or a contradiction."""
    from rasterio.enums import MaskFlags

    nodata = set() if dataset.nodata is None else {float(dataset.nodata)}
    offsets = _offsets(dataset.scales[0], dataset.offsets[0])
    path = _local(dataset.name)
    mask = ""
    if path is not None:
        aux = _aux(path)
        if aux is not None:
            _check_place(aux, dataset)
            nodata |= {float(text) for text in _texts(aux, "NoDataValue")}
            scales, shifts = _texts(aux, "Scale"), _texts(aux, "Offset")
            offsets |= _offsets(float(scales[0] if scales else 1), float(shifts[0] if shifts else 0))
        beside = path.with_name(f"{path.name}.msk")
        mask = f"{dataset.name}.msk" if zipped.exists(beside) else ""
    if len(offsets) > 1:
        raise ValueError(f"its tags and its .aux.xml state different offsets {sorted(offsets)} DN")
    masked = MaskFlags.per_dataset in dataset.mask_flag_enums[0]
    return Declared(tuple(sorted(nodata)), masked, mask, next(iter(offsets), None))


def _offsets(scale: float, offset: float) -> set[int]:
    """BOA offset in DN that value = DN * scale + offset means: none for the defaults 1 and 0, else one.

    >>> _offsets(0.0001, -0.1), _offsets(1, 0)
    ({-1000}, set())
    """
    if (scale, offset) == (1, 0):
        return set()
    said = f"its tags state scale {scale:g} and offset {offset:g}"
    right = f"expected {DN_SCALE:g} with 0 or {CANONICAL_OFFSET_DN * DN_SCALE:g}"
    if not any(abs(scale - known) < _CLOSE for known in (1, DN_SCALE)):
        raise ValueError(f"{said}; {right}")
    exact = offset / scale
    if not any(abs(exact - known) < 0.01 for known in (0, CANONICAL_OFFSET_DN)):
        raise ValueError(f"{said}; {right}")
    return {round(exact)}


def _local(name: str) -> Path | None:
    """Path of a local dataset, through the zip archive if it lies in one; None for anything else."""
    if name.startswith(_VSIZIP):
        return Path(name.removeprefix(_VSIZIP))
    return None if name.startswith("/vsi") or "://" in name else Path(name)


def _aux(path: Path) -> Element | None:
    """Root of the file's `.aux.xml`; None when there is none. ValueError when it cannot be read."""
    from xml.etree.ElementTree import ParseError, fromstring

    content = zipped.read(path.with_name(f"{path.name}.aux.xml"), _MAX_AUX_BYTES)
    if not content or not content.strip():
        return None
    try:
        return fromstring(content)
    except ParseError as error:
        raise ValueError(f"{path.name}.aux.xml beside it cannot be read: {error}") from error


def _texts(aux: Element, tag: str) -> list[str]:
    """Texts of a tag of the first band."""
    bands = [band for band in aux.iter("PAMRasterBand") if band.get("band", "1") == "1"]
    return [text for band in bands for node in band.findall(tag) if (text := (node.text or "").strip())]


def _check_place(aux: Element, dataset: DatasetReader) -> None:
    """ValueError where the `.aux.xml` puts the image elsewhere than the file itself."""
    text = aux.findtext("GeoTransform")
    if not text:
        return
    stated, own = [float(part) for part in text.split(",")], dataset.transform.to_gdal()
    if any(abs(a - b) > 1e-3 for a, b in zip(stated, own, strict=False)):
        raise ValueError(f"its .aux.xml places it at {stated[0]:g}, {stated[3]:g}, the file at {own[0]:g}, {own[3]:g}")
