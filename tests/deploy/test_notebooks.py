"""Notebooks render with their figures; a failing notebook is not written."""

import ast
import base64
import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from pipeline.run import main
from tests.archive.synthetic import make_archive, make_scene
from tests.running.conftest import LEFT, TOP, box, config_for, run, write_aoi

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "notebooks"
RENDERED = sorted((FOLDER / "rendered").glob("*.ipynb"))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return a store of 600 m x 600 m of synthetic land."""
    folder = tmp_path_factory.mktemp("render")
    archive = make_archive(folder, [make_scene(folder, scene_id="S2A_CLEAR", size_m=720)])
    aoi = write_aoi(folder / "aoi.geojson", box(LEFT + 65, TOP - 655, LEFT + 655, TOP - 65))
    run(config_for(archive), aoi, folder / "small.zarr")
    return folder / "small.zarr"


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """The store of the quick start: real fields, which synthetic land lacks."""
    store, root = tmp_path_factory.mktemp("sample") / "sample.zarr", FOLDER.parents[1]
    words = ["--aoi", str(root / "catalogs/sample/region.geojson"), "--catalog", "sample", "--out", str(store)]
    assert main([*words, "--cluster", "inline", "--quiet"]) == 0
    return store


def render(*words, folder=FOLDER):
    command = [sys.executable, str(folder / "render.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def figures(notebook):
    """Return every figure of a notebook as an array (y, x, 3)."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pngs = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")) for png in pngs]


@pytest.mark.slow
def test_first_look_is_rendered_with_its_figures(store, tmp_path):
    notebook = rendered("first_look", store, tmp_path)
    nbformat.validate(notebook)
    kinds = {cell.cell_type for cell in notebook.cells}
    assert kinds == {"markdown", "code"}
    assert notebook.cells[0].source.startswith("# A first look at a store")
    found = figures(notebook)
    assert len(found) == 3
    for image in found:
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 200, "a picture, not an empty frame"
    said = said_by(notebook)
    bias = re.search(r"10 m bands: 99 % within [\d.]+ DN, bias (-?[\d.]+) DN", said)
    assert bias, said
    assert abs(float(bias[1])) < 0.5


def rendered(name, store, folder, scripts=FOLDER):
    """Return the notebook as it came out: nothing is written beside it, and no cell warns."""
    done = render(folder / "out", store, "--only", name, folder=scripts)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (folder / "out").iterdir()] == [f"{name}.ipynb"]
    notebook = nbformat.read(folder / "out" / f"{name}.ipynb", 4)
    assert "Warning" not in said_by(notebook, "stderr")
    return notebook


def said_by(notebook, stream="stdout"):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == stream)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["from_odc_stac", "field_statistics", "own_system"])
def test_the_others_are_rendered_with_all_their_figures(sample, tmp_path, name):
    require_figures(rendered(name, sample, tmp_path), name)


def require_figures(notebook, name):
    found = figures(notebook)
    assert len(found) == (FOLDER / f"{name}.py").read_text().count("plt.show()") > 0
    for image in found:
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50, "a picture, not an empty frame"


@pytest.mark.long
@pytest.mark.slow
def test_time_series_makes_up_a_landscape(tmp_path, monkeypatch):
    """Of three of its seven dates, which are all alike to the code; with imagery, the seven are below."""
    monkeypatch.delenv("SEN2FINE_DATA", raising=False)
    script = (FOLDER / "time_series.py").read_text()
    (dates,) = re.findall(r"^DATES = (\(.*\))$", script, re.MULTILINE)
    few = str(ast.literal_eval(dates)[1:6:2])
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "time_series.py").write_text(script.replace(dates, few))
    shutil.copy(FOLDER / "render.py", tmp_path / "scripts")
    notebook = rendered("time_series", tmp_path / "none.zarr", tmp_path, tmp_path / "scripts")
    require_figures(notebook, "time_series")
    assert said_by(notebook).count("one pixel leaves its 10 m pixel by") == 3


@pytest.mark.parametrize("path", RENDERED, ids=lambda path: path.stem)
def test_what_is_kept_rendered_is_what_the_script_says(path):
    import jupytext

    kept, script = nbformat.read(path, 4), jupytext.read(FOLDER / f"{path.stem}.py", fmt="py:percent")
    nbformat.validate(kept)
    assert [cell.source for cell in kept.cells] == [cell.source for cell in script.cells]
    assert len(figures(kept)) == (FOLDER / f"{path.stem}.py").read_text().count("plt.show()") > 0
    outputs = [output for cell in kept.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert not re.search(r"/(home|root|tmp|work|Users)/", json.dumps([dict(output) for output in outputs]))


def test_readme_names_all_notebooks_and_valid_commands():
    text = (FOLDER / "README.md").read_text()
    module = runpy.run_path(str(FOLDER / "render.py"))
    assert set(re.findall(r"^\| `(\w+)\.py` \|", text, re.MULTILINE)) == set(module["NOTEBOOKS"])
    commands = re.findall(r"^python deploy/notebooks/render\.py (.*)$", text, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert module["parser"]().parse_args(shlex.split(command)).store == Path("sample.zarr")


@pytest.mark.slow
def test_a_notebook_that_fails_is_not_written(tmp_path):
    done = render(tmp_path / "out", tmp_path / "absent.zarr", "--only", "first_look")
    assert done.returncode != 0
    assert "absent.zarr is not a Zarr store" in done.stderr
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.long
@pytest.mark.slow
def test_a_network_of_ones_own_is_trained_and_beats_interpolation(sample, tmp_path):
    notebook = rendered("own_training", sample, tmp_path)
    assert len(figures(notebook)) == 2
    said = said_by(notebook)
    assert "orthos: 16 of 16 can be used" in said
    scores = dict(re.findall(r"^(bicubic|IBP|stored small: mean, sensor) +([\d.]+) dB$", said, re.MULTILINE))
    assert float(scores["stored small: mean, sensor"]) > float(scores["IBP"]) > float(scores["bicubic"])


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.shared_data
def test_time_series_runs_on_the_seven_real_dates(shared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("SEN2FINE_DATA", str(shared_data))
    done = render(tmp_path, "sample.zarr", "--only", "time_series")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "time_series.ipynb").read_text()
    assert "2018_3A_Theia_Bouconne_2018-11-15" in text
    assert "not in the store: B01, B09, which --bands leaves out and no scene has" in text
    assert len(figures(nbformat.read(tmp_path / "time_series.ipynb", 4))) == 2
