"""The report page in a real browser: Debian's chromium, driven headless; skipped where there is none.

Its network is watched: the file itself is the only thing that may be asked for.
"""

import base64
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
import zarr

from pipeline.bands import BAND_NAMES
from pipeline.products.page import document, region
from pipeline.products.page.document import make_page
from pipeline.superres.consistency import bicubic_up
from tests.products.stores import HOSTILE, attributes, copied, make_store, plan, put_into_a_receipt, with_uncertainty

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)"),
]
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
PATIENCE_MS = 60_000
_AS_TEXT = (  # `bytes` in base64: lists of numbers travel slowly
    "btoa(Array.from({length: Math.ceil(bytes.length / 8192)}, (_, i) => "
    "String.fromCharCode(...bytes.subarray(8192 * i, 8192 * (i + 1)))).join(''))"
)


@pytest.fixture(scope="module")
def browser():
    """Headless, without a sandbox because CI runs as root in a container."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: test)")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """With a spread over members, whose values are known."""
    path = make_store(tmp_path_factory.mktemp("browser"))
    with_uncertainty(path)
    return path


@pytest.fixture(scope="module")
def file(store, tmp_path_factory):
    path = tmp_path_factory.mktemp("pages") / "lake shore.html"
    path.write_bytes(make_page(store).content)
    return path


class View:
    """One page in one window, with all that it said and asked for."""

    def __init__(self, browser, path, size=DESKTOP, **more):
        self.context = browser.new_context(viewport=size, **more)
        self.page = self.context.new_page()
        self.said, self.asked = [], []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("#map[data-drawn]", timeout=PATIENCE_MS)
        self.page.wait_for_selector("#numbers[data-at]", timeout=PATIENCE_MS)

    def _hear(self, message):
        if "willReadFrequently" not in message.text:  # these tests read canvases, the page does not
            self.said.append(message.text)

    def js(self, code, argument=None):
        return self.page.evaluate(code, argument)

    def choose(self, name, label):
        """Choose in a list and wait until that is drawn."""
        before = self.page.get_attribute("#map", "data-drawn")
        value = self.js(
            "([n, l]) => [...document.getElementById(n).options].find((o) => o.text.startsWith(l)).value", [name, label]
        )
        self.page.select_option(f"#{name}", value)
        if name == "bands":
            drawn = "(b) => document.getElementById('map').dataset.drawn !== b"
            self.page.wait_for_function(drawn, arg=before, timeout=PATIENCE_MS)

    def colours(self, layer):
        """(y, x, 4) of a layer's canvas, as painted."""
        ny, nx, text = self.js(f"""() => {{
            const c = layers.{layer}.canvas;
            const bytes = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
            return [c.height, c.width, {_AS_TEXT}]; }}""")
        return np.frombuffer(base64.b64decode(text), np.uint8).reshape(ny, nx, 4)

    def click(self, x, y):
        """Click the map at a place (metres) and wait for its spectrum; {series: {band: DN}}."""
        before = self.page.get_attribute("#numbers", "data-at")
        at = self.js("([x, y]) => { map.setView(toLatLng(x, y), 1, {animate: false}); "
                     "return map.latLngToContainerPoint(toLatLng(x, y)); }", [x, y])  # fmt: skip
        box = self.page.locator("#map").bounding_box()
        self.page.mouse.click(box["x"] + at["x"] + 0.5, box["y"] + at["y"] + 0.5)
        moved = "(b) => document.getElementById('numbers').dataset.at !== b"
        self.page.wait_for_function(moved, arg=before, timeout=PATIENCE_MS)
        found = self.js("""() => [...document.querySelectorAll('#chart .point')].map((p) =>
            [p.classList[0], p.dataset.band, Number(p.dataset.dn)])""")
        series = {}
        for kind, band, dn in found:
            series.setdefault(kind, {})[band] = dn
        return series

    def close(self):
        self.context.close()


@pytest.fixture(scope="module")
def view(browser, file):
    opened = View(browser, file)
    yield opened
    opened.close()


def stored(store, row, col):
    """{band: DN} of the output and of the native pixels at a 2.5 m pixel."""
    group = zarr.open_group(store, mode="r", use_consolidated=False)
    output = dict(zip(BAND_NAMES, group["reflectance"][0, :, row, col].tolist(), strict=True))
    measured = {}
    for gsd in (10, 20, 60):
        native = zarr.open_group(store / "measured" / f"{gsd}m", mode="r")
        factor = round(gsd / 2.5)
        values = native["reflectance"][0, :, row // factor, col // factor].tolist()
        measured |= dict(zip(native["band"][:], values, strict=True))
    return output, measured


def place(store, row, col):
    """Easting and northing of the middle of a 2.5 m pixel."""
    group = zarr.open_group(store, mode="r", use_consolidated=False)
    return float(group["x"][col]), float(group["y"][row])


def test_it_opens_without_a_word_and_without_a_request(view, file):
    assert view.said == []
    assert view.asked == [file.as_uri()]
    assert view.page.title().startswith("lake_shore")
    assert view.page.inner_text("#side-left") == "Measured, 10 m"
    assert view.page.inner_text("#side-right") == "bicubic, 2.5 m"
    assert not view.page.is_visible("#trouble")


def test_the_policy_stops_every_request(browser, file):
    """Code that got into the page could not reach a server, which is there and would be heard."""
    heard = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            heard.append(self.path)
            self.send_response(200)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        opened = View(browser, file)
        caught = opened.js(
            """async (url) => {
            const image = new Image(); image.src = url + '/image'; document.body.append(image);
            const script = document.createElement('script'); script.src = url + '/script'; document.body.append(script);
            navigator.sendBeacon(url + '/beacon', 'x');
            try { await fetch(url + '/fetch'); return 'fetched'; } catch (error) { return 'refused'; } }""",
            url,
        )
        opened.page.wait_for_timeout(300)
        assert caught == "refused"
        assert sum("Content Security Policy" in text for text in opened.said) >= 4
        opened.close()
        empty = browser.new_page()
        empty.goto(f"{url}/seen")  # the same browser reaches it where no policy is in the way
        empty.close()
        server.shutdown()
    assert [path for path in heard if path != "/favicon.ico"] == ["/seen"]


def test_both_sides_show_the_stores_pixels_with_one_stretch(view, store):
    group = zarr.open_group(store, mode="r", use_consolidated=False)
    output, measured = view.colours("output"), view.colours("measured")
    assert output.shape == (384, 384, 4)
    assert measured.shape == (96, 96, 4)
    red = group["reflectance"][0, BAND_NAMES.index("B04")]
    native = zarr.open_group(store / "measured" / "10m", mode="r")
    native_red = native["reflectance"][0, list(native["band"][:]).index("B04")]
    dn = np.concatenate([red.ravel(), native_red.ravel()])
    shown = np.concatenate([output[..., 0].ravel(), measured[..., 0].ravel()])
    order = np.argsort(dn, kind="stable")
    assert (np.diff(shown[order].astype(int)) >= 0).all()  # one rising table for both
    assert len(np.unique(shown)) > 100


def test_a_change_of_bands_changes_the_pixels_and_their_size(view):
    before = view.colours("output")
    view.choose("bands", "False colour")
    false = view.colours("output")
    assert (before != false).any()
    view.choose("bands", "B11")
    assert view.page.inner_text("#side-left") == "Measured, 20 m"
    grey = view.colours("measured")
    assert grey.shape == (48, 48, 4)
    assert (grey[..., 0] == grey[..., 2]).all()
    view.choose("bands", "Short-wave")
    assert view.page.inner_text("#side-left") == "Measured, 10 and 20 m"
    view.choose("bands", "True colour")
    assert (view.colours("output") == before).all()


def test_the_left_side_can_be_interpolated(view, store):
    """As the pipeline's own bicubic interpolation, to rounding; the output's side stays what it is."""
    native = zarr.open_group(store / "measured" / "20m", mode="r")
    dn = native["reflectance"][0, list(native["band"][:]).index("B11")].astype(np.float32)
    output = view.colours("output")
    view.choose("left", "bicubic")
    assert view.page.inner_text("#side-left") == "Interpolated (bicubic), 2.5 m"
    assert (view.colours("output") == output).all()
    assert view.colours("measured").shape == (384, 384, 4)
    ny, nx, text = view.js(f"""async () => {{
        const grid = interpolated(gridOfBand('B11'));
        const bytes = new Uint8Array((await planeOf(grid, 'B11')).buffer);
        return [grid.ny, grid.nx, {_AS_TEXT}]; }}""")
    found = np.frombuffer(base64.b64decode(text), np.uint16).reshape(ny, nx)
    expected = bicubic_up(torch.from_numpy(dn)[None, None], 8)[0, 0].numpy()
    inside = (slice(16, -16), slice(16, -16))  # torch leaves out what lies beyond the edge, the page repeats it
    assert np.abs(found[inside] - expected[inside]).max() <= 0.51
    view.choose("left", "measured")
    assert view.page.inner_text("#side-left") == "Measured, 10 m"


def test_contrast_acts_on_both_sides_and_reset_takes_it_back(view):
    sides = ("output", "measured")
    before = {side: view.colours(side) for side in sides}
    drawn = view.page.get_attribute("#map", "data-drawn")
    view.js("() => { contrast.value = 2.5; contrast.dispatchEvent(new Event('input', {bubbles: true})); }")
    waiting = "(b) => document.getElementById('map').dataset.drawn !== b"
    view.page.wait_for_function(waiting, arg=drawn, timeout=PATIENCE_MS)
    for side in sides:
        assert view.colours(side)[..., :3].std() > 1.2 * before[side][..., :3].std()
    drawn = view.page.get_attribute("#map", "data-drawn")
    view.page.click("button[type=reset]")
    view.page.wait_for_function(waiting, arg=drawn, timeout=PATIENCE_MS)
    assert all((view.colours(side) == before[side]).all() for side in sides)


def clip_edges(view):
    """Right edge of the left side's clip and left edge of the right side's, in the map's pixels."""
    return view.js("""() => ['measured', 'output'].map((name, i) => {
        const corners = [...map.getPane(name).style.clipPath.matchAll(/(-?[\\d.]+)px -?[\\d.]+px/g)];
        const xs = corners.map((m) => Number(m[1]));
        const corner = map.containerPointToLayerPoint([0, 0]).x;
        return (i ? Math.min(...xs) : Math.max(...xs)) - corner; })""")


def test_the_swipe_moves_by_mouse_and_keys_and_clips(view):
    width = view.js("() => map.getSize().x")
    assert clip_edges(view) == pytest.approx([width / 2, width / 2], abs=1)
    grip = view.page.locator("#swipe .grip").bounding_box()
    y = grip["y"] + grip["height"] / 2
    view.page.mouse.move(grip["x"] + grip["width"] / 2, y)
    view.page.mouse.down()
    left = view.page.locator("#map").bounding_box()["x"]
    view.page.mouse.move(left + 0.25 * width, y, steps=4)
    view.page.mouse.up()
    assert clip_edges(view) == pytest.approx([width / 4, width / 4], abs=2)
    assert view.page.get_attribute("#swipe", "aria-valuenow") == "25"
    view.page.keyboard.press("ArrowRight")
    assert view.page.get_attribute("#swipe", "aria-valuenow") == "27"
    view.js("() => map.panBy([120, 40], {animate: false})")
    assert clip_edges(view) == pytest.approx([0.27 * width, 0.27 * width], abs=2)  # the bar stays where it is
    view.js("() => swipe.to(0.5)")


def test_a_click_shows_twelve_bands_with_the_stores_values(view, store):
    for row, col in ((200, 100), (37, 301)):
        x, y = place(store, row, col)
        series = view.click(x, y)
        output, measured = stored(store, row, col)
        assert series == {"output": output, "measured": measured}  # a small store's numbers are exact
        rows = view.page.locator("#numbers tbody tr").all_inner_texts()
        assert len(rows) == 12
        b11 = next(text.split("\t") for text in rows if text.startswith("B11"))
        values = [(measured["B11"] - 1000) * 1e-4, (output["B11"] - 1000) * 1e-4]
        assert [float(b11[3]), float(b11[4])] == pytest.approx(values, abs=6e-5)
        spread = 10 * BAND_NAMES.index("B11") + col
        assert float(b11[5]) == pytest.approx(spread * 1e-4, abs=6e-5)
        east, north = re.match(r"E (\d+) m, N (\d+) m", view.page.inner_text("#where")).groups()
        assert (int(east), int(north)) == pytest.approx((x, y), abs=2)


def test_degrees_under_the_cursor_are_those_of_the_projection(view, store):
    import pyproj

    x, y = place(store, 311, 47)
    lon, lat = pyproj.Transformer.from_crs(32632, 4326, always_xy=True).transform(x, y)
    assert view.js("([x, y]) => lonLat(x, y)", [x, y]) == pytest.approx([lon, lat], abs=1e-6)


def test_overlays_show_uncertainty_and_quality_with_a_legend(view):
    view.choose("overlay", "uncertainty")
    view.page.wait_for_function("() => document.getElementById('legend').children.length === 6", timeout=PATIENCE_MS)
    assert "Uncertainty of B04, B03, B02" in view.page.inner_text("#legend")
    painted = view.colours("overlay")
    assert (painted[:, 0, :3] == painted[0, 0, :3]).all()  # the spread grows with the column
    assert painted[0, 350, 0] > painted[0, 5, 0]
    view.choose("overlay", "quality")
    view.page.wait_for_function("() => document.getElementById('legend').children.length === 4", timeout=PATIENCE_MS)
    assert "no generated detail" in view.page.inner_text("#legend")
    view.choose("overlay", "none")
    assert view.js("() => layers.overlay.canvas.style.display") == "none"


def test_pixels_are_drawn_as_they_are_when_enlarged(view):
    look = "() => ['measured', 'output'].map((n) => getComputedStyle(layers[n].canvas).imageRendering)"
    view.js("() => map.setZoom(1, {animate: false})")
    assert view.js(look) == ["pixelated", "pixelated"]
    view.js("() => map.setMinZoom(-6).setZoom(-2, {animate: false})")
    assert view.js(look) == ["pixelated", "auto"]  # 0.25 px per metre: 10 m are still enlarged, 2.5 m are not
    view.js("() => map.setZoom(-5, {animate: false})")
    assert view.js(look) == ["auto", "auto"]
    view.page.click("#whole")


def test_keys_move_and_zoom_the_map_and_show_a_spectrum(view):
    view.js("() => map.setView(toLatLng(...facts.focus), 0, {animate: false})")
    view.page.focus("#map")
    view.page.keyboard.press("+")
    view.page.wait_for_function("() => map.getZoom() > 0", timeout=PATIENCE_MS)
    before = view.js("() => map.getCenter().lng")
    view.page.keyboard.press("ArrowRight")
    view.page.wait_for_function(f"() => map.getCenter().lng > {before}", timeout=PATIENCE_MS)
    at = view.page.get_attribute("#numbers", "data-at")
    view.page.focus("#centre")
    view.page.keyboard.press("Enter")
    view.page.wait_for_function(f"() => document.getElementById('numbers').dataset.at !== '{at}'", timeout=PATIENCE_MS)
    assert view.said == []


def test_the_wheel_zooms_the_map_and_dragging_moves_it(view):
    view.js("() => map.setView(toLatLng(...facts.focus), 0, {animate: false})")
    box = view.page.locator("#map").bounding_box()
    x, y = box["x"] + 200, box["y"] + 300
    view.page.mouse.move(x, y)
    view.page.mouse.wheel(0, -240)
    view.page.wait_for_function("() => map.getZoom() >= 0.5 && !map._animatingZoom", timeout=PATIENCE_MS)
    before = view.js("() => [map.getCenter().lng, map.getCenter().lat]")
    view.page.mouse.down()
    view.page.mouse.move(x + 90, y + 60, steps=5)
    moved = f"() => map.getCenter().lng < {before[0]} && map.getCenter().lat > {before[1]}"
    view.page.wait_for_function(moved, timeout=PATIENCE_MS)  # the next frame moves the map, unless the button is up
    view.page.mouse.up()


def test_two_fingers_zoom_the_map_on_a_phone(browser, file):
    phone = View(browser, file, PHONE, is_mobile=True, has_touch=True)
    before = phone.js("() => map.getZoom()")
    box = phone.page.locator("#map").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + 150
    session = phone.context.new_cdp_session(phone.page)
    for kind, apart in (("touchStart", 30), ("touchMove", 60), ("touchMove", 90), ("touchMove", 120), ("touchEnd", 0)):
        fingers = [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}] if apart else []
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers})
        phone.page.wait_for_timeout(60)
    phone.page.wait_for_function(f"() => map.getZoom() > {before} + 0.5", timeout=PATIENCE_MS)
    assert phone.said == []
    phone.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_all_without_scrolling_sideways(browser, file, scheme):
    phone = View(browser, file, PHONE, is_mobile=True, has_touch=True, color_scheme=scheme)
    assert phone.js("() => document.documentElement.scrollWidth") == PHONE["width"]
    width = phone.js("() => map.getSize().x")
    assert 340 < width <= 390
    box = phone.page.locator("#map").bounding_box()
    at = phone.page.get_attribute("#numbers", "data-at")
    phone.page.touchscreen.tap(box["x"] + 60, box["y"] + 200)
    phone.page.wait_for_function(f"() => document.getElementById('numbers').dataset.at !== '{at}'", timeout=PATIENCE_MS)
    assert phone.page.locator("#chart .output.point").count() == 12
    assert phone.js("() => document.documentElement.scrollWidth") == PHONE["width"]
    assert phone.said == []
    phone.close()


def test_hostile_names_are_shown_and_not_run(browser, store, tmp_path):
    path = copied(store, tmp_path)
    scenes = {HOSTILE: {"datetime": "2024-06-17T10:20:31Z", "offset_evidence": HOSTILE}}
    periods = [{"label": "2024-06-17", "composite": "none", "scenes": [HOSTILE]}]
    attributes(path, scenes=scenes, notes=[HOSTILE], periods=periods, super_resolution=HOSTILE)
    plan(path, aoi_name=HOSTILE)
    out = tmp_path / "hostile.html"
    out.write_bytes(make_page(path).content)
    opened = View(browser, out)
    opened.page.on("dialog", lambda dialog: opened.said.append("dialog"))
    assert opened.page.inner_text("h1") == HOSTILE
    assert opened.page.title().startswith(HOSTILE)
    assert opened.page.inner_text("#side-right").startswith(HOSTILE)
    assert opened.page.locator("img").count() == 0
    assert opened.said == []
    opened.close()


def test_lossy_pages_keep_what_they_state(browser, store, tmp_path, monkeypatch):
    """As for a store of 25 km2: 8-bit images, and every number within the precision that the page states."""
    monkeypatch.setattr(document, "_IMAGE_BYTES", 700_000)
    out = tmp_path / "lossy.html"
    store = copied(store, tmp_path)
    spread = zarr.open_group(store, mode="r+", use_consolidated=False)["uncertainty"]
    spread[:] = np.random.default_rng(1).integers(0, 200, spread.shape).astype(np.uint16)
    put_into_a_receipt(store, "uncertainty")
    made = make_page(store)
    out.write_bytes(made.content)
    assert not made.exact
    opened = View(browser, out)
    group = zarr.open_group(store, mode="r", use_consolidated=False)
    for band in ("B01", "B04", "B8A", "B12"):
        text = opened.js(
            f"""async (band) => {{ const dn = await planeOf(facts.output, band);
            const bytes = new Uint8Array(dn.buffer); return {_AS_TEXT}; }}""",
            band,
        )
        shown = np.frombuffer(base64.b64decode(text), "<u2").astype(int)
        error = opened.js("(band) => facts.output.planes[band].error", band)
        true = group["reflectance"][0, BAND_NAMES.index(band)].astype(int).ravel()
        assert 0 < error <= 400
        assert np.abs(shown - true).max() <= error
        stated = opened.page.locator("#precision tbody tr", has_text=re.compile(f"^{band}")).inner_text().split("\t")
        assert int(stated[1]) == error
        assert float(stated[3]) == pytest.approx(error * 1e-4)
    row, col = 120, 200
    opened.click(*place(store, row, col))
    assert "spread: mean over 5 m" in opened.page.inner_text("#numbers p")
    b09 = next(t for t in opened.page.locator("#numbers tbody tr").all_inner_texts() if t.startswith("B09")).split("\t")
    mean = group["uncertainty"][0, BAND_NAMES.index("B09"), row : row + 2, col : col + 2].mean()
    limit = opened.js("() => facts.uncertainty.planes.B09.error") + 1
    assert abs(float(b09[5]) * 1e4 - mean) <= limit
    opened.close()


@pytest.mark.slow
def test_large_stores_show_their_overview_around_the_part(browser, store, tmp_path, monkeypatch):
    monkeypatch.setattr(region, "WHOLE_PX", 100_000)
    monkeypatch.setattr(region, "_DETAIL_PX", 192)
    out = tmp_path / "large.html"
    out.write_bytes(make_page(store).content)
    opened = View(browser, out)
    part = opened.js("() => facts.part")
    frame = opened.js("() => facts.frame")
    outside = next((x, y) for x in (frame[0] + 12, frame[2] - 12) for y in (frame[1] + 12, frame[3] - 12)
                   if not (part[0] <= x <= part[2] and part[1] <= y <= part[3]))  # fmt: skip
    series = opened.click(*outside)
    assert len(series["output"]) == 12
    assert "measured" not in series
    assert opened.colours("context").shape == (192, 192, 4)
    assert opened.said == []
    opened.close()
