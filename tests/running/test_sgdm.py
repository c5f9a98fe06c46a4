"""Runs of map guidance with small scrambled weights: maps, styles, radiometry, and refusals."""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyogrio.raw
import pytest
import rasterio
import shapely
import torch
from PIL import Image
from rasterio.transform import from_origin
from safetensors.torch import save_file

import pipeline
from pipeline import check, export, view
from pipeline.conditions.frozen import freeze
from pipeline.conditions.whole_raster import pixels
from pipeline.errors import UsageError
from pipeline.models.bundle import LatticeSpec, load_bundle, load_tensors, save_bundle
from pipeline.planning.plan import load_plan
from pipeline.run import main
from pipeline.superres.spec import StageInput
from pipeline.superres.system import load
from pipeline.superres.systems import sgdm
from pipeline.superres.weights import choose
from tests.models.sgdm_small import write_guidance, write_prior, write_style
from tests.models.small import write_lite
from tests.running.conftest import LEFT, TOP, box, chunk_digests, values, write_aoi

BANDS = "B02,B03,B04,B08"  # where the sensor has to agree, bands of 20 and 60 m need much ground around
STYLED = f"{BANDS},B11"
HOUSE = shapely.box(LEFT + 760, TOP - 1010, LEFT + 840, TOP - 960)
CONVERTED = "--out right-prior.safetensors, then --weights prior=right-prior.safetensors"
ROAD = shapely.LineString([(LEFT + 600, TOP - 1200), (LEFT + 1100, TOP - 850)])


def relaid(path, lattice):
    bundle = load_bundle(path)
    save_bundle(path, replace(bundle, lattice=lattice), load_tensors(bundle))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    made = {"sr": write_guidance(folder, steps=2), "prior": write_prior(folder), "style": write_style(folder)}
    fusion = write_lite(folder)[1]
    relaid(fusion, LatticeSpec(window_px=96, stride_px=48, ramp_px=24, margin_px=12))  # guided over little ground
    relaid(made["sr"], LatticeSpec(window_px=192, stride_px=160, ramp_px=16, margin_px=8))
    return {**made, "fusion": fusion}


def write_map(path, shapes, kinds, crs="EPSG:32632"):
    geometries = shapely.to_wkb(np.array(shapes, dtype=object))
    kinds = [np.array(kinds, dtype=object)]
    pyogrio.raw.write(path, geometries, kinds, fields=["class"], geometry_type="Unknown", crs=crs, driver="GPKG")
    path.with_name(f"{path.name}.license").write_text("Town of Ex, CC BY 4.0\n")
    return path


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    return write_map(tmp_path_factory.mktemp("map") / "town.gpkg", [HOUSE, ROAD], ["building", "road-minor"])


@pytest.fixture(scope="module")
def ortho(tmp_path_factory):
    """An 8-bit picture of anywhere, without a CRS."""
    path = tmp_path_factory.mktemp("style") / "ortho.tif"
    pixels = np.random.default_rng(0).integers(0, 255, (3, 64, 80), dtype=np.uint8)
    pixels[0] //= 3
    Image.fromarray(pixels.transpose(1, 2, 0)).save(path)
    return path


@pytest.fixture(scope="module")
def area(archive, files, tmp_path_factory):
    corners = box(LEFT + 770, TOP - 1030, LEFT + 860, TOP - 970)
    aoi = str(write_aoi(tmp_path_factory.mktemp("aoi") / "region.geojson", corners))
    when = ("--start", "2024-01-01", "--end", "2024-12-31", "--max-cloud", "100")
    chunks = ("--chunk-px", "24", "--unit-chunks", "5", "--cluster", "inline", "--estimate", "sample")
    given = [word for role in ("sr", "fusion", "prior") for word in ("--weights", f"{role}={files[role]}")]
    return ("--aoi", aoi, "--catalog", str(archive), "--sr", "sgdm", *when, *chunks, "--bands", STYLED, *given)


@pytest.fixture(scope="module")
def words(area, town, ortho):
    of_map = ("--condition", f"map={town}", "--option", "style=image", "--condition", f"style={ortho}")
    return (*area, "--bands", BANDS, *of_map)


@pytest.fixture(scope="module")
def finished(words, tmp_path_factory):
    store = tmp_path_factory.mktemp("finished") / "whole.zarr"
    assert main([*words, "--out", str(store)]) == 0
    return store


def run(words, store, *more):
    assert main([*words, *more, "--out", str(store)]) == 0
    return pipeline.open_store(store, gsd_m=1.25).reflectance.values


def attributes(store):
    return json.loads((store / "zarr.json").read_text())["attributes"]


@pytest.mark.slow
def test_bands_and_rgb_below_them_are_stored_and_said_to_be_synthetic(finished, tmp_path, capsys):
    assert check.main([str(finished), "--verify", "full"]) == 0
    capsys.readouterr()
    assert list(pipeline.open_store(finished).band.values) == BANDS.split(",")
    finer = pipeline.open_store(finished, gsd_m=1.25)
    assert set(finer.band.values) == {"B02", "B03", "B04"}
    said = attributes(finished)
    assert said["synthetic"] == 1
    assert "no estimate of the ground" in said["synthetic_comment"]
    assert "radiometry" not in said
    assert said["consistency"] == "sensor"
    assert any("synthetic" in note for note in said["notes"])
    assert "Town of Ex, CC BY 4.0" in said["credit"]
    assert "synthetic" in (finished / "stac-item.json").read_text()
    assert pipeline.open_store(finished, gsd_m=1.25).attrs["synthetic"] == 1
    assert "synthetic" not in pipeline.open_measured(finished)[10].attrs
    assert view.main([str(finished), "--out", str(tmp_path / "page.html")]) == 0
    assert "Imagined" in (tmp_path / "page.html").read_text()
    capsys.readouterr()


@pytest.mark.slow
def test_the_measured_values_are_given_back(finished):
    store = pipeline.open_store(finished)
    measured = pipeline.open_measured(finished)
    for gsd, seen in pipeline.reobserve(store.reflectance).items():
        lacking = (seen - measured[gsd].reflectance).values
        assert np.nanmean(np.abs(lacking)) < 0.002
        assert np.nanpercentile(np.abs(lacking), 90) < 0.005
    assert pipeline.indices(store, "ndvi").notnull().any()


@pytest.mark.slow
def test_the_map_that_guided_is_stored_beside_what_it_guided(finished, tmp_path):
    fine = pipeline.open_store(finished, gsd_m=1.25)
    found = fine["map_class"]
    assert found.dims == ("time", "y", "x")
    assert found.attrs["credit"] == "Town of Ex, CC BY 4.0"
    names = found.attrs["flag_meanings"].split()
    assert names[:2] == ["nothing", "building"]
    y, x = np.meshgrid(fine.y, fine.x, indexing="ij")
    computed = found.values.any((0, 1))  # columns of chunks that touch the area
    house = shapely.contains_xy(HOUSE, x, y)[:, computed]
    assert 0.02 < house.mean() < 0.9
    np.testing.assert_array_equal(found.values[0][:, computed] == names.index("building"), house)
    road = shapely.contains_xy(ROAD.buffer(2), x, y)[:, computed] & ~house  # roads are drawn wider
    assert (found.values[0][:, computed][road] == names.index("road-minor")).mean() > 0.95
    assert "map_class" not in pipeline.open_store(finished)
    given = [str(finished), "--gsd", "1.25", "--variable", "map_class", "--time", "0", "--out", str(tmp_path / "tifs")]
    assert export.main([*given, "--quiet"]) == 0
    with rasterio.open(next((tmp_path / "tifs").glob("*map_class*.tif"))) as tif:
        np.testing.assert_array_equal(tif.read(1), found.values[0])
        assert "Town of Ex, CC BY 4.0" in tif.tags()["credit"]
    assert export.main([str(finished), "--variable", "map_class", "--out", str(tmp_path / "no"), "--quiet"]) == 2


@pytest.mark.slow
def test_chunks_do_not_show(words, finished, tmp_path):
    other = tmp_path / "other.zarr"
    run(words, other, "--unit-chunks", "2")
    assert chunk_digests(other) == chunk_digests(finished)


@pytest.mark.slow
def test_plans_do_not_depend_on_the_threads_of_the_driver(words, finished, tmp_path):
    """The states of scenes and styles are computed while planning."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert main([*words, "--plan-only", "--out", str(tmp_path / "planned.zarr")]) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert load_plan(tmp_path / "planned.zarr").states == load_plan(finished).states


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(words, finished, tmp_path):
    store = tmp_path / "killed.zarr"
    command = [sys.executable, "-m", "pipeline.run", *words, "--out", str(store)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
        while child.poll() is None and not list(store.glob("_run/receipts/*.json")):
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert main([*words, "--out", str(store)]) == 0
    assert chunk_digests(store) == chunk_digests(finished)


@pytest.mark.slow
def test_the_ends_of_the_area_and_shards_do_not_show(words, finished, tmp_path):
    corners = box(LEFT + 790, TOP - 1020, LEFT + 830, TOP - 990)
    small = str(write_aoi(tmp_path / "small.geojson", corners))
    run(("--aoi", small, *words[2:], "--shard"), tmp_path / "small.zarr")
    part, whole = (load_plan(store).zones[0].grid.window for store in (tmp_path / "small.zarr", finished))
    rows, cols = part.refine(2).slices(whole.refine(2))
    one, other = (values(store, "finer/1.25m/reflectance") for store in (tmp_path / "small.zarr", finished))
    there = one > 0
    assert there.mean() > 0.3
    np.testing.assert_array_equal(one[there], other[..., rows, cols][there])


@pytest.mark.slow
def test_parts_make_the_same_store_and_members_spread(words, finished, tmp_path):
    store = str(tmp_path / "parts.zarr")
    assert main([*words, "--out", store, "--plan-only"]) == 0
    for part in ("1/2", "2/2"):
        assert main(["--plan", store, "--cluster", "inline", "--shard-of", part]) == 0
    assert main(["--plan", store, "--finalise"]) == 0
    assert chunk_digests(tmp_path / "parts.zarr") == chunk_digests(finished)
    at = words.index("--estimate")
    run((*words[:at], *words[at + 2 :], "--members", "2", "--end", "2024-06-20"), tmp_path / "members.zarr")
    assert float(pipeline.open_store(tmp_path / "members.zarr", gsd_m=1.25).uncertainty.max()) > 0


@pytest.fixture(scope="module")
def styles(area, town, files, tmp_path_factory):
    """A store of two drawn styles of one time step, in the colours of the styles."""
    store = tmp_path_factory.mktemp("styles") / "styles.zarr"
    drawn = ("--option", "style=sample:2", "--option", "style_seed=3", "--weights", f"style={files['style']}")
    given = (*area, "--end", "2024-06-20", "--condition", f"map={town}", *drawn, "--option", "radiometry=styled")
    assert main([*given, "--out", str(store)]) == 0
    return store


@pytest.mark.slow
def test_drawn_styles_lie_along_a_dimension(styles, finished, tmp_path, capsys):
    assert check.main([str(styles), "--verify", "full"]) == 0
    assert list(pipeline.open_store(styles).band.values) == STYLED.split(",")
    for gsd_m in (None, 1.25, 5):
        opened = pipeline.open_store(styles, gsd_m=gsd_m)
        assert opened.reflectance.dims == ("time", "style", "band", "y", "x")
        assert opened.reflectance.sizes["time"] == 1
        assert opened["style"].values.tolist() == [3, 4]
    fine = pipeline.open_store(styles, gsd_m=1.25)
    stored = values(styles, "finer/1.25m/reflectance")  # one image after another
    there = stored > 0
    assert there[0].any()
    for number in range(2):
        seen = fine.reflectance.isel(time=0, style=number).values
        np.testing.assert_allclose(seen[there[number]], stored[number][there[number]] * 1e-4 - 0.1, atol=1e-6)
    assert np.nanmax(np.abs(np.diff(fine.reflectance.values, axis=1))) > 1e-3
    assert fine["map_class"].dims == ("time", "y", "x")
    assert pipeline.open_measured(styles)[10].reflectance.dims == ("time", "band", "y", "x")
    fine.to_netcdf(tmp_path / "styles.nc")
    assert export.main([str(styles), "--bands", "B04", "--out", str(tmp_path / "tifs"), "--quiet"]) == 0
    assert sorted(path.stem.split("-style")[1][0] for path in (tmp_path / "tifs").glob("*.tif")) == ["3", "4"]
    assert view.main([str(styles), "--time", "1", "--out", str(tmp_path / "page.html")]) == 0
    assert "2024-06-17-style4" in (tmp_path / "page.html").read_text()
    capsys.readouterr()


@pytest.mark.slow
def test_an_image_of_several_is_that_of_its_seed(styles, area, town, files, tmp_path):
    drawn = ("--option", "style=sample", "--option", "style_seed=4", "--weights", f"style={files['style']}")
    given = (*area, "--end", "2024-06-20", "--condition", f"map={town}", *drawn, "--option", "radiometry=styled")
    alone = run(given, tmp_path / "alone.zarr")
    np.testing.assert_array_equal(alone, pipeline.open_store(styles, gsd_m=1.25).reflectance.sel(style=4).values)


@pytest.mark.slow
def test_stores_of_styled_colours_hold_no_reflectance(styles, finished):
    plain = pipeline.open_store(finished, gsd_m=1.25).reflectance.values
    styled = pipeline.open_store(styles, gsd_m=1.25).reflectance.values
    assert np.nanmax(np.abs(styled[0] - plain[:1])) > 1e-3
    said = attributes(styles)
    assert (said["radiometry"], said["consistency"]) == ("styled", "none")
    assert any("colours are not those measured (--consistency sensor has no effect)" in note for note in said["notes"])
    with pytest.raises(UsageError, match=r"ndvi of a store whose colours follow a style.*radiometry=keep"):
        pipeline.indices(pipeline.open_store(styles), "ndvi")
    for gsd_m in (1.25, 5):
        with pytest.raises(UsageError, match="ndvi of a store whose colours follow a style"):
            pipeline.indices(pipeline.open_store(styles, gsd_m=gsd_m), "ndvi")
    assert pipeline.indices(pipeline.open_measured(styles)[10], "ndvi").notnull().any()


class Window:
    """One window of the guided stage with options."""

    def __init__(self, files, **options):
        given = [
            f"{role}={path}" for role, path in files.items() if role != "style" or options.get("style") == "sample"
        ]
        self.choice = choose("sgdm", given, options)
        self.system = load(self.choice, "cpu")
        self.stage = self.system.stages[0]
        side = self.stage.lattice.window_px
        generator = torch.Generator().manual_seed(0)
        self.coarse = 0.2 * torch.rand(1, 3, side // 8, side // 8, generator=generator)
        self.map = torch.zeros(1, 7, side, side)
        self.map[:, 0, : side // 2] = 1.0

    def __call__(self, of_map=None, state=None):
        images = {"coarse": self.coarse, "map": self.map if of_map is None else of_map}
        images = {one.name: images[one.name] for one in self.stage.reads}
        side = self.stage.lattice.window_px

        def noise(step, channels, coarser=1):
            shape = (1, channels, side // coarser, side // coarser)
            return torch.randn(shape, generator=torch.Generator().manual_seed(step))

        given = StageInput(images, frozenset(), torch.ones(1, 1, 1, 1, dtype=bool), noise, state, self.system.options)
        with torch.inference_mode():
            return self.system.predict(self.stage, given)


@pytest.mark.slow
def test_the_map_matters_and_can_be_left_out(files):
    window = Window(files)
    plain = window()
    assert float((window(window.map.roll(1, 1)) - plain).abs().max()) > 1e-4
    assert float((window(torch.zeros_like(window.map)) - plain).abs().max()) > 1e-4
    without = Window(files, map="none")
    assert [given.name for given in without.stage.reads] == ["coarse"]
    torch.testing.assert_close(without(), window(torch.zeros_like(window.map)))


def test_styles_are_those_of_an_image_or_of_a_seed(files):
    plain = Window(files)()
    image = Window(files, style="image")
    assert image.stage.whole == ("style",)
    generator = torch.Generator().manual_seed(1)
    states = [
        image.system.predictor.image_state("style", shade * torch.rand(1, 3, 50, 41, generator=generator))
        for shade in (0.2, 1.0)
    ]
    one, other = (image(state=state) for state in states)
    drawn, again, another = (Window(files, style="sample", style_seed=seed)() for seed in (1, 1, 2))
    torch.testing.assert_close(drawn, again, rtol=0, atol=0)
    for first, second in ((one, plain), (one, other), (drawn, another), (drawn, plain)):
        assert float((first - second).abs().max()) > 1e-4


def write_numbers(path, values):
    """A GeoTIFF whose nodata is 0."""
    about = {"width": 9, "height": 9, "count": 3, "dtype": values.dtype, "nodata": 0}
    with rasterio.open(path, "w", driver="GTiff", **about, transform=from_origin(0, 9, 1, 1)) as file:
        file.write(values)


def test_a_style_image_may_have_ground_without_pixels(files, tmp_path):
    write_numbers(tmp_path / "o.tif", np.full((3, 9, 9), 500, np.uint16) * (np.arange(9) > 3))
    frozen = freeze(sgdm.STYLE_IMAGE, str(tmp_path / "o.tif"))
    image = pixels(sgdm.STYLE_IMAGE, frozen)
    assert image.isnan().any(-2).any(1)[0].tolist() == [True] * 4 + [False] * 5
    state = Window(files, style="image").system.predictor.image_state("style", image)
    assert np.isfinite(state["style_mean"]).all()
    with pytest.raises(UsageError, match="expected a larger one"):
        Window(files, style="image").system.predictor.image_state("style", image[..., :5])
    inside = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(2))
    framed = torch.full((1, 3, 192, 192), torch.nan)
    framed[..., 48:144, 48:144] = inside
    whole, part = (Window(files, style="image").system.predictor.image_state("style", x) for x in (inside, framed))
    np.testing.assert_allclose(part["style_mean"], whole["style_mean"], atol=0.05)
    write_numbers(tmp_path / "e.tif", np.zeros((3, 9, 9), np.uint8))
    with pytest.raises(UsageError, match="has no pixel of data"):
        pixels(sgdm.STYLE_IMAGE, freeze(sgdm.STYLE_IMAGE, str(tmp_path / "e.tif")))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "--sr sgdm needs a vector map"),
        (("--option", "map=none", "--condition", "map=MAP"), "--condition map: --sr sgdm takes no such map"),
        (("--condition", "map=MAP", "--option", "scale=16"), "scale=16 with weights"),
        (("--condition", "map=MAP", "--option", "steps=1"), "steps=1; expected 2 to 1000, or 0"),
        (("--condition", "map=MAP", "--option", "style_seed=3"), "style_seed=3 with style=none; expected style=sample"),
        (("--condition", "map=MAP", "--option", "prior=FOLDER"), f"FOLDER {CONVERTED}"),
        (("--condition", "map=MAP", "--weights", "prior=FOLDER"), f"FOLDER {CONVERTED}"),
        (("--condition", "map=MAP", "--option", "prior=CKPT"), f"CKPT --text FOLDER_WITH_TOKENIZER {CONVERTED}"),
        (("--condition", "map=MAP", "--option", "prior=RAW"), f"RAW --text FOLDER_WITH_TOKENIZER {CONVERTED}"),
        (("--condition", "map=MAP", "--option", "prior=OTHER"), "768, as of Stable Diffusion 1; expected 1024"),
        (("--condition", "map=MAP", "--option", "prior=NONE"), "no file"),
        (("--condition", "map=MAP", "--option", "radiometry=styled"), "radiometry=styled with style=none"),
        (("--condition", "map=MAP", "--condition", "style=ORTHO"), "--condition style: --sr sgdm takes no such map"),
        (("--condition", "map=MAP", "--option", "style=image"), "--sr sgdm needs an image with red, green and blue"),
        (("--condition", "map=MAP", "--option", "prior=SR"), "are for 'sgdm'; expected sgdm-prior"),
        (("--condition", "map=FAR"), "expected ground of region"),
        (("--condition", "map=EMPTY"), "on the ground of region; its attributes: "),
        (("--condition", "map=TEXT"), "is no vector file"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(more, said, area, files, town, ortho, tmp_path, capsys):
    torch.save({"state_dict": {}}, tmp_path / "right.ckpt")
    save_file({"x": torch.zeros(1)}, tmp_path / "right.safetensors")
    far = write_map(tmp_path / "far.gpkg", [shapely.box(10, 60, 10.1, 60.1)], ["building"], "EPSG:4326")
    empty = write_map(tmp_path / "empty.gpkg", [HOUSE], ["castle"])
    text = tmp_path / "map.txt"
    text.write_text("houses")
    for name, text in (("right", "{}"), ("other", '{"cross_attention_dim": 768}')):
        for part, file in (("unet", "config"), ("vae", "config"), ("scheduler", "scheduler_config")):
            (tmp_path / name / part).mkdir(parents=True)
            (tmp_path / name / part / f"{file}.json").write_text(text if part == "unet" else "{}")
    named = {
        "MAP": town,
        "ORTHO": ortho,
        "SR": files["sr"],
        "FOLDER": tmp_path / "right",
        "OTHER": tmp_path / "other",
        "CKPT": tmp_path / "right.ckpt",
        "RAW": tmp_path / "right.safetensors",
        "NONE": tmp_path,
        "FAR": far,
        "EMPTY": empty,
        "TEXT": text,
    }
    given = [word if (end := word.split("=")[-1]) not in named else word.replace(end, str(named[end])) for word in more]
    words = [*area]
    if any(word.startswith("prior=") for word in more):
        at = words.index(f"prior={files['prior']}")
        del words[at - 1 : at + 1]
    assert main([*words, *given, "--out", str(tmp_path / "x.zarr")]) == 2
    message = capsys.readouterr().err.strip()
    for name, path in named.items():
        said = re.sub(rf"\b{name} ", f"{path} ", said)
    assert said in message
    assert len(message.splitlines()) == 1
    assert not (tmp_path / "x.zarr").exists()
