"""A part of the metadata fuzz: of every group of files, each kind of damage once."""

import random

import pytest

from tests.faults.metadata_fuzz import KINDS, damages, fuzz, kind_of, listing, table
from tests.products.stores import make_store


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("fuzz"), chunk_px=192, bands=("B02", "B03", "B04", "B08"))


@pytest.mark.long
@pytest.mark.slow
def test_damage_to_any_file_is_noticed_and_mended_or_refused(sound):
    cases = damages(sound, flips=0, each=1)
    random.Random(1).shuffle(cases)
    chosen = {(kind_of(case.key), case.kind): case for case in cases}
    groups = {kind_of(key) for key in listing(sound)}
    assert len(groups) == 11
    assert set(chosen) == {(group, kind) for group in groups for kind in KINDS}
    outcomes = fuzz(sound, list(chosen.values()))
    assert all(one.good for one in outcomes), table(outcomes)
    refused = {one.damage.key for one in outcomes if one.repair == "refused"}
    assert refused <= {"_run/plan.json"}
    # small files come back bit for bit
    mended = {one.damage.key: one.repair for one in outcomes if one.damage.key.endswith("zarr.json")}
    assert set(mended.values()) == {"restored"}
