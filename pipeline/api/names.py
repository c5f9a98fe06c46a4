"""Names of bands, as archives and loaders write them."""

from __future__ import annotations

import re

from pipeline.bands import BAND_NAMES, BANDS, SCL

# Names of assets in Earth Search and of `eo:bands`, besides the names in `pipeline.bands`.
_OTHERS = {
    "rededge1": "B05", "rededge2": "B06", "rededge3": "B07", "rededge": "B05", "nir2": "B8A", "nir_1": "B08",
    "nir_2": "B8A", "watervapor": "B09", "water_vapour": "B09", "swir_1": "B11", "swir_2": "B12", "swir1": "B11",
    "swir2": "B12", "red_edge_1": "B05", "red_edge_2": "B06", "red_edge_3": "B07", "coastal_aerosol": "B01",
}  # fmt: skip
_COMMON = {band.common_name: band.name for band in BANDS} | _OTHERS
_ESA = re.compile(r"B(0?\d|1[12]|8A)(?:[_-]?(?:10|20|60)m)?", re.IGNORECASE)


def band_named(name: object) -> str:
    """Return the band of a name such as "B02", "b2", "B02_10m", "blue" or "scl"; "" for any other name.

    >>> [band_named(name) for name in ("B8A", "b2", "B05_20m", "rededge1", "nir08", "scl", "visual")]
    ['B8A', 'B02', 'B05', 'B05', 'B8A', 'SCL', '']
    """
    text = str(name).strip()
    if text.upper() == SCL:
        return SCL
    found = _ESA.fullmatch(text)
    if found is None:
        return _COMMON.get(text.lower(), "")
    code = found[1].upper()
    band = "B8A" if code == "8A" else f"B{int(code):02d}"
    return band if band in BAND_NAMES else ""
