# %% [markdown]
# # From odc-stac to 2.5 m
#
# You have a cube already: scenes found by a STAC search and loaded by odc-stac, as in many notebooks. In this example
# one call super-resolves it, without a store and without a second search. It loads the scene of the store that the
# README's quick start writes, `python from_odc_stac.py sample.zarr`. With an archive the search would be
#
# ```python
# client = pystac_client.Client.open("https://earth-search.aws.element84.com/v1")
# items = client.search(collections=["sentinel-2-c1-l2a"], bbox=bbox, datetime="2024-06").item_collection()
# cube = odc.stac.load(items, bands=bands, bbox=bbox, resolution=10, resampling="nearest")
# ```

# %%
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import odc.stac
import pystac
import rasterio
import rio_stac
import sen2fine

store = next((word for word in sys.argv[1:] if word.endswith(".zarr")), "sample.zarr")
measured = sen2fine.open_measured(store)

# %% [markdown]
# Here the scene becomes one GeoTIFF per band in a temporary folder, with a STAC item, so that odc-stac has something to
# load without a network. DN are reflectance * 10000 + 1000, as ESA has written them since baseline 04.00.

# %%
folder = Path(tempfile.mkdtemp())
item = None
for part in (measured[10], measured[20]):
    for band in part.band.values:
        values = part.reflectance.sel(band=band).isel(time=0)
        dn = np.where(np.isnan(values), 0, np.rint(values * 1e4 + 1000)).astype("uint16")
        profile = {"driver": "GTiff", "dtype": "uint16", "count": 1, "nodata": 0, "crs": part.rio.crs,
                   "height": dn.shape[0], "width": dn.shape[1], "transform": part.rio.transform()}  # fmt: skip
        with rasterio.open(folder / f"{band}.tif", "w", **profile) as file:
            file.write(dn, 1)
        described = rio_stac.create_stac_item(
            str(folder / f"{band}.tif"),
            id="scene",
            asset_name=str(band),
            asset_href=str(folder / f"{band}.tif"),
            input_datetime=part.time.values[0].astype("datetime64[s]").item(),
            with_proj=True,
            with_raster=True,
        )
        if item is None:
            item = described
        else:
            item.assets[str(band)] = described.assets[str(band)]
items = pystac.ItemCollection([item])

# %% [markdown]
# ## The cube
#
# All bands on the 10 m grid. `resampling="nearest"` copies pixels of the 20 m bands; `super_resolve` finds the copies
# and takes them back. Interpolated bands are refused, since what was measured cannot be had from them.

# %%
cube = odc.stac.load(items, crs=measured[10].rio.crs, resolution=10, resampling="nearest")
print(cube)

# %% [markdown]
# ## Ten times ten metres
#
# DN need their BOA offset: -1000 for products of baseline 04.00 and later whose archive left it in, 0 where it was
# taken out. A cube of reflectance needs none.

# %%
fine = sen2fine.super_resolve(cube, offset=-1000, workers=1)
print(fine)

# %% [markdown]
# The result is what `open_store` gives: reflectance by band, `quality`, and the CRS. It is in memory; with
# `out="fine.zarr"` it would be a store that the same call continues after an interruption.

# %%
left, right = plt.subplots(1, 2, figsize=(11, 5.5), layout="constrained")[1]
rgb = cube[["B04", "B03", "B02"]].to_dataarray("rgb").isel(time=0).transpose("y", "x", "rgb")
left.imshow(((rgb.values - 1000.0) / 1e4 / 0.25).clip(0, 1), interpolation="nearest")
left.set_title("loaded, 10 m")
right.imshow(sen2fine.true_color(fine))
right.set_title("super-resolved, 2.5 m")
for axes in (left, right):
    axes.set_axis_off()
plt.show()

# %% [markdown]
# ## The check
#
# Seen again by the sensor, the output gives back what was loaded: the difference by band, in DN.

# %%
off = (sen2fine.difference(fine, measured)[20] / 1e-4).compute()
for band in off.band.values:
    one = abs(off.sel(band=band))
    print(f"{band}  median {float(one.median()):.2f} DN, 99 % within {float(one.quantile(0.99)):.1f} DN")
