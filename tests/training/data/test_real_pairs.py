"""Real pairs: which files belong together, where their pixels lie, and what the network is given of them."""

import re

import numpy as np
import pytest
import rasterio
import torch
from rasterio.warp import Resampling, calculate_default_transform, reproject

from pipeline.errors import UsageError
from pipeline.models.bundle import load_bundle
from tests.training.imagery import corner_in, placed, write_raster, write_toml
from tests.training.pairs_for_tests import ground, seen, write_pair
from training import evaluate, train
from training.data import real_pairs
from training.data.images import close_files
from training.data.sources import load_training_file
from training.degradation.degrade import Degradation, degrade
from training.quality.pairs import held_out_pairs

SHIFT = (0.4, -0.3)
PAIRS = """
[[source]]
name = "pairs"
role = "pair"
path = "pairs/*/hr_*.tif"
coarse = "lr_*.tif"
values = "reflectance"
scale = 1e-4
"""


def write_pairs(folder, splits=("train", "train", "held-out"), shift=SHIFT, **more):
    for number, split in enumerate(splits):
        left, top = corner_in(split, number)
        write_pair(folder / "pairs", str(number), left + 1000, top - 1000, shift, seed=number, **more)


def data_of(folder, text=PAIRS, scale=4):
    return load_training_file(write_toml(folder, text), output_gsd_m=10 / scale, scale=scale)


def error_of(sharp, coarse, scale=4):
    """RMS difference between the coarse image and what the sensor sees of the sharp one, in reflectance."""
    again = degrade(torch.from_numpy(sharp)[None], Degradation(noise=0.0).of_scale(scale))[0].numpy()
    return float(np.sqrt(np.mean((again - coarse)[:, 3:-3, 3:-3] ** 2)))


@pytest.mark.parametrize("scale", [2, 4])
def test_patches_hold_what_the_sensor_saw_of_them(scale, tmp_path):
    """Registered and matched, whichever way they are turned; left as they are, they are not."""
    write_pairs(tmp_path, scale=scale)
    errors = {}
    for text in (PAIRS, PAIRS + "registered = false\n"):
        sampler = data_of(tmp_path, text, scale).hr_sampler("train", 96, bands=("B02", "B03", "B04"))
        patches = sampler.patches(np.random.default_rng(0), 12)
        assert {patch.pixels.shape for patch in patches} == {(3, 96, 96)}
        assert {patch.coarse.shape for patch in patches} == {(3, 96 // scale, 96 // scale)}
        assert len({(patch.turns, patch.mirrored) for patch in patches}) > 4
        errors[text] = max(error_of(patch.pixels, patch.coarse, scale) for patch in patches)
    registered, left = errors.values()
    assert registered < 0.004 < 0.008 < left


def test_held_out_pairs_keep_their_own_coarse_image(tmp_path):
    write_pairs(tmp_path)
    (pair,) = held_out_pairs(data_of(tmp_path).held_out_chips(), Degradation(sigma_px=3.5))
    assert pair.scale == 4
    assert error_of(pair.hr[0].numpy(), pair.lr[0].numpy()) < 0.004
    assert held_out_pairs(data_of(tmp_path).held_out_chips(), Degradation().of_scale(2)) == []


def test_the_summary_says_how_far_apart_they_were(tmp_path):
    write_pairs(tmp_path)
    text = PAIRS + "date = '_(\\d{8})'\n"
    lines = data_of(tmp_path, text).summary()
    assert lines[0] == "pairs: 2 images to train on, 1 held out"
    assert lines[1].startswith(
        "pairs: 3 pairs, 0.50 coarse px apart in the median and 0.50 at most (corrected); gains 0."
    )
    assert lines[2] == "pairs: days between sharp and coarse image: 3 in the median, 3 at most"
    left = data_of(tmp_path, text + "registered = false\n").summary()
    assert "(left in, as the source says)" in left[1]
    assert data_of(tmp_path).summary()[2] == "pairs: days between sharp and coarse image: not known: give date"
    assert "0 too small" not in "".join(lines)


def test_a_missing_offset_of_the_coarse_images_is_suspected(tmp_path):
    """Of synthetic ground the darkest pixels have 0.06 to 0.08; with the offset of DN left out, 0.1 more."""
    write_pairs(tmp_path)
    said = "coarse_offset = -0.1 is missing"
    assert said not in "".join(data_of(tmp_path).summary())
    for file in (tmp_path / "pairs").glob("*/lr_*.tif"):
        with rasterio.open(file, "r+") as opened:
            opened.write(opened.read() + np.uint16(1000))
    close_files()  # what was read is kept by path
    assert said in "".join(data_of(tmp_path).summary())
    assert said not in "".join(data_of(tmp_path, PAIRS + "coarse_offset = -0.1\n").summary())


def test_pairs_that_do_not_fit_are_refused_by_name(tmp_path):
    write_pairs(tmp_path)
    left, top = corner_in("train", 5)
    write_raster(
        tmp_path / "pairs" / "other" / "hr_20200101.tif",
        (1e4 * ground(8)).astype(np.uint16), **placed(left, top, 2.5),
    )  # fmt: skip
    write_raster(
        tmp_path / "pairs" / "other" / "lr_20210101.tif",
        (1e4 * seen(ground(9), SHIFT)).astype(np.uint16), **placed(left, top, 10),
    )  # fmt: skip
    data = data_of(tmp_path)
    assert len(data.offered) == 3
    (line,) = [line for line in data.summary() if "refused" in line]
    assert line.startswith("pairs: 1 pair refused: ")
    assert "other/hr_20200101.tif with lr_20210101.tif: the images differ too much" in line
    late = data_of(tmp_path, PAIRS + "date = '_(\\d{8})'\nmost_days = 30\n")
    assert "366 days apart" in "".join(late.summary())


def test_several_dates_of_one_place_weigh_as_one(tmp_path):
    write_pairs(tmp_path)
    for folder in (tmp_path / "pairs").iterdir():
        with rasterio.open(folder / "lr_20210707.tif") as file:
            pixels, profile = file.read(), {"crs": file.crs, "transform": file.transform}
        write_raster(folder / "lr_20210801.tif", pixels, **profile)
    images = data_of(tmp_path).offered
    assert len(images) == 6
    assert {image.weight for image in images} == {0.5}
    assert len({image.place for image in images}) == 3


def test_nodata_of_the_coarse_image_is_never_shown(tmp_path):
    left, top = corner_in("train")
    _, coarse = write_pair(tmp_path / "pairs", "0", left + 1000, top - 1000, SHIFT)
    with rasterio.open(coarse, "r+") as file:
        pixels = file.read()
        pixels[:, :, :30] = 0
        file.write(pixels)
    write_pairs(tmp_path / "more", ("held-out",))
    sampler = data_of(tmp_path).hr_sampler("train", 64, 64)
    patches = sampler.patches(np.random.default_rng(0), 10)
    assert min(patch.address.x for patch in patches) >= 120
    assert all(np.isfinite(patch.pixels).all() and np.isfinite(patch.coarse).all() for patch in patches)
    assert min(float(patch.coarse.min()) for patch in patches) > 0.03


def reprojected(path, crs):
    """The file in another CRS, at its own GSD."""
    with rasterio.open(path) as file:
        pixels = file.read().astype(np.float32)
        transform, width, height = calculate_default_transform(file.crs, crs, file.width, file.height, *file.bounds)
        made = np.zeros((len(pixels), height, width), np.float32)
        reproject(
            pixels, made, src_transform=file.transform, src_crs=file.crs, dst_transform=transform, dst_crs=crs,
            resampling=Resampling.lanczos,
        )  # fmt: skip
    return write_raster(path, np.rint(made).astype(np.uint16), crs=crs, transform=transform, nodata=0)


@pytest.mark.parametrize("crs", ["EPSG:32631", "EPSG:4326"])
def test_another_crs_of_the_sharp_image_does_not_matter(crs, tmp_path):
    left, top = corner_in("train")
    sharp, _ = write_pair(tmp_path / "pairs", "0", left + 1000, top - 1000, SHIFT)
    reprojected(sharp, crs)
    data = data_of(tmp_path)
    (found,) = data.pairs["pairs"].found.values()
    np.testing.assert_allclose(found.shift_px, SHIFT, atol=0.05)
    patches = data.hr_sampler("train", 96).patches(np.random.default_rng(0), 4)
    assert max(error_of(patch.pixels, patch.coarse) for patch in patches) < 0.006


def test_files_that_are_not_georeferenced_cover_the_same_ground(tmp_path):
    sharp = ground(1)
    for name, pixels in (("hr_a.tif", sharp), ("lr_a.tif", seen(sharp, SHIFT))):
        write_raster(tmp_path / "pairs" / "a" / name, np.rint(1e4 * pixels).astype(np.uint16))
    with pytest.raises(UsageError, match="gsd_m of the sharp images"):
        assert data_of(tmp_path).offered
    (image,) = data_of(tmp_path, PAIRS + "gsd_m = 2.5\n").offered
    np.testing.assert_allclose(image.reader.found.shift_px, SHIFT, atol=0.02)
    assert image.georeference is None
    assert image.place == "pairs/a/hr_a"


def test_finer_images_are_averaged(tmp_path):
    left, top = corner_in("train")
    _, coarse = write_pair(tmp_path / "pairs", "0", left + 1000, top - 1000, SHIFT)
    fine = np.repeat(np.repeat(ground(0), 5, 1), 5, 2)
    write_raster(
        coarse.parent / "hr_20210704.tif", np.rint(1e4 * fine).astype(np.uint16), **placed(left + 1000, top - 1000, 0.5)
    )
    patches = data_of(tmp_path).hr_sampler("train", 96).patches(np.random.default_rng(0), 4)
    assert max(error_of(patch.pixels, patch.coarse) for patch in patches) < 0.006


def test_large_images_are_registered_by_regions(tmp_path, monkeypatch):
    monkeypatch.setattr(real_pairs, "REGION_PX", 32)
    write_pairs(tmp_path)
    for found in data_of(tmp_path).pairs["pairs"].found.values():
        np.testing.assert_allclose(found.shift_px, SHIFT, atol=0.05)


def test_a_rotation_is_no_shift(tmp_path, monkeypatch):
    monkeypatch.setattr(real_pairs, "REGION_PX", 40)
    left, top = corner_in("train")
    sharp, _ = write_pair(tmp_path / "pairs", "0", left + 1000, top - 1000, (0.0, 0.0), side=640)
    with rasterio.open(sharp, "r+") as file:
        a, _, left, _, e, top = tuple(file.transform)[:6]
        turned = np.deg2rad(0.8)
        file.transform = rasterio.Affine(
            a * np.cos(turned), -e * np.sin(turned), left, a * np.sin(turned), e * np.cos(turned), top
        )
    with pytest.raises(UsageError, match="the shift varies by .* coarse px within the image"):
        assert data_of(tmp_path).offered


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('coarse = "lr_*.tif"\n', ""), "role pair without coarse"),
        (('coarse = "lr_*.tif"', 'coarse = "sentinel_*.tif"'), "has no coarse image sentinel_*.tif"),
        (('role = "pair"', 'role = "hr"'), "coarse with role hr"),
        (("scale = 1e-4", "scale = 1e-4\ntarget_gsd_m = 2.5"), "target_gsd_m does not apply to pairs"),
        (("scale = 1e-4", "scale = 1e-4\ndate = '\\d{8}'"), "has no group; expected a group that names the day"),
        (("scale = 1e-4", "scale = 1e-4\ncoarse_scale = 0"), "coarse_scale = 0"),
        (("scale = 1e-4", "scale = 1e-4\ncoarse_bands = { B04 = 7, B03 = 2, B02 = 1 }"), "band 7 of "),
    ],
)
def test_sources_that_do_not_fit_are_refused(change, said, tmp_path):
    write_pairs(tmp_path)
    with pytest.raises(UsageError) as caught:
        assert data_of(tmp_path, PAIRS.replace(*change)).offered
    assert said in str(caught.value)


def test_images_too_coarse_for_the_network_are_refused_with_the_scale(tmp_path):
    write_pairs(tmp_path, scale=2)
    with pytest.raises(UsageError, match="a smaller --set scale, or finer images"):
        assert data_of(tmp_path, scale=4).offered


def test_names_lead_to_the_coarse_image(tmp_path):
    for number, split in enumerate(("train", "held-out")):
        left, top = corner_in(split, number)
        sharp, coarse = write_pair(tmp_path / "all", str(number), left, top, SHIFT, seed=number)
        (tmp_path / "hr").mkdir(exist_ok=True)
        (tmp_path / "lr").mkdir(exist_ok=True)
        sharp.rename(tmp_path / "hr" / f"town_{number}.tif")
        coarse.rename(tmp_path / "lr" / f"s2_{number}.tif")
    text = PAIRS.replace("pairs/*/hr_*.tif", "hr").replace("lr_*.tif", "../lr/s2_{1}.tif") + "place = 'town_(\\d)'\n"
    assert len(data_of(tmp_path, text).offered) == 2


def test_a_check_registers_every_pair_for_the_scale_of_the_preset(tmp_path, capsys):
    write_pairs(tmp_path, scale=2)
    file = write_toml(tmp_path, PAIRS)
    assert train.main(["--check", "--data", str(file)]) == 5
    assert "a smaller --set scale" in capsys.readouterr().out
    assert train.main(["--check", "--data", str(file), "--preset", "lite-sr", "--set", "scale=2"]) == 0
    assert "pairs: 3 of 3 can be used" in capsys.readouterr().out


SMALL = ("width=16", "blocks=2", "denoiser_width=8", "denoiser_blocks=1", "crop=64", "batch=8", "warmup=5", "ema=0.98")


def trained(folder, text, images, capsys):
    """PSNR gain over back-projection of a small mean after `images` crops of pairs, on the held-out pair."""
    out, file = folder / "run", write_toml(folder, text)
    settings = [f"--set={setting}" for setting in SMALL]
    command = ["--preset", "lite-sr", "--data", str(file), "--out", str(out), "--every", "1e9", *settings]
    assert train.main([*command, "--images", str(images)]) == 0, capsys.readouterr().err
    capsys.readouterr()
    words = load_bundle(out / "lite-sr.safetensors").provenance["held_out"]
    return float(re.search(r"mean ([+-][\d.]+)", words)[1])


@pytest.mark.slow
def test_registered_pairs_teach_more_than_shifted_ones(tmp_path, capsys):
    """Judged by a pair without a shift, as a coarse image and what it shows are."""
    gains = {}
    for registered in ("true", "false"):
        folder = tmp_path / registered
        write_pairs(folder, ("train",) * 4)
        left, top = corner_in("held-out")
        write_pair(folder / "judged", "0", left + 1000, top - 1000, (0.0, 0.0), seed=9)
        judged = PAIRS.replace('"pairs"', '"judged"').replace("pairs/", "judged/")
        text = f"{PAIRS}registered = {registered}\n{judged}"
        gains[registered] = trained(folder, text, 2400, capsys)
    assert gains["true"] > gains["false"] + 0.3


@pytest.mark.slow
def test_an_evaluation_of_pairs_says_that_they_are_real(tmp_path, capsys):
    write_pairs(tmp_path)
    trained(tmp_path, PAIRS, 40, capsys)
    words = ["--only", "images", "--members", "0", "--on", str(tmp_path / "mine.toml")]
    assert evaluate.main([str(tmp_path / "run"), *words]) == 0
    said = capsys.readouterr().out
    assert "pairs: real pairs, whose coarse image the sensor has seen itself" in said
    assert "lite: PSNR on held-out places" in said
    assert "other blurs" not in said
