"""Names of bands and classes in `.aux.xml` sidecars, the only place where GDAL and QGIS look for them.

A Zarr array opened as a raster is a derived dataset of the array's `zarr.json`, named after the array
(GDALMDArray::AsClassicDataset; seen with GDAL 3.12).
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

from pipeline.bands import BY_NAME
from pipeline.store.extras import MAP_CLASS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

GDAL_READS, GDAL_READS_SHARDS = "3.12", "3.13"  # first versions that read stores, and stores with --shard
SIDECAR = "zarr.json.aux.xml"  # within an array's folder
SCL_MEANINGS = (
    "no_data saturated_or_defective dark_area cloud_shadow vegetation not_vegetated water unclassified "
    "cloud_medium_probability cloud_high_probability thin_cirrus snow_or_ice"
)
# Scene class colours are those of Sen2Cor's viewer (Sen2Cor user manual); quality colours are our own.
COLOURS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "scl": ((0, 0, 0), (255, 0, 0), (47, 47, 47), (100, 50, 0), (0, 160, 0), (255, 230, 90), (0, 0, 255),
            (128, 128, 128), (192, 192, 192), (255, 255, 255), (100, 200, 255), (255, 150, 255)),
    "quality": ((0, 0, 0), (120, 120, 120), (240, 190, 60), (60, 160, 90)),
    # of vector maps, whose classes differ: a red, greys for ways, blues, greens and more
    MAP_CLASS: ((0, 0, 0), (214, 69, 65), (90, 90, 90), (150, 150, 150), (60, 60, 140), (70, 130, 220),
                (40, 120, 60), (225, 205, 120), (170, 120, 200), (240, 150, 60), (120, 200, 200), (200, 200, 60),
                (130, 90, 60), (240, 170, 190), (160, 200, 120), (255, 255, 255)),
}  # fmt: skip
# Columns of a raster attribute table: name, type (0 integer, 2 text), usage (GDALRATFieldUsage).
_COLUMNS = (("value", 0, 5), ("class", 2, 2), ("red", 0, 6), ("green", 0, 7), ("blue", 0, 8))


_FILE_SYSTEMS = {"s3": "/vsis3/", "s3a": "/vsis3/", "gs": "/vsigs/", "az": "/vsiaz/"}  # of GDAL


def dataset_name(store: str, group: str = "", array: str = "reflectance") -> str:
    """Return what GDAL (from 3.12) and QGIS take as the name of an array's raster. `store` is an absolute path or URL.

    >>> dataset_name("/data/lyon.zarr", array="overviews/10m/reflectance")
    'ZARR:"/data/lyon.zarr":/overviews/10m/reflectance'
    >>> dataset_name("s3://bucket/lyon.zarr", "utm31n")
    'ZARR:"/vsis3/bucket/lyon.zarr":/utm31n/reflectance'
    """
    scheme, found, rest = store.partition("://")
    if found:
        store = f"{_FILE_SYSTEMS[scheme]}{rest}" if scheme in _FILE_SYSTEMS else f"/vsicurl/{store}"
    return f'ZARR:"{store}":/{group}{"/" if group else ""}{array}'


def band_title(name: str, variable: str = "reflectance") -> str:
    """Return the title of a band: "B04 664.6 nm", with "standard deviation" appended for uncertainty."""
    what = "" if variable == "reflectance" else " standard deviation"
    return f"{name} {BY_NAME[name].wavelength_nm:g} nm{what}"


def of_bands(names: Sequence[str], variable: str, steps: Sequence[str]) -> list[str]:
    """Return XML of the raster bands of (time, band, y, x); `steps` name the time steps if there are several."""
    titles = [(f"{step} " if len(steps) > 1 else "") + band_title(name, variable) for step in steps for name in names]
    wavelengths = [f"{BY_NAME[name].wavelength_nm / 1000:.4f}" for _ in steps for name in names]
    return [
        f'<PAMRasterBand band="{number}"><Description>{escape(title)}</Description>'
        f'<Metadata domain="IMAGERY"><MDI key="CENTRAL_WAVELENGTH_UM">{wavelength}</MDI></Metadata></PAMRasterBand>'
        for number, (title, wavelength) in enumerate(zip(titles, wavelengths, strict=True), start=1)
    ]


def of_classes(variable: str, meanings: str, steps: Sequence[str]) -> list[str]:
    """Return XML of the raster bands of (time, y, x) classes: category names, colours, attribute table."""
    names = [word.replace("_", " ") for word in meanings.split()]
    colours = COLOURS[variable][: len(names)]
    categories = "".join(f"<Category>{escape(name)}</Category>" for name in names)
    entries = "".join(f'<Entry c1="{r}" c2="{g}" c3="{b}" c4="255"/>' for r, g, b in colours)
    table = _attribute_table(
        [(value, name, *colour) for value, (name, colour) in enumerate(zip(names, colours, strict=True))]
    )
    shared = f"<CategoryNames>{categories}</CategoryNames><ColorInterp>Palette</ColorInterp>"
    shared += f"<ColorTable>{entries}</ColorTable>{table}"
    return [
        f'<PAMRasterBand band="{number}"><Description>{escape(f"{variable} {step}" if len(steps) > 1 else variable)}'
        f"</Description>{shared}</PAMRasterBand>"
        for number, step in enumerate(steps, start=1)
    ]


def _attribute_table(rows: Iterable[tuple[object, ...]]) -> str:
    columns = "".join(
        f'<FieldDefn index="{index}"><Name>{name}</Name><Type>{kind}</Type><Usage>{usage}</Usage></FieldDefn>'
        for index, (name, kind, usage) in enumerate(_COLUMNS)
    )
    body = "".join(
        f'<Row index="{index}">{"".join(f"<F>{escape(str(value))}</F>" for value in row)}</Row>'
        for index, row in enumerate(rows)
    )
    return f'<GDALRasterAttributeTable tableType="thematic">{columns}{body}</GDALRasterAttributeTable>'


def of_file(bands: Iterable[str]) -> bytes:
    """Return the sidecar of a raster file."""
    return f"<PAMDataset>{''.join(bands)}</PAMDataset>\n".encode()


def of_array(bands: Sequence[str], dims: int, paths: Iterable[str]) -> bytes:
    """Return the sidecar of a Zarr array of `dims` dimensions.

    `paths` are the array's paths in the stores that it may be opened from.
    """
    content = f"<PAMDataset>{''.join(bands)}</PAMDataset>"
    views = [f"AsClassicDataset({dims - 1},{dims - 2}) view of /{path}" for path in dict.fromkeys(paths)]
    derived = "".join(f"<DerivedDataset name={quoteattr(view)}>{content}</DerivedDataset>" for view in views)
    return f"<PAMDataset>{derived}</PAMDataset>\n".encode()
