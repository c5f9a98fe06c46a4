"""What a run says about generated detail: counted by units, stored, said, and the same after a run that went on."""

import json

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from pipeline.planning.plan import load_plan
from pipeline.report import RunReport
from pipeline.running.driver import facts_of, run_plan, survey
from pipeline.store import sealed
from pipeline.store.place import place_of
from tests.archive.synthetic import make_archive, make_scene
from tests.running.conftest import LEFT, SIZE, TOP, box, config_for, run, values, write_aoi


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_lite):
    """A store of `lite` in four units with clouds and a strip of nodata; its place, plan and summary."""
    folder = tmp_path_factory.mktemp("detail")
    scene = make_scene(folder, scene_id="S2A_ONE", seed=1, size_m=SIZE, cloud_fraction=0.3, nodata_left_m=480)
    place = write_aoi(folder / "region.geojson", box(LEFT + 301, TOP - 1199, LEFT + 1499, TOP - 1))
    config = config_for(
        make_archive(folder, [scene]), bands=("B02", "B03", "B04"), chunk_px=240, unit_chunks=1, **small_lite
    )
    plan, summary = run(config, place, folder / "region.zarr")
    return folder / "region.zarr", plan, summary


def attributes(store):
    return json.loads((store / "zarr.json").read_text())["attributes"]


def test_counts_are_those_of_the_stored_classes(finished):
    store, plan, summary = finished
    quality = values(store, "quality")[0]
    counts = np.bincount(quality.ravel(), minlength=4)
    assert (counts > 100).all(), counts  # the scene has something of everything
    assert summary.detail == {"generated": counts[3], "partial": counts[2], "none": counts[1]}
    assert sum(summary.withheld.values()) == counts[1] + counts[2]
    assert set(summary.withheld) == {"cloud", "nodata"}
    assert len(list(plan.units())) == 4
    shares = attributes(store)["detail"]
    assert shares["generated"] == pytest.approx(counts[3] / counts[1:].sum(), abs=1e-6)
    assert shares["withheld_cloud"] + shares["withheld_nodata"] == pytest.approx(1 - shares["generated"], abs=2e-6)
    item = json.loads((store / "stac-item.json").read_text())
    assert item["properties"]["sen2fine:detail"] == shares


def test_beside_nodata_detail_fades_within_5_m(finished):
    """Of the pixels of 2.5 m, the two next to nodata lack some detail; the third has all where no cloud is near."""
    store, _, _ = finished
    quality = values(store, "quality")[0]
    two, three = (binary_dilation(quality == 0, np.ones((2 * px + 1, 2 * px + 1))) for px in (2, 3))
    assert set(quality[two]) == {0, 1, 2}
    assert (quality[three & ~two] == 3).sum() > 20


def test_the_summary_says_how_much_is_generated(finished):
    store, plan, summary = finished
    line = next(line for line in RunReport(plan, summary, store, None).text().splitlines() if "generated" in line)
    share = summary.detail_shares
    assert line.startswith(f"  detail    generated in {100 * share['generated']:.1f} % of measured pixels, partly in ")
    clouds = f"withheld at or near clouds of the classification ({100 * share['withheld_cloud']:.1f} %)"
    assert f"{clouds}, at or within 5 m of nodata (" in line
    assert RunReport(plan, summary, store, None).to_json()["detail"] == share


def test_a_run_that_goes_on_says_the_same(finished):
    store, plan, summary = finished
    said = attributes(store)["detail"]
    min((store / "_run" / "receipts").iterdir()).unlink()
    again = run_plan(plan, store, cluster="inline", workers=1)
    assert (again.computed, again.resumed) == (1, 3)
    assert (again.detail, again.withheld) == (summary.detail, summary.withheld)
    assert attributes(store)["detail"] == said


def test_receipts_that_do_not_say_count_for_unknown(finished):
    store, plan, _ = finished
    path = min((store / "_run" / "receipts").iterdir())
    before = path.read_bytes()
    content = sealed.load(before)
    for name in ("detail", "withheld"):
        content.pop(name)
    path.write_bytes(sealed.dump(content))
    try:
        todo, summary = survey(load_plan(store), place_of(store), "size")
        assert (todo, summary.resumed) == ([], 4)
        assert (summary.detail, summary.detail_shares) == (None, {})
        assert "detail" not in facts_of(plan, place_of(store), summary)
        assert "detail  " not in RunReport(plan, summary, store, None).text()
    finally:
        path.write_bytes(before)
