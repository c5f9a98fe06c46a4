# %% [markdown]
# # A first look at a store
#
# In this example you will learn how to open a store, pick bands by name, compare 2.5 m with the measured 10 m, and
# compute an index that respects nodata. It runs on the store that the README's quick start writes.

# %%
import sys

import numpy as np

import pipeline

store = sys.argv[1] if len(sys.argv) > 1 else "sample.zarr"
ds = pipeline.open_store(store)
print(ds)

# %% [markdown]
# Bands have names, wavelengths, and the GSD at which they are measured.

# %%
for name, gsd, wavelength in zip(ds.band.values, ds.native_gsd_m.values, ds.wavelength_nm.values, strict=True):
    print(f"{name}  {wavelength:7.1f} nm  measured at {gsd} m")

# %% [markdown]
# NDVI at 2.5 m, and the same from what was measured: means over 4 x 4 pixels are the 10 m input.

# %%
red, nir = (ds.reflectance.sel(band=name).isel(time=0) for name in ("B04", "B08"))
ndvi = ((nir - red) / (nir + red)).compute()
red10, nir10 = (band.coarsen(y=4, x=4).mean() for band in (red, nir))
ndvi10 = ((nir10 - red10) / (nir10 + red10)).compute()
print(f"NDVI  2.5 m: mean {float(ndvi.mean()):.3f}, spread {float(ndvi.std()):.3f}")
print(f"NDVI 10.0 m: mean {float(ndvi10.mean()):.3f}, spread {float(ndvi10.std()):.3f}")

# %% [markdown]
# `quality` tells where detail was generated. Leave it out of statistics about small things.

# %%
classes, counts = np.unique(ds.quality.values, return_counts=True)
meanings = ds.quality.attrs["flag_meanings"].split()
for value, count in zip(classes, counts, strict=True):
    print(f"{meanings[value]:<24} {100 * count / ds.quality.size:5.1f} % of pixels")
