"""Sections on fusion: which scenes they are of, and how many."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from training.data.tiles import BANDS, Tile
from training.quality.report_fusion import SCENES, fusion_sections
from training.quality.wald import OUT_BANDS, Judge, Row


def tile(place, source):
    rho = {g: np.full((len(bands), 16 * 60 // g, 16 * 60 // g), 0.2, np.float32) for g, bands in BANDS.items()}
    return replace(Tile.of(place, rho, np.ones((16, 16), bool), OUT_BANDS), source=source, split="held-out")


@pytest.mark.parametrize(("per_set", "expected"), [(None, SCENES), (1, 1), (SCENES + 5, SCENES)])
def test_the_first_scenes_of_each_source_are_measured(per_set, expected):
    tiles = [tile(f"a/{number}", "town") for number in range(SCENES + 1)] + [tile("b/0", "sea")]
    data = SimpleNamespace(tiles=lambda split: tiles, watched_tiles=lambda: [])
    fuser = SimpleNamespace(bundle=SimpleNamespace(system="mine", digest="0" * 64))
    how = Judge(lambda bundle: fuser, lambda fuser, rho, present: [Row("20 m x2", {"mine": {"ERGAS": 1.0}})])
    town, sea = fusion_sections("mine", fuser, how, data, lambda said: None, per_set)
    assert [record.place for record in town.records] == [f"a/{number}" for number in range(expected)]
    assert [record.place for record in sea.records] == ["b/0"]
    assert f"town, {expected} scene" in town.title
    assert sea.title == "mine: sea, 1 scene (held out)"
