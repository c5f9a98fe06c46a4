"""What provenance says of the ground that was trained on, and which images are found to show it again."""

import json

import numpy as np
import pytest

from tests.training.imagery import UTM, corner_in, placed, texture, write_raster
from training.data import learned
from training.data.images import file_images
from training.data.training_file import Source


def images_of(folder, name, left, top, *, crs=UTM, gsd_m=1.0, side=300, source="mine", **keys):
    write_raster(folder / f"{name}.tif", texture(side, side), **placed(left, top, gsd_m, crs))
    return file_images(Source(source, "hr", str(folder / f"{name}.tif"), label=source, **keys))


@pytest.fixture
def trained(tmp_path):
    """Provenance of one image of a named place, as JSON gives it back."""
    images = images_of(tmp_path, "paris_1", 600_000, 5_000_000, split="train", place=r"(paris)_\d")
    return json.loads(json.dumps(learned.described(images)))


def test_places_and_ground_are_recorded(trained):
    assert trained["places"] == [learned.digest("mine/paris")]
    ((west, south, east, north),) = trained["boxes"]
    assert 10 < west < east < 10.3
    assert 45.1 < south < north < 45.2


@pytest.mark.parametrize(
    ("keys", "again"),
    [
        ({"source": "mine", "place": r"(paris)_\d"}, 1),  # the same name
        ({"source": "other", "place": r"(paris)_\d"}, 1),  # the same ground under another name
        ({"source": "other", "place": r"(paris)_\d", "shift": 200}, 1),  # a third of it
        ({"source": "other", "place": r"(paris)_\d", "shift": 300}, 0),  # its neighbour
        ({"source": "other", "place": r"(paris)_\d", "shift": 5000}, 0),
    ],
)
def test_held_out_images_of_it_are_found(tmp_path, trained, keys, again):
    left = 600_000 + keys.pop("shift", 0)
    held = images_of(tmp_path, "paris_2", left, 5_000_000, split="held-out", **keys)
    found = learned.shown_again(held, trained)
    assert sum(found.values()) == again
    assert set(found) <= {(keys["source"], f"{keys['source']}/paris")}


def test_images_to_train_on_are_not_asked_for(tmp_path, trained):
    images = images_of(tmp_path, "paris_2", 600_000, 5_000_000, split="train")
    assert learned.shown_again(images, trained) == {}


def test_ground_split_by_cells_is_told_apart_by_cell(tmp_path):
    """A mosaic over two cells that is trained on by cell leaks nothing into its own held-out cell."""
    left, top = corner_in("held-out")
    mosaic = images_of(tmp_path, "mosaic", left - 600, top, gsd_m=2.5, side=480)
    assert {image.split for image in mosaic} == {None}
    provenance = learned.described(mosaic)
    assert learned.shown_again(mosaic, provenance) == {}
    whole = images_of(tmp_path, "whole", left - 600, top, gsd_m=2.5, side=480, split="held-out", source="other")
    assert learned.shown_again(whole, learned.described(images_of(tmp_path, "t", left, top, split="train")))
    assert np.isfinite(learned.box_of(whole[0])).all()


def test_provenance_stays_small(tmp_path, monkeypatch):
    monkeypatch.setattr(learned, "LISTED", 3)
    images = [
        image
        for number in range(5)
        for image in images_of(
            tmp_path, f"a{number}_1", 600_000 + 400 * number, 5_000_000, split="train", place="(a.)_1"
        )
    ]
    provenance = learned.described(images)
    assert len(provenance["places"]) == len(provenance["boxes"]) == 3
