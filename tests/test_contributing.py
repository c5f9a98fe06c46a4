"""The contributing page: its system works as it stands there, and the folders that it names are there."""

import re
import sys
from pathlib import Path

import pytest
import yaml

import pipeline
from pipeline.run import main
from pipeline.superres import registry
from tests.archive.synthetic import make_archive, make_scene
from tests.running.conftest import LEFT, TOP, box, write_aoi

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / ".github" / "CONTRIBUTING.md"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that holds the page's module and entry point, installed."""
    text = PAGE.read_text()
    (module,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    (entry,) = re.findall(r'entry-points\."([\w.]+)"\]\s+([\w-]+) = "(\w+):SYSTEM"', text)
    group, name, stem = entry
    site = tmp_path / "site"
    (site / f"{stem}-1.0.dist-info").mkdir(parents=True)
    (site / f"{stem}-1.0.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {stem}\nVersion: 1.0\n")
    (site / f"{stem}-1.0.dist-info" / "entry_points.txt").write_text(f"[{group}]\n{name} = {stem}:SYSTEM\n")
    (site / f"{stem}.py").write_text(module)
    monkeypatch.setattr(registry, "_REGISTERED", {})
    monkeypatch.syspath_prepend(str(site))
    registry._installed.cache_clear()
    yield name
    sys.modules.pop(stem, None)
    registry._installed.cache_clear()


def test_the_system_of_the_page_runs_as_it_is_written(package, tmp_path):
    archive = make_archive(tmp_path, [make_scene(tmp_path, scene_id="S2A_ONE", size_m=1800)])
    aoi = write_aoi(tmp_path / "region.geojson", box(LEFT + 800, TOP - 1000, LEFT + 1000, TOP - 800))
    store = tmp_path / "region.zarr"
    days = ("--start", "2024-01-01", "--end", "2024-12-31", "--chunk-px", "96", "--cluster", "inline")
    assert main(["--aoi", str(aoi), "--catalog", str(archive), "--sr", package, "--out", str(store), *days]) == 0
    dataset = pipeline.open_store(store)
    assert len(dataset.band) == 12
    assert bool((dataset.quality == 3).any())


def test_folders_and_files_that_the_page_names_are_there():
    named = re.findall(r"`((?:pipeline|training|catalogs|deploy|tests|\.ci)[\w./-]*)`", PAGE.read_text())
    assert len(named) > 12
    for name in named:
        assert (ROOT / name).exists() or (ROOT / f"{name.replace('.', '/')}.py").exists(), name


def test_the_workflow_calls_the_same_script_as_everybody():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert job["steps"][-1] == {"run": ".ci/run"}
