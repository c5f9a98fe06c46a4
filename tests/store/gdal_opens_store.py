"""Shows that GDAL opens a store: `python tests/store/gdal_opens_store.py STORE [LEVEL]`, such as overviews/10m.

Needs rasterio 1.5 (GDAL 3.12) and nothing of the pipeline; its wheels begin with Python 3.12, so this is a script and
no test. Prints what GDAL sees and fails where CRS, nodata, scale or offset are not seen.
"""

import sys
from pathlib import Path

import rasterio
from rasterio.windows import Window

store, level = Path(sys.argv[1]).resolve(), sys.argv[2] if len(sys.argv) > 2 else ""
print(f"rasterio {rasterio.__version__}, GDAL {rasterio.__gdal_version__}")
for name in ("reflectance", "quality"):
    path = "/".join(part for part in (level, name) if part)
    if not (store / path).is_dir():
        continue
    with rasterio.open(f'ZARR:"{store}":/{path}') as image:
        corner = image.read(window=Window(0, 0, 64, 64))
        print(f"/{path}: {image.count} band(s) of {image.height} x {image.width} px, {image.crs}")
        print(f"  transform {tuple(image.transform)[:6]}, nodata {image.nodata}")
        print(f"  scale {image.scales[0]}, offset {image.offsets[0]}; first 64 px: {corner.min()} to {corner.max()}")
        assert image.crs is not None
        assert image.transform.a > 0
        print(f"  bands {', '.join(map(str, image.descriptions[:4]))}")
        assert image.descriptions[0] == "quality" if name == "quality" else image.descriptions[0].endswith(" nm")
        assert name == "quality" or (image.nodata, image.scales[0], image.offsets[0]) == (0, 0.0001, -0.1)
