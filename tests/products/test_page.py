"""The report page: what it says about a store, and what it refuses to be made of."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pyproj
import pytest
import zarr

import pipeline
from pipeline.bands import BAND_NAMES, bands_at
from pipeline.errors import IntegrityError, NoDataError, UsageError
from pipeline.grid.grid import Window
from pipeline.products.page import region, source
from pipeline.products.page.document import _IMAGE_BYTES, LIMIT_BYTES, make_page
from pipeline.products.page.residuals import Residual, residuals, summary_line
from pipeline.products.page.source import block_means, open_zone, read_part
from pipeline.products.page.tables import check_section
from pipeline.store import sealed
from pipeline.store.place import place_of
from tests.archive.synthetic import make_archive, make_scene
from tests.products.stores import (
    HOSTILE,
    attributes,
    chunk_of,
    copied,
    make_store,
    plan,
    with_uncertainty,
    without,
    without_attribute,
)
from tests.running.conftest import config_for, run
from tests.store.s3_server import s3_server


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("page"), consistency="box")


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """The same with the default consistency, "sensor"."""
    return make_store(tmp_path_factory.mktemp("seen"))


class _Text(HTMLParser):
    """Visible text, element names, and what elements refer to."""

    def __init__(self):
        super().__init__()
        self.text, self.tags, self.links, self._hidden = [], [], [], 0

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag):
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data):
        if not self._hidden:
            self.text.append(data)


def read(page):
    """(visible text with single spaces, parser, facts) of a page."""
    content = page.content.decode()
    parser = _Text()
    parser.feed(content)
    facts = json.loads(re.search(r'id="facts">(.*?)</script>', content, re.DOTALL)[1])
    return re.sub(r"\s+", " ", " ".join(parser.text)), parser, facts


def test_the_page_holds_all_sections_and_every_band(store):
    page = make_page(store)
    text, parser, facts = read(page)
    for words in (
        "lake_shore", "What is measured, what is invented", "Radiometric check", "Holds in every band.", "Scenes",
        "S2A_CLOUDY", "synthetic", "Worker seconds by stage", "make consistent with the input",
        "No unit was set aside.", "Settings, licence, credit", "bicubic", "without loss", "Leaflet",
    ):  # fmt: skip
        assert words in text, words
    assert [band["name"] for band in facts["bands"]] == list(BAND_NAMES)
    assert set(facts["output"]["planes"]) == set(BAND_NAMES)
    assert [grid["gsd"] for grid in facts["measured"]] == [10, 20, 60]
    assert facts["measuredKept"] is True
    assert facts["uncertainty"] is None
    assert (page.whole, page.exact, page.check) == (True, True, "block means equal to the input")
    assert page.shown_km2 == pytest.approx(0.9216)
    assert parser.tags.count("h1") == 1


def test_nothing_on_the_page_leads_elsewhere_but_the_credit(store):
    content = make_page(store).content.decode()
    _, parser, _ = read(make_page(store))
    assert set(parser.links) == {"#spectrum-title", "https://leafletjs.com"}
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', content)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "sourceMappingURL" not in content


def test_the_footer_names_the_bundled_librarys_version(store):
    content = make_page(store).content.decode()
    bundled = re.search(r"\* Leaflet (\d+\.\d+\.\d+), a JS library", content)[1]
    assert f">Leaflet</a> {bundled} (BSD 2-clause)" in content
    assert "Redistributions of source code must retain" in content


def test_the_catalogue_is_named_without_the_folder_it_lay_in(store):
    text, _, _ = read(make_page(store))
    assert "Catalogue archive.json" in text


def test_interpolation_is_not_called_invention(store):
    text, _, _ = read(make_page(store))
    assert "Nothing is invented here." in text
    assert "network" not in text.partition("What is measured, what is invented")[2].partition("Radiometric check")[0]


def test_the_same_store_gives_the_same_page(store):
    assert make_page(store).content == make_page(store).content


def test_text_from_outside_stays_text(store, tmp_path):
    path = copied(store, tmp_path)
    scenes = {HOSTILE: {"datetime": HOSTILE, "offset_dn": 0, "offset_evidence": HOSTILE, "baseline": HOSTILE}}
    periods = [{"label": HOSTILE, "composite": "mosaic", "scenes": [HOSTILE]}]
    attributes(path, scenes=scenes, periods=periods, notes=[HOSTILE], credit=HOSTILE, super_resolution=HOSTILE,
               software=HOSTILE, license=HOSTILE, consistency=HOSTILE, members=HOSTILE)  # fmt: skip
    plan(path, aoi_name=HOSTILE, created_utc=HOSTILE)
    receipt = next((path / "_run" / "receipts").iterdir())
    content = sealed.load(receipt.read_bytes())
    receipt.write_bytes(sealed.dump({**content, "seconds": {HOSTILE: 1.0}}))
    plain, changed = read(make_page(store))[1], read(make_page(path))
    assert changed[1].tags.count("script") == plain.tags.count("script")
    assert "img" not in changed[1].tags
    assert changed[0].count("document.title='seized'") >= 8
    assert changed[2]["system"] == HOSTILE


def test_block_means_that_differ_from_the_input_are_said(store, tmp_path):
    path = copied(store, tmp_path)
    measured = zarr.open_group(path / "measured" / "20m", mode="r+")["reflectance"]
    dn = measured[:]
    dn[0, 1, 5, 6] += 3
    measured[:] = dn
    for receipt in (path / "_run" / "receipts").iterdir():
        receipt.unlink()  # their sizes would be other ones
    page = make_page(path)
    assert "Does NOT hold in every band" in read(page)[0]
    off = float(re.match(r"block means within ([\d.]+) DN of the input", page.check)[1])
    assert 2.5 <= off <= 3.5


def test_residuals_leave_out_blocks_not_filled_by_output(store):
    zone = open_zone(store)
    part = read_part(zone, zone.whole)
    part.dn[zone.bands.index("B11"), 0, 0] = 0
    b11 = next(one for one in residuals(part, zone) if one.band == "B11")
    assert (b11.compared, b11.left_out, b11.gsd_m) == (48 * 48 - 1, 1, 20)
    assert b11.largest_dn <= 0.5


def test_the_sensors_view_is_that_of_reobserve_by_band(seen):
    zone = open_zone(seen)
    found = {one.band: one for one in residuals(read_part(zone, zone.whole), zone)}
    again, measured = pipeline.reobserve(pipeline.open_store(seen).reflectance), pipeline.open_measured(seen)
    for gsd in (10, 20, 60):
        for band in again[gsd].band.values:
            off = 1e4 * (again[gsd] - measured[gsd].reflectance).sel(band=band).values[0]
            inside = off[np.isfinite(off)]
            one = found[band]
            assert (one.seen, one.compared, one.left_out) == (True, inside.size, off.size - inside.size)
            assert one.bias_dn == pytest.approx(inside.mean(), abs=0.01)
            numbers = (one.median_dn, one.p99_dn, one.largest_dn)
            assert numbers == pytest.approx([*np.percentile(np.abs(inside), (50, 99, 100))], abs=0.05), band
    assert found["B02"].left_out == 96**2 - 94**2


def test_the_check_of_the_default_is_the_sensors_view(seen):
    page = make_page(seen)
    text = read(page)[0]
    for words in (
        "looked at as the sensor would", "Mean (bias), DN", "is what the satellite would measure of the output",
        "Consistency sensor", "MTF at Nyquist", "0.2 (B02, B08)",
    ):  # fmt: skip
        assert words in text, words
    said = r"99 % of the pixels within [\d.]+ DN in B\d[\dA], which lies furthest beyond its limit \(\d+\)"
    assert re.fullmatch(f"seen by the sensor, {said}", page.check), "noise of 600 DN, which no instrument has"
    assert "the mean of the output is the measured number" not in text


def test_pixels_that_the_sensor_would_not_see_so_are_found(seen):
    zone = open_zone(seen)
    part = read_part(zone, zone.whole)
    before = {one.band: one for one in residuals(part, zone)}
    part.measured[20][bands_at(20, zone.bands).index("B11"), ::5, ::5] += 400  # 4 % of the pixels
    part.measured[60][0] -= 3
    after = {one.band: one for one in residuals(part, zone)}
    assert [band for band in BAND_NAMES if before[band] != after[band]] == ["B01", "B11"]
    assert after["B11"].p99_dn > before["B11"].p99_dn + 300
    assert after["B01"].bias_dn == pytest.approx(before["B01"].bias_dn + 3)


@pytest.mark.parametrize(
    ("bias", "p99", "kind", "verdict"),
    [
        (
            -0.4,
            14.0,
            "good",
            "Holds in every band: largest bias 0.40 DN (limit 0.5); 99 % of the pixels within 14.0 DN in B11, "
            "which comes nearest to its limit (15).",
        ),
        (0.1, 16.0, "bad", "No band is biased. More than 1 % of the pixels lie beyond 15 DN in B11 and B12."),
        (-0.6, 9.0, "bad", "There is a bias of more than 0.5 DN in B11 and B12."),
    ],
)
def test_the_verdict_on_the_sensors_view(seen, bias, p99, kind, verdict):
    zone = open_zone(seen)
    good = Residual("B02", 10, True, 900, 0, 20.0, 4.0, 3.0, 6.0, 1.0, 0.02)
    others = [replace(good, band=band, bias_dn=bias, p99_dn=p99) for band in ("B11", "B12")]
    words = check_section([good, *others], read_part(zone, zone.whole), "sensor")
    assert f'<strong class="{kind}">{verdict}</strong>' in words
    if kind == "good":
        _, told = summary_line([good, *others]).split(", ", 1)
        assert f"; {told}." in verdict, "the terminal and the page say the same"


def test_what_sees_nodata_is_left_out_and_counted(seen):
    zone = open_zone(seen)
    part = read_part(zone, zone.whole)
    part.dn[zone.bands.index("B11"), 96, 96] = 0
    b11 = next(one for one in residuals(part, zone) if one.band == "B11")
    assert (b11.compared, b11.left_out) == (46 * 46 - 9, 48 * 48 - 46 * 46 + 9)


@pytest.mark.parametrize(
    ("changes", "said", "unsaid"),
    [
        (
            {"estimate": "mean", "members": 0},
            ["gives its best estimate: what", "lite, best estimate", "Members 0: a"],
            ["Invented", "Seed"],
        ),
        ({"estimate": "mean", "members": 4}, ["gives its best estimate, the mean of 4 draws: what", "Members 4"], []),
        ({"estimate": "sample", "members": 1}, ["Invented", "one of many", "lite, one sample", "Seed 0"], ["best"]),
        ({"members": 1}, ["Invented", "Estimate sample, one draw of many"], ["best"]),  # as older stores say it
        ({"members": 8}, ["the mean of 8 draws", "Estimate mean, the best estimate"], ["Invented"]),
    ],
)
def test_words_fit_the_estimate(seen, tmp_path, changes, said, unsaid):
    path = copied(seen, tmp_path)
    without_attribute(path, "estimate")
    attributes(path, super_resolution="lite", **changes)
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    group["generated"][:] = True
    text = read(make_page(path))[0]
    for words in said:
        assert words in text, words
    for words in unsaid:
        assert words not in text, words


def test_stores_without_input_show_block_means_and_say_so(store, tmp_path):
    path = without(copied(store, tmp_path), "measured", "overviews")
    page = make_page(path)
    text, _, facts = read(page)
    assert page.check == "no input kept to check against"
    assert facts["measuredKept"] is False
    assert 'data-label="block means"' in page.content.decode()
    assert "This store does not keep its measured input" in text
    assert "Holds in every band" not in text
    dn = np.asarray(zarr.open_group(store, mode="r")["reflectance"][0, 3])
    kept = np.asarray(zarr.open_group(store / "measured" / "10m", mode="r")["reflectance"][0, 2])
    assert (block_means(dn, 4) == kept).all()  # what is shown in its place is what was measured


def test_incomplete_stores_have_a_banner_and_empty_ones_no_page(store, tmp_path):
    path = copied(store, tmp_path)
    attributes(path, status="incomplete")
    assert "This store is not complete (status: incomplete)" in read(make_page(path))[0]
    for chunk in [p for name in ("reflectance", "quality") for p in (path / name / "c").rglob("*") if p.is_file()]:
        chunk.unlink()
    for receipt in (path / "_run" / "receipts").iterdir():
        receipt.unlink()
    with pytest.raises(NoDataError, match="holds no measured pixel at 2024-06"):
        make_page(path)


def test_units_set_aside_are_named_with_reason_and_command(store, tmp_path):
    path = copied(store, tmp_path)
    unit = "z32632-r0-c0-t0"
    attributes(path, status="complete_with_quarantine", quarantined=[unit])
    digest = json.loads((path / "zarr.json").read_text())["attributes"]["plan_digest"]
    folder = path / "_run" / "quarantine"
    folder.mkdir()
    record = {"unit": unit, "plan_digest": digest, "error": "killed <by> signal 9", "attempts": 4,
              "reproduce": f"python -m pipeline.running.single a.zarr {unit}"}  # fmt: skip
    (folder / f"{unit}.json").write_text(json.dumps(record))
    (folder / "stale.json").write_text(json.dumps({**record, "unit": "z32632-r9-c9-t0", "plan_digest": "other"}))
    text = read(make_page(path))[0]
    assert f"{unit} , tried 4 times: killed <by> signal 9" in text
    assert record["reproduce"] in text
    assert "1 unit could not be computed and was set aside" in text
    assert "z32632-r9-c9-t0" not in text


@pytest.mark.parametrize("consistency", ["tent", "none"])
def test_without_the_promise_there_is_no_verdict(store, tmp_path, consistency):
    path = copied(store, tmp_path)
    attributes(path, consistency=consistency)
    text = read(make_page(path))[0]
    assert f"made with consistency “{consistency}”" in text
    assert "Holds in every band" not in text
    assert "is the measured number, for every band" not in text


def test_attributes_of_the_wrong_kind_do_no_harm(store, tmp_path):
    path = copied(store, tmp_path)
    attributes(path, periods=["June"], scenes=[1, 2], notes=7, quarantined="none", bands_absent=[], units="many")
    text = read(make_page(path))[0]
    assert "2024-06-17" in text
    attributes(path, periods={}, scenes={"S2A_CLOUDY": "clear"})
    assert "S2A_CLOUDY" in read(make_page(path))[0]
    attributes(path, **{"proj:code": "EPSG:none"})
    with pytest.raises(IntegrityError, match="the root group cannot be read"):
        make_page(path)


@pytest.mark.parametrize("name", ["reflectance", "quality", "measured/10m/reflectance"])
@pytest.mark.parametrize("how", ["flipped", "missing", "cut"])
def test_damage_is_refused_and_never_shown_as_nodata(store, tmp_path, name, how):
    path = copied(store, tmp_path)
    chunk = chunk_of(path, name)
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 0xFF
    {"flipped": lambda: chunk.write_bytes(bytes(content)), "missing": chunk.unlink,
     "cut": lambda: chunk.write_bytes(bytes(content[:20]))}[how]()  # fmt: skip
    with pytest.raises(IntegrityError, match=name.split("/")[-1]) as raised:
        make_page(path)
    assert raised.value.exit_code == 7
    assert "\n" not in str(raised.value)


def test_what_is_no_store_of_ours_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is not a Zarr store"):
        make_page(tmp_path / "nothing.zarr")
    (tmp_path / "file.zarr").write_text("hello")
    with pytest.raises(UsageError, match="is not a Zarr store"):
        make_page(tmp_path / "file.zarr")
    zarr.create_group(tmp_path / "foreign.zarr")
    with pytest.raises(UsageError, match="not written by this pipeline"):
        make_page(tmp_path / "foreign.zarr")
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.zarr" / "zarr.json").write_text('{"zarr_format": 3, "node')
    with pytest.raises(IntegrityError, match=r"zarr\.json cannot be read"):
        make_page(tmp_path / "broken.zarr")


def test_times_are_chosen_by_date_and_the_others_named(tmp_path):
    path = make_store(tmp_path, composite="none", bands=("B02", "B03", "B04"))
    first, second = make_page(path), make_page(path, time="2024-06-22")
    assert (first.label, second.label) == ("2024-06-17", "2024-06-22")
    text, _, facts = read(second)
    assert "The store also holds 2024-06-17: make their pages with --time." in text
    assert [c["name"] for c in facts["composites"]] == ["True colour"]
    assert "Bands that this store does not hold: B01, B05, B06, B07, B08, B8A, B09, B11, B12 (left out by" in text
    assert "S2B_LATER" in text
    assert "S2A_CLOUDY" not in text
    with pytest.raises(
        UsageError, match=r"no time step '2023-01-01'; expected all, 0 to 1, or one of 2024-06-17, 2024-06-22"
    ):
        make_page(path, time="2023-01-01")
    with pytest.raises(UsageError, match="has no zone utm31n"):
        make_page(path, zone="utm31n")


def test_uncertainty_is_there_where_the_store_has_it(store, tmp_path):
    path = copied(store, tmp_path)
    with_uncertainty(path)
    text, _, facts = read(make_page(path))
    assert set(facts["uncertainty"]["planes"]) == set(BAND_NAMES)
    assert "is the standard deviation over 8 draws" in text
    assert "mean of 8 members" in text


def test_large_stores_show_a_part_and_an_overview(store, monkeypatch):
    monkeypatch.setattr(region, "WHOLE_PX", 100_000)
    monkeypatch.setattr(region, "_DETAIL_PX", 192)
    asked = []
    original = source._read
    monkeypatch.setattr(source, "_read", lambda *a: asked.append(a[2:4]) or original(*a))
    page = make_page(store)
    text, _, facts = read(page)
    assert (page.whole, page.shown_km2, page.context_gsd_m) == (False, 0.2304, 5)
    assert (facts["output"]["ny"], facts["output"]["nx"]) == (192, 192)
    assert facts["context"]["gsd"] == 5
    assert facts["context"]["ny"] * 5 == 960
    assert "larger than a page can hold" in text
    for _, index in asked:  # never more than the part
        assert index[-1].stop - index[-1].start in (192, 48, 24, 8)


def test_the_place_to_show_can_be_chosen(store, monkeypatch):
    monkeypatch.setattr(region, "WHOLE_PX", 100_000)
    monkeypatch.setattr(region, "_DETAIL_PX", 192)
    zone = open_zone(store)
    lon, lat = 10.30, 46.04
    facts = read(make_page(store, at=_degrees(zone, 300, 290)))[2]
    left, _, _, top = facts["part"]
    assert (left, top) == (zone.left_m + 480, zone.top_m - 480)
    with pytest.raises(UsageError, match="lies outside the store; expected a longitude from 10.29"):
        make_page(store, at=(lon, lat - 1))
    with pytest.raises(UsageError, match="lies outside the store"):
        make_page(store, at=(200.0, 95.0))


def _degrees(zone, row, col):
    turn = pyproj.Transformer.from_crs(zone.epsg, 4326, always_xy=True)
    return turn.transform(zone.left_m + 2.5 * col, zone.top_m - 2.5 * row)


def test_a_missing_piece_of_the_overview_is_refused(store, tmp_path, monkeypatch):
    monkeypatch.setattr(region, "WHOLE_PX", 100_000)
    monkeypatch.setattr(region, "_DETAIL_PX", 192)
    path = copied(store, tmp_path)
    chunk_of(path, "overviews/5m/reflectance").unlink()
    with pytest.raises(IntegrityError, match="overviews/5m/reflectance/c/0/0/0/0 is missing"):
        make_page(path)


def test_large_stores_without_overviews_are_looked_at_by_chunks(store, tmp_path, monkeypatch):
    monkeypatch.setattr(region, "WHOLE_PX", 100_000)
    monkeypatch.setattr(region, "_DETAIL_PX", 192)
    path = without(copied(store, tmp_path), "overviews")
    page = make_page(path)
    assert (page.whole, page.context_gsd_m) == (False, None)
    assert "Outside the frame nothing is shown" in read(page)[0]


def test_the_map_opens_where_contrast_is(store, monkeypatch):
    zone = open_zone(store)
    part = read_part(zone, Window(0, 0, 384, 384))
    for gsd in part.measured:
        part.measured[gsd][:] = 2000
    part.measured[10][:, 4:8, 88:92] = 9000  # a bright yard in the upper right corner
    monkeypatch.setattr(region, "_FOCUS_M", 200.0)
    x, y = region.focus_m(zone, part)
    assert zone.left_m + 760 <= x <= zone.left_m + 960
    assert zone.top_m - 200 <= y <= zone.top_m


def test_no_page_is_larger_than_the_limit(store):
    """By arithmetic: images have a fixed room, base64 makes 4 bytes of 3, and the rest of the page is small."""
    content = make_page(store).content
    assert 100_000 < len(content) - _payload(content) < 500_000
    assert _IMAGE_BYTES * 4 / 3 + 500_000 < LIMIT_BYTES


def _payload(content):
    blocks = re.findall(rb'<script type="text/plain" id="block-\d+">([^<]*)</script>', content)
    return sum(map(len, blocks))


def test_stores_on_object_stores_have_pages(store):
    with s3_server():
        place = place_of("s3://bucket/pages/lake_shore.zarr")
        for path in sorted(p for p in store.rglob("*") if p.is_file()):
            place.write(str(path.relative_to(store)), path.read_bytes())
        assert make_page(place).content == make_page(store).content


def test_each_utm_zone_has_its_page(tmp_path):
    """An area across 12 degrees east: zones 32 and 33."""
    scenes = []
    for epsg, lon in ((32632, 11.995), (32633, 12.005)):
        x, y = pyproj.Transformer.from_crs(4326, epsg, always_xy=True).transform(lon, 46.0)
        left, top = round((x - 1500) / 60) * 60, round((y + 1500) / 60) * 60
        scenes.append(make_scene(tmp_path, scene_id=f"S2A_{epsg}", epsg=epsg, left_m=left, top_m=top, size_m=3000))
    ring = [[11.994, 45.998], [12.006, 45.998], [12.006, 46.002], [11.994, 46.002], [11.994, 45.998]]
    aoi = tmp_path / "border.geojson"
    aoi.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    path = tmp_path / "border.zarr"
    run(config_for(make_archive(tmp_path, scenes), bands=("B02", "B03", "B04", "B11"), consistency="box"), aoi, path)
    first, second = read(make_page(path)), read(make_page(path, zone="utm33n"))
    assert "This page shows the UTM zone utm32n. The store also holds utm33n: make their pages with --zone." in first[0]
    assert ("EPSG:32632" in first[0], "EPSG:32633" in second[0]) == (True, True)
    assert "S2A_32633" in second[0]
    assert "S2A_32632" not in second[0]
    assert "Holds in every band." in second[0]
    lon = [value for row in second[2]["lonlat"]["lon"] for value in row]
    assert 11.99 < min(lon) < max(lon) < 12.02
    with pytest.raises(UsageError, match="has no zone utm31n; expected utm32n, utm33n"):
        make_page(path, zone="utm31n")
    chunk_of(path, "utm33n/quality").unlink()
    make_page(path)
    with pytest.raises(IntegrityError, match="quality/c/0/.* is missing"):
        make_page(path, zone="utm33n")
