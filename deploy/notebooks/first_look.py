# %% [markdown]
# # A first look at a store
#
# In this example you will open a store, look at it in true and false colour beside what was measured, compute an index
# that respects nodata, and check that the means are the measured ones. It runs on the store that the README's quick
# start writes: `python first_look.py sample.zarr`, or cell by cell in Jupyter. Over several UTM zones `open_store`
# gives a DataTree; continue with one of its zones, `ds = tree["utm31n"].to_dataset()`.

# %%
import json
import sys

import matplotlib.pyplot as plt
import numpy as np

import pipeline

store = next((word for word in sys.argv[1:] if word.endswith(".zarr")), "sample.zarr")
ds = pipeline.open_store(store)  # lazy: pixels are read when they are needed
print(ds)

# %% [markdown]
# The store says what it was made from.

# %%
print(f"super-resolution by {ds.attrs['super_resolution']}, consistency {ds.attrs['consistency']}")
for name, scene in json.loads(ds.attrs["scenes"]).items():
    print(f"{scene['datetime'][:10]}  {name}  BOA offset {scene['offset_dn']} ({scene['offset_evidence']})")

# %% [markdown]
# Bands have names, wavelengths, the GSD at which they are measured, and a mark where a network adds finer detail.

# %%
for name in ds.band.values:
    band = ds.sel(band=name)
    kind = "detail generated" if band.generated else "interpolated"
    print(f"{name}  {float(band.wavelength_nm):7.1f} nm  measured at {int(band.native_gsd_m):2d} m  {kind}")

# %% [markdown]
# ## Measured and super-resolved
#
# `open_measured` gives what went in, on its own grids. Look at 400 m of ground in true colour (B04 B03 B02) and in
# false colour (B08 B04 B03), where vegetation is red. The stretch is fixed, so that dates and places compare; `high=`
# and `gamma=` change it. Edges are sharper at 2.5 m; what is finer than 10 m was inferred by a network that has seen
# many fields and roads, not measured here.

# %%
measured = pipeline.open_measured(store)
fine, coarse = ds.isel(time=0), measured[10].isel(time=0)
middle_x, middle_y = float(ds.x.mean()), float(ds.y.mean())
square = {"x": slice(middle_x - 200, middle_x + 200), "y": slice(middle_y + 200, middle_y - 200)}
figure, axes = plt.subplots(2, 2, figsize=(10, 10.5), layout="constrained", sharex=True, sharey=True)
pictures = {"true colour": pipeline.true_color, "false colour": pipeline.false_color}
for row, (name, picture) in zip(axes, pictures.items(), strict=True):
    for panel, (image, said) in zip(row, ((coarse, "measured, 10 m"), (fine, "super-resolved, 2.5 m")), strict=True):
        picture(image).sel(square).plot.imshow(ax=panel, rgb="rgb", interpolation="nearest", add_labels=False)
        panel.set(title=f"{name}, {said}", aspect="equal", xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## An index
#
# `pipeline.indices` takes a name or several; nodata and divisions by zero are NaN, and the attributes say what was
# computed. The 10 m index is computed from the measured bands.

# %%
ndvi, ndvi10 = pipeline.indices(fine, "ndvi").compute(), pipeline.indices(coarse, "ndvi").compute()
print(f"{ndvi.attrs['long_name']}: {ndvi.attrs['formula']}, {ndvi.attrs['source']}")
figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained", sharex=True, sharey=True)
for panel, (image, said) in zip(axes, ((ndvi10, "10 m"), (ndvi, "2.5 m")), strict=True):
    shown = image.sel(square).plot.imshow(
        ax=panel, vmin=0, vmax=1, cmap="YlGn", interpolation="nearest", add_labels=False, add_colorbar=False
    )
    panel.set(title=f"NDVI, {said}", aspect="equal", xticks=[], yticks=[])
figure.colorbar(shown, ax=axes, shrink=0.8, label="NDVI")
plt.show()
for image, said in ((ndvi10, "10.0 m"), (ndvi, " 2.5 m")):
    print(f"NDVI {said}: mean {float(image.mean()):.3f}, standard deviation {float(image.std()):.3f}")

# %% [markdown]
# ## The promise, checked
#
# What the sensor would measure of the output is what it has measured: without bias, and within its noise.

# %%
seen = pipeline.reobserve(fine.reflectance)
for gsd, native in measured.items():
    off = (seen[gsd] - native.reflectance.isel(time=0)) / 1e-4
    print(f"{gsd:2d} m bands: 99 % within {float(abs(off).quantile(0.99)):.1f} DN, bias {float(off.mean()):.2f} DN")

# %% [markdown]
# ## Where detail was generated
#
# `quality` tells what the pixels rest on. Leave what is not `generated` out of statistics about small things.

# %%
meanings = ds.quality.attrs["flag_meanings"].split()
for value, count in zip(*np.unique(ds.quality.values, return_counts=True), strict=True):
    print(f"{meanings[value]:<24} {100 * count / ds.quality.size:5.1f} % of pixels")

# %% [markdown]
# ## Coarser levels
#
# Overviews open as the store does, for maps of large areas: `open_store(store, gsd_m=10)`, 20, 40 ... m.

# %%
overview = pipeline.open_store(store, gsd_m=10)
figure, panel = plt.subplots(figsize=(6, 6), layout="constrained")
pipeline.true_color(overview.isel(time=0)).plot.imshow(ax=panel, rgb="rgb", add_labels=False)
panel.set(title=f"overview, {overview.sizes['y']} x {overview.sizes['x']} pixels of 10 m", aspect="equal")
panel.ticklabel_format(style="plain", useOffset=False)
panel.tick_params(axis="x", rotation=30)
plt.show()
