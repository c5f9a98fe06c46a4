"""`import sen2fine`: quick, complete, and independent of what else is called `pipeline`."""

import importlib.util
import sys
import types

import pytest
import sen2fine

import pipeline
from pipeline import start
from pipeline.version import VERSION
from tests.api.conftest import ROOT, python


def test_every_name_is_there_and_documented():
    for name in sen2fine.__all__:
        value = getattr(sen2fine, name)
        assert name == "__version__" or value.__doc__, name
    assert dir(sen2fine) == sorted(sen2fine.__all__)
    assert sen2fine.__version__ == VERSION
    with pytest.raises(AttributeError, match="no attribute 'rum'"):
        _ = sen2fine.rum


def test_types_name_the_same_homes_as_the_lazy_imports():
    """What editors complete is what users get."""
    import ast

    tree = ast.parse((ROOT / "pipeline" / "public" / "sen2fine" / "__init__.py").read_text())
    declared = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("pipeline")
        for alias in node.names
    }
    assert declared == sen2fine._HOMES
    assert {*declared, "__version__"} == {*sen2fine.__all__}


def test_what_pipeline_offers_is_here_too():
    assert {*pipeline.__all__} <= {*sen2fine.__all__}


def test_importing_loads_nothing_heavy(tmp_path):
    heavy = "{'torch','dask','distributed','xarray','rasterio','zarr','numpy','shapely'}"
    code = f"import sys, sen2fine; print(sorted({heavy} & set(sys.modules)), 'run' in dir(sen2fine))"
    assert python("-c", code, cwd=tmp_path)[:2] == (0, "[] True\n")


def test_a_module_of_the_user_imported_before_is_a_clear_error(tmp_path):
    (tmp_path / "pipeline.py").write_text("")
    code, _, said = python("-c", "import pipeline, sen2fine", cwd=tmp_path)
    assert code == 1
    last = said.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: the module 'pipeline' was imported from {tmp_path / 'pipeline.py'} before")
    assert "cure: rename yours" in last


def test_a_module_of_the_user_in_the_folder_is_passed_over(tmp_path):
    (tmp_path / "pipeline.py").write_text("raise SystemExit('the user's')")
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "__init__.py").write_text("NAME = 'mine'")
    code, out, said = python(
        "-c", "import sen2fine, training; print(sen2fine.run.__module__, training.NAME)", cwd=tmp_path
    )
    assert (code, out) == (0, "pipeline.api.runs mine\n"), said


def test_claim_leaves_ours_and_refuses_others(monkeypatch):
    start.claim("pipeline")
    assert sys.modules["pipeline"] is pipeline
    other = types.ModuleType("training")
    other.__path__ = ["/somewhere/training"]  # a folder without __init__.py
    monkeypatch.setitem(sys.modules, "training", other)
    with pytest.raises(ImportError, match="was imported from /somewhere/training"):
        start.claim("training")
    monkeypatch.delitem(sys.modules, "training")
    start.claim("training")
    assert sys.modules["training"].__spec__.submodule_search_locations == [str(ROOT / "training")]
    assert importlib.util.find_spec("training.train").origin == str(ROOT / "training" / "train.py")


def test_a_broken_installation_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(start, "_HOME", tmp_path)
    monkeypatch.delitem(sys.modules, "training", raising=False)
    with pytest.raises(FileNotFoundError):
        start.claim("training")
    assert "training" not in sys.modules
