# %% [markdown]
# # Crop fields at 2.5 m and at 10 m
#
# In this example you will compute NDVI statistics per field, from the 10 m pixels that were measured and from the 2.5 m
# pixels of the store, and see which differences come from the pixel size alone and which from the network. Three
# versions of the same ground are compared:
#
# - **10 m**: what was measured.
# - **10 m, split**: every 10 m pixel cut into 16 equal ones. The same information on the fine grid: whatever improves
#   here is geometry, and costs no network.
# - **2.5 m**: super-resolved. Only what differs from *split* is owed to the network.

# %%
import sys

import matplotlib.pyplot as plt
import numpy as np
import shapely
from affine import Affine
from rasterio.features import rasterize, shapes
from scipy import ndimage
from shapely.geometry import Polygon, shape

import pipeline

store = next((word for word in sys.argv[1:] if word.endswith(".zarr")), "sample.zarr")
fine, coarse = pipeline.open_store(store).isel(time=0), pipeline.open_measured(store)[10].isel(time=0)
ndvi10 = pipeline.indices(coarse, "ndvi").values
versions = {
    "10 m": (10.0, ndvi10),
    "10 m, split": (2.5, ndvi10.repeat(4, 0).repeat(4, 1)),
    "2.5 m": (2.5, pipeline.indices(fine, "ndvi").values),
}
left, top = float(fine.x[0]) - 1.25, float(fine.y[0]) + 1.25


def transform(gsd_m: float) -> Affine:
    """From pixels of a version to metres."""
    return Affine(gsd_m, 0, left, 0, -gsd_m, top)


# %% [markdown]
# ## Fields
#
# Use your own outlines where you have them: `gpd.read_file("fields.geojson").to_crs(ds.rio.crs).geometry`.
# Here they are drawn from the data: flat patches of the measured 10 m bands grow until they meet (a watershed of the
# gradient), and their outlines are smoothed. They are drawn from 10 m data alone, so that no version has an advantage.

# %%
layers = np.stack([coarse.reflectance.sel(band=name).values for name in ("B03", "B04", "B08")])
layers = (layers - np.nanmean(layers, (1, 2), keepdims=True)) / np.nanstd(layers, (1, 2), keepdims=True)
measured = np.isfinite(layers).all(0)
smooth = [ndimage.gaussian_filter(np.nan_to_num(layer), 0.5) for layer in layers]
gradient = np.sqrt(sum(ndimage.sobel(layer, 0) ** 2 + ndimage.sobel(layer, 1) ** 2 for layer in smooth))
flat, count = ndimage.label(measured & (gradient < np.quantile(gradient[measured], 0.5)))
sizes = ndimage.sum_labels(np.ones(flat.shape), flat, np.arange(count + 1))
seeds = np.where(sizes[flat] >= 20, flat, 0)
steps = np.clip(255 * gradient / np.quantile(gradient, 0.99), 0, 255).astype(np.uint8)
grown = ndimage.watershed_ift(steps, seeds.astype(np.int32)) * measured

MIN_AREA_M2 = 5000
outlines = (shape(outline) for outline, _ in shapes(grown.astype(np.int32), measured, transform=transform(10)))
smoothed = (outline.buffer(-14).buffer(20).buffer(-6).simplify(5) for outline in outlines)
fields = [field for field in smoothed if field.geom_type == "Polygon" and field.area >= MIN_AREA_M2]
assert fields, "no even patch of half a hectare: bring outlines of your own"
print(f"{len(fields)} fields of {min(f.area for f in fields) / 1e4:.1f} to {max(f.area for f in fields) / 1e4:.1f} ha")

# %% [markdown]
# ## Statistics per field
#
# A pixel belongs to a field when its centre lies inside. It is *mixed* when the outline crosses it. `mean` and `sd` are
# those of all its pixels, `pure` those that the outline does not touch.


# %%
def statistics(field: Polygon, gsd_m: float, values: np.ndarray) -> tuple[float, float, float, float]:
    """(mean, standard deviation, share of mixed pixels, mean of pure pixels) of one field."""
    grid = {"out_shape": values.shape, "transform": transform(gsd_m)}
    inside = rasterize([field], **grid).astype(bool) & np.isfinite(values)
    crossed = rasterize([field.boundary], all_touched=True, **grid).astype(bool)
    pure = values[inside & ~crossed]
    return values[inside].mean(), values[inside].std(), (inside & crossed).sum() / inside.sum(), pure.mean()


table = {name: np.array([statistics(f, *version) for f in fields]) for name, version in versions.items()}
areas = np.array([field.area for field in fields]) / 1e4
print(f"{'':12} {'mean':>7} {'sd':>7} {'mixed':>7} {'pure mean':>10}   medians over {len(fields)} fields")
for name, rows in table.items():
    mean, sd, mixed, pure = np.nanmedian(rows, axis=0)
    print(f"{name:12} {mean:7.3f} {sd:7.3f} {100 * mixed:6.1f}% {pure:10.3f}")
moved = table["2.5 m"] - table["10 m, split"]
print(f"owed to the network: field means move by {np.abs(moved[:, 0]).mean():.4f}, sd by {moved[:, 1].mean():+.4f}")

# %% [markdown]
# What to read from it:
#
# - The share of mixed pixels falls about fourfold. That is **by construction**: it is the same for pixels that were
#   only split. What a fine grid gives for nothing is a field mask that follows the outline.
# - The means of whole fields hardly move. They must not: the sensor would measure of the output what it has measured.
# - The standard deviation within fields includes detail that a network made up. Do not read a higher one as finer crop
#   variation, nor a lower one as a more even crop.

# %%
figure, (left_panel, right_panel) = plt.subplots(1, 2, figsize=(13, 6), layout="constrained")
pipeline.false_color(fine).plot.imshow(ax=left_panel, rgb="rgb", interpolation="nearest", add_labels=False)
for field in fields:
    left_panel.plot(*field.exterior.xy, color="white", linewidth=1.2)
left_panel.set(title=f"{len(fields)} fields on false colour, 2.5 m", aspect="equal", xticks=[], yticks=[])
for name, said in {"10 m": "10 m", "2.5 m": "2.5 m, and 10 m split"}.items():
    right_panel.scatter(areas, 100 * table[name][:, 2], label=said)
right_panel.set(xscale="log", xlabel="area of the field, ha", ylabel="share of mixed pixels, %")
right_panel.set(
    title="pixels that the outline crosses", xticks=[0.5, 1, 2, 5, 10], xticklabels=["0.5", "1", "2", "5", "10"]
)
right_panel.minorticks_off()
right_panel.set_ylim(0)
right_panel.legend()
plt.show()

# %% [markdown]
# ## Across the border
#
# What the network may add is at borders. Cut across the outlines every 10 m, keep the cuts that go from one even field
# to another of different NDVI, and scale each: 0 is the one field, 1 the other. The measured pixels are interpolated
# between their centres. A steeper step is a sharper picture, and the network was taught to make steps steep; whether
# these are also true, the store cannot tell: that takes an independent image of the same place.

# %%
REACH_M, CONTRAST, UNEVEN = 35.0, 0.1, 0.25
along = np.arange(-REACH_M, REACH_M + 0.1, 1.25)
starts, normals = [], []
for field in fields:
    at = np.arange(0, field.exterior.length, 10)
    here, ahead = (shapely.get_coordinates(shapely.line_interpolate_point(field.exterior, at + d)) for d in (0, 3))
    direction = (ahead - here) / np.linalg.norm(ahead - here, axis=1, keepdims=True)
    starts.append(here)
    normals.append(direction[:, ::-1] * (1, -1))
cuts = np.concatenate(starts)[:, None] + along[:, None] * np.concatenate(normals)[:, None]  # (cut, place, x and y)


def sampled(gsd_m: float, values: np.ndarray) -> np.ndarray:
    """Values along the cuts, (cut, place), NaN beyond the image."""
    places = [(top - cuts[..., 1]) / gsd_m - 0.5, (cuts[..., 0] - left) / gsd_m - 0.5]
    return ndimage.map_coordinates(values, places, order=1, cval=np.nan)


before, after = along < -20, along > 20
curves = {"10 m, interpolated": sampled(*versions["10 m"]), "2.5 m": sampled(*versions["2.5 m"])}
measured_cuts = curves["10 m, interpolated"]
low, high = measured_cuts[:, before].mean(1), measured_cuts[:, after].mean(1)
noise = np.maximum(measured_cuts[:, before].std(1), measured_cuts[:, after].std(1))
kept = (abs(high - low) >= CONTRAST) & (noise <= UNEVEN * abs(high - low)) & np.isfinite(curves["2.5 m"]).all(1)
figure, panel = plt.subplots(figsize=(7.5, 5), layout="constrained")
for name, values in curves.items():
    scaled = (values[kept] - low[kept, None]) / (high - low)[kept, None]
    # an outline is a few metres off: each cut is moved to where it passes 0.5 first
    crossings = along[np.argmax(scaled >= 0.5, axis=1)]
    moved = [np.interp(along, along - shift, cut) for shift, cut in zip(crossings, scaled, strict=True)]
    median = np.median(moved, axis=0)
    width = np.ptp(np.interp([0.1, 0.9], *(np.maximum.accumulate(median), along)))
    panel.plot(along, median, label=f"{name}: 10 to 90 % in {width:.0f} m")
panel.set(xlabel="distance across the border, m", ylabel="NDVI, from one field (0) to the other (1)", xlim=(-25, 25))
panel.set_title(f"median step over {kept.sum()} cuts")
panel.legend()
plt.show()
