# %% [markdown]
# # A season at 2.5 m
#
# In this example you will turn a stack of dates into an archive, run the pipeline with one time step per date, and
# follow NDVI through the season. With `SEN2FINE_DATA` set it uses seven monthly syntheses of a French landscape (Theia,
# Level 3A, 2018: `s2_l2a/theia_bouconne_7dates`); else it makes a small landscape of its own, with the same dates.

# %%
import json
import os
import sys
import tempfile
from contextlib import redirect_stderr
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import rasterio
import sen2fine
from matplotlib.dates import DateFormatter
from rasterio.warp import transform_bounds
from scipy.cluster.vq import kmeans2
from scipy.ndimage import gaussian_filter
from scipy.spatial import KDTree

from pipeline import index
from pipeline.archive.stack import Stack, split_stack
from pipeline.bands import BAND_NAMES

data = os.environ.get("SEN2FINE_DATA")
data = Path(data).resolve() if data else None
scratch = tempfile.TemporaryDirectory()
os.chdir(scratch.name)
DATES = ("2018-04-29", "2018-05-13", "2018-07-08", "2018-08-15", "2018-09-15", "2018-10-15", "2018-11-15")

# %% [markdown]
# ## A stack of dates and bands
#
# Level-3 products often come as one file: all bands of the first date, then all of the second ... The made-up landscape
# has winter crops, summer crops, meadows and bare ground, each with its own season, and is seen as an instrument would
# see it: blurred, and one value per 10 m.


# %%
def make_stack(path: Path) -> tuple[str, ...]:
    """Write a 2.4 km landscape, four bands of every date, reflectance times 10,000; returns the bands."""
    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[0:984, 0:908]  # at 2.5 m
    field = KDTree(rng.uniform(0, 984, (200, 2))).query(np.stack([rows, cols], -1))[1]
    seasons = np.array(  # NDVI of the ground, day of the peak, its height and half width in days
        [[0.2, 135, 0.6, 45], [0.2, 215, 0.6, 40], [0.55, 160, 0.2, 90], [0.12, 180, 0.05, 60]]
    )
    base, peak, height, width = np.moveaxis(seasons[rng.integers(0, len(seasons), 200)[field]], -1, 0)
    layers = []
    for date in DATES:
        day = (np.datetime64(date) - np.datetime64("2018-01-01")).astype(int)
        ndvi = base + height * np.exp(-(((day - peak) / width) ** 2))
        red = 0.16 * (1 - ndvi) + 0.01
        for truth in (0.5 * red + 0.02, 0.6 * red + 0.05, red, red * (1 + ndvi) / (1 - ndvi)):
            seen = gaussian_filter(truth, 1.85).reshape(246, 4, 227, 4).mean((1, 3))
            layers.append(1e4 * (seen + rng.normal(0, 0.002, seen.shape)))
    profile = {"driver": "GTiff", "count": len(layers), "height": 246, "width": 227, "dtype": "int16"}
    georeference = {"crs": "EPSG:32631", "transform": rasterio.Affine(10, 0, 356040, 0, -10, 4835680)}
    with rasterio.open(path, "w", **profile, **georeference) as target:
        target.write(np.stack(layers).astype(np.int16))
    return ("B02", "B03", "B04", "B08")


if data:
    file = data / "s2_l2a/theia_bouconne_7dates/2018_3A_Theia_Bouconne.tif"
    bands = ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12")
else:
    file = Path("landscape.tif")
    bands = make_stack(file)

# %% [markdown]
# ## From stack to archive
#
# `split_stack` writes a scene per date: a file per band at its native GSD, dated, with its offset. Pixels of 20 m that
# stand in the stack as 2 x 2 copies are undone, and only where all four are equal; an interpolated band is refused. In
# the shell: `python -m pipeline.archive.stack FILE --bands B02,B03,... --dates 2018-04-29,... --out scenes`.

# %%
split_stack(Stack(file, bands, DATES), Path("scenes"))
with redirect_stderr(sys.stdout):  # where it notes which bands scenes lack
    index.main(["scenes", "--out", "archive.json"])

# %% [markdown]
# ## One time step per date
#
# `composite="none"` makes a time step of every date, `composite="monthly"` the median of every calendar month, dated
# on its first day. `bands` names the bands there are: those that no scene has are absent from the store, not zeros.

# %%
left, top = 357300, 4834440
with rasterio.open(file) as dataset:
    bbox = transform_bounds(dataset.crs, 4326, left, top - 600, left + 600, top)
ds = sen2fine.run(
    bbox=bbox,
    out="season.zarr",
    catalog="archive.json",
    bands=[name for name in BAND_NAMES if name in bands],
    composite="none",
    cluster="inline",
    progress=False,
)

# %%
print(ds.sizes, list(ds.band.values))
print(*json.loads(ds.attrs["notes"]), sep="\n")

# %% [markdown]
# ## The season on a map

# %%
ndvi = sen2fine.indices(ds, "ndvi").compute()
figure, axes = plt.subplots(2, 4, figsize=(14, 6.6), layout="constrained", sharex=True, sharey=True)
for panel, moment in zip(axes.flat, ndvi.time, strict=False):
    shown = ndvi.sel(time=moment).plot.imshow(
        ax=panel, vmin=0, vmax=1, cmap="RdYlGn", interpolation="nearest", add_labels=False, add_colorbar=False
    )
    panel.set(title=str(moment.values)[:10], aspect="equal", xticks=[], yticks=[])
axes.flat[-1].axis("off")
figure.colorbar(shown, ax=axes, label="NDVI at 2.5 m", shrink=0.6)
plt.show()

# %% [markdown]
# ## Profiles
#
# Squares of 40 m are sorted into four kinds by their profile (k-means); of each kind the most typical is shown. Beside
# one 2.5 m pixel of it stand the 10 m pixel that holds it, and the mean of the whole square.

# %%
ndvi10 = sen2fine.indices(sen2fine.open_measured("season.zarr")[10], "ndvi").compute()
squares = ndvi.coarsen(y=16, x=16, boundary="trim").mean().stack(place=("y", "x")).transpose("place", "time")
centres, kinds = kmeans2(squares.values, 4, minit="++", rng=0)
figure, axes = plt.subplots(1, 4, figsize=(15, 4.4), layout="constrained", sharey=True)
for kind, panel in enumerate(axes):
    distance = np.where(kinds == kind, np.linalg.norm(squares.values - centres[kind], axis=1), np.inf)
    square = squares[int(distance.argmin())]
    pixel = ndvi.sel(y=square.y, x=square.x, method="nearest")
    lines = {
        "10 m, measured": (ndvi10.sel(y=pixel.y, x=pixel.x, method="nearest"), {"color": "black", "marker": "s"}),
        "2.5 m, one pixel": (pixel, {"color": "tab:orange", "marker": "o"}),
        "2.5 m, mean of 40 m": (square, {"color": "tab:green", "linestyle": "--"}),
    }
    for name, (values, style) in lines.items():
        panel.plot(ndvi.time, values, label=name, **style)
    panel.set_title(f"{float(pixel.x):.0f} E, {float(pixel.y):.0f} N: {100 * (kinds == kind).mean():.0f} % of the area")
    panel.set_ylim(0, 1)
    panel.xaxis.set_major_formatter(DateFormatter("%b"))
axes[0].set_ylabel("NDVI")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
plt.show()

# %% [markdown]
# ## What to trust
#
# The detail of each date is generated by itself: from one date to the next a single 2.5 m pixel may move though nothing
# on the ground did, and where dark meets bright its NDVI may be far off. Below is by how much it leaves its 10 m pixel,
# date by date. The mean over a 10 m pixel, and so that of a field, is measured; a change of one 2.5 m pixel is not
# evidence of a change on the ground.

# %%
repeated = ndvi10.reindex(y=ndvi.y, x=ndvi.x, method="nearest")
leave = abs(ndvi - repeated).mean(("y", "x"))
means = abs(ndvi.mean(("y", "x")) - ndvi10.mean(("y", "x")))
for moment, one, all_of_them in zip(DATES, leave.values, means.values, strict=True):
    print(f"{moment}  one pixel leaves its 10 m pixel by {one:.3f} on average, the whole area by {all_of_them:.4f}")
