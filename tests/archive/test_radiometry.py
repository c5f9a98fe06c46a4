"""Radiometry: the archives' written rules, integers that keep nodata, and an audit tuned on real scenes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.archive.local.scan import scan
from pipeline.archive.offset_audit import audit_offset, audit_scene
from pipeline.archive.offset_verdict import verdict
from pipeline.archive.radiometry import (
    OFFSET_RULES,
    baseline_number,
    offset_from_rule,
    to_canonical_dn,
)
from pipeline.archive.read.access import Access
from pipeline.archive.scene import OffsetDecision
from pipeline.bands import DN_OFFSET, DN_SCALE
from tests.archive import offset_audit
from tests.archive.synthetic import make_scene

STORED = arrays(np.uint16, (7, 5), elements=st.integers(0, 65535))


@settings(deadline=None)
@given(STORED, st.sampled_from([0, -1000]))
def test_canonical_dn_keeps_reflectance_and_nodata(stored, offset_dn):
    canonical = to_canonical_dn(stored, offset_dn)
    assert canonical.dtype == np.uint16
    np.testing.assert_array_equal(canonical == 0, stored == 0)
    held = (stored > 0) & (stored.astype(int) - offset_dn - 1000 < 1000) & (stored < 64535)
    reflectance = (stored.astype(float) + offset_dn) * 1e-4  # Sentinel-2 PSD: (DN + BOA_ADD_OFFSET) / 10000
    np.testing.assert_allclose((canonical * DN_SCALE + DN_OFFSET)[held], reflectance[held], atol=1e-12)


def test_canonical_dn_saturates_instead_of_wrapping():
    stored = np.array([0, 1, 64535, 64536, 65535], np.uint16)
    assert to_canonical_dn(stored, 0).tolist() == [0, 1001, 65535, 65535, 65535]
    assert to_canonical_dn(stored, -1000).tolist() == stored.tolist()


@pytest.mark.parametrize(
    ("text", "number"),
    [("05.11", 5.11), ("5.11", 5.11), ("N0400", 4.0), ("0214", 2.14), ("99.99", None), ("", None), ("four", None)],
)
def test_baseline_numbers(text, number):
    assert baseline_number(text) == number


@pytest.mark.parametrize(
    ("rule", "baseline", "declared", "applied", "offset_dn"),
    [
        ("none", "05.11", None, None, 0),
        ("always", "", None, None, -1000),
        ("baseline", "04.00", None, None, -1000),
        ("baseline", "03.01", None, None, 0),
        ("declared-or-baseline", "05.00", -0.1, None, -1000),
        ("declared-or-baseline", "05.00", -0.1, True, 0),
        ("declared-or-baseline", "02.14", None, False, 0),
        ("declared-or-baseline", "99.99", -0.1, None, -1000),
        ("earth-search-v1", "05.00", -0.1, True, 0),
        ("earth-search-v1", "05.00", -0.1, False, -1000),
        ("earth-search-v1", "02.14", None, False, 0),
    ],
)
def test_rules(rule, baseline, declared, applied, offset_dn):
    decision = offset_from_rule(rule, baseline=baseline, declared=declared, applied=applied)
    assert decision.offset_dn == offset_dn
    assert decision.evidence


@pytest.mark.parametrize(
    ("rule", "baseline", "declared", "said"),
    [
        ("baseline", "", None, "does not say"),
        ("baseline", "99.99", None, "99.99"),
        ("declared-or-baseline", "02.14", -0.1, "-0.1.*02.14"),
        ("declared-or-baseline", "05.00", 0.0, "0.0.*05.00"),
        ("declared-or-baseline", "05.00", -0.05, "-500"),
        ("sometimes", "05.00", None, "sometimes"),
    ],
)
def test_contradictions_name_both_facts(rule, baseline, declared, said):
    assert "sometimes" not in OFFSET_RULES
    with pytest.raises(ValueError, match=said):
        offset_from_rule(rule, baseline=baseline, declared=declared, applied=None)


# --- the audit


def sample(**floors):
    """DN whose 1st percentile is the floor of each band, brighter ground above."""
    spread = np.linspace(0, 1500, 1000)
    return {band: (floor + spread).astype(np.uint16) for band, floor in floors.items()}


FIELDS = {"B02": 180, "B03": 310, "B04": 170, "B12": 500}
DESERT = {"B02": 1012, "B03": 1485, "B04": 2108, "B12": 2698}


def claim(offset_dn):
    return OffsetDecision(offset_dn, "the catalogue says so")


@pytest.mark.parametrize(
    ("floors", "offset_dn", "expected"),
    [
        (FIELDS, 0, "agrees"),
        (FIELDS, -1000, "contradicts"),
        ({b: dn + 1000 for b, dn in FIELDS.items()}, -1000, "agrees"),
        ({b: dn + 1000 for b, dn in FIELDS.items()}, 0, "contradicts"),
        (DESERT, 0, "unknown"),
        (DESERT, -1000, "unknown"),
        ({b: dn + 1000 for b, dn in DESERT.items()}, 0, "unknown"),
        ({"B02": 5000, "B03": 5100, "B04": 5200, "B12": 900}, 0, "unknown"),  # cloud all over
        ({"B02": 1180, "B03": 1310, "B04": 1170}, 0, "unknown"),  # haze and offset look alike without SWIR
    ],
)
def test_audit_of_typical_ground(floors, offset_dn, expected):
    audit = audit_offset(sample(**floors), claim(offset_dn))
    assert audit.verdict == expected
    assert "B02" in audit.fact
    if expected == "contradicts":
        assert "the catalogue says so" in audit.fact


@pytest.mark.parametrize(("offset_dn", "said"), [(0, "the pixels agree"), (-1000, "the pixels contradict")])
def test_a_verdict_says_each_fact_once(offset_dn, said):
    claimed = claim(offset_dn)
    found = verdict(claimed, audit_offset(sample(**FIELDS), claimed))
    evidence = found.decision.evidence
    assert evidence.startswith(f"the catalogue says so; {said}: 1st percentile of stored DN B02 ")
    for text in filter(None, (evidence, found.fault)):
        assert [text.count(fact) for fact in ("the catalogue says so", "1st percentile")] == [1, 1]
    again = verdict(found.decision, audit_offset(sample(**FIELDS), claimed)).decision
    if not offset_dn:
        assert again.evidence == evidence


def test_audit_ignores_nodata_and_wants_enough_pixels():
    dark = {band: np.concatenate([dn, np.zeros(5000, np.uint16)]) for band, dn in sample(**DESERT).items()}
    assert audit_offset(dark, claim(0)).verdict == "unknown"
    few = {band: dn[:50] for band, dn in sample(**FIELDS).items()}
    assert audit_offset(few, claim(-1000)).verdict == "unknown"
    assert audit_offset({"B02": sample(**FIELDS)["B02"]}, claim(-1000)).verdict == "unknown"


@pytest.mark.parametrize("stored_offset", [0, -1000])
@pytest.mark.parametrize("size_m", [1200, 3000])
def test_audit_of_a_scene_reads_its_files(tmp_path, stored_offset, size_m):
    import dataclasses

    scene = make_scene(tmp_path, scene_id="s", size_m=size_m, offset_dn=stored_offset)
    access = Access(roots=(str(tmp_path),))
    assert audit_scene(scene, access).verdict == "agrees"
    wrong = dataclasses.replace(scene, offset=claim(-1000 - stored_offset))
    assert audit_scene(wrong, access).verdict == "contradicts"


@pytest.mark.slow
@pytest.mark.shared_data
def test_audit_never_contradicts_the_truth_of_real_scenes(shared_data):
    scenes = offset_audit.real_scenes(shared_data)
    assert len(scenes) == 18
    rng = np.random.default_rng(0)
    for name, (bands, right) in scenes.items():
        bright = "decimated" in name  # desert, too bright to tell
        assert offset_audit.verdict(bands, right) == ("unknown" if bright else "right"), name
        for cut in offset_audit.crops(bands, 20, rng):
            assert offset_audit.verdict(cut, right) != "wrong", name
        assert offset_audit.verdict(offset_audit.shifted(bands, right), -1000 - right) != "wrong", name


@pytest.mark.shared_data
def test_left_over_offset_is_found_and_stops_the_scene(shared_data):
    folder = shared_data / "s2_l2a/majortom_native"
    scenes, notes = scan(folder, datetime_utc="2020-05-05")
    assert [scene.id for scene in scenes] == ["282D_485L_3_3", "609U_541L_3_0"]
    (note,) = (note for note in notes if "433D_629L_3_1" in note)
    assert "nothing tells its BOA offset" in note
    assert "B04 1125" in note
    assert "--offset -1000" in note
    (forced,), _ = scan(folder / "433D_629L_3_1", datetime_utc="2020-05-05", offset_dn=-1000)
    assert forced.offset.offset_dn == -1000
    assert audit_scene(forced, Access(roots=(str(folder),))).verdict == "agrees"
