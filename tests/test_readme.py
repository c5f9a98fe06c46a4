"""The README's commands are what the programs take, and its quick start is what a new user needs."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import run as run_command

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / folder / "README.md" for folder in (".", "pipeline", "training", "deploy", "catalogs")]


def blocks(language="", page=ROOT / "README.md"):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page=ROOT / "README.md"):
    lines = [line for block in blocks(page=page) for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [part for part in parts if part.startswith("python -m") and " pip " not in part]


def test_quick_start_is_the_first_block_and_has_two_lines():
    first = README.index("```")
    assert "## Quick start" in README[:first]
    assert len(blocks()[0].splitlines()) == 2


@pytest.fixture(scope="module")
def sample_store(tmp_path_factory):
    """The quick start's own command, run in an empty folder beside a link to the catalogues."""
    folder = tmp_path_factory.mktemp("quickstart")
    (folder / "catalogs").symlink_to(ROOT / "catalogs")
    command = next(c for c in commands() if "--catalog sample" in c)
    done = subprocess.run([sys.executable, *shlex.split(command)[1:]], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sample.zarr is complete: 12 bands at 2.5 m" in done.stdout
    return folder / "sample.zarr"


@pytest.mark.slow  # the sample takes about ten seconds
def test_quick_start_makes_a_sound_store_and_a_picture(sample_store):
    from PIL import Image

    check = [sys.executable, "-m", "pipeline.check", str(sample_store), "--verify", "full"]
    assert subprocess.run(check, capture_output=True).returncode == 0
    with Image.open(sample_store.with_suffix(".png")) as picture:
        assert picture.width > 1000
        assert len(picture.convert("RGB").getcolors(2**24)) > 1000


@pytest.mark.slow
def test_python_blocks_run_on_the_sample(sample_store, monkeypatch):
    monkeypatch.chdir(sample_store.parent)
    names = {}
    for block in blocks("python") + blocks("python", ROOT / "pipeline" / "README.md"):
        exec(block, names)
    ds = names["ds"]
    assert ds.sizes["band"] == 12
    assert ds.rio.crs.to_epsg() == 32629
    off = names["off"]  # DN between what the sensor would see of the output and what it measured, of the 20 m bands
    assert abs(off.mean()) < 0.5
    assert abs(off).quantile(0.99) < 15


@pytest.mark.parametrize("command", [c for page in PAGES for c in commands(page) if "pipeline.run" in c])
def test_run_commands_are_understood(command):
    arguments = run_command.parser().parse_args(shlex.split(command)[3:])
    if arguments.config is None:
        run_command.config_of(arguments)


MODULES = sorted({c.split()[2] for page in PAGES for c in commands(page) if "pytest" not in c})


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import of package:RuntimeWarning")
def test_every_command_named_has_help(module, monkeypatch, capsys):
    """As `python -m` runs it, but in this process, which has imported its libraries already."""
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert caught.value.code in (0, None)
    assert "usage" in capsys.readouterr().out


@pytest.mark.slow
def test_every_command_named_starts_as_a_process():
    for module in MODULES:
        done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, cwd=ROOT)
        assert (done.returncode, "usage" in done.stdout) == (0, True), f"{module}: {done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_linked_files_and_sections_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), target
    headings = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in re.findall("(?m)^## (.+)$", text)
    }
    assert {name for name in re.findall(r"\]\(#([^)]+)\)", text)} <= headings


def test_the_first_page_is_one_page():
    assert len(README.splitlines()) < 150


def test_the_citation_is_of_this_version():
    import yaml

    from pipeline.version import VERSION

    cited = yaml.safe_load((ROOT / ".github" / "CITATION.cff").read_text())
    assert (cited["version"], cited["license"], cited["cff-version"]) == (VERSION, "MIT", "1.2.0")
    notes = {one["notes"] for one in cited["references"]}
    assert notes == {f"--sr {name}" for name in ("difffusr", "ldsr", "wavediffur", "sgdm")}


@pytest.mark.slow
def test_a_notebook_runs_as_a_script_on_the_sample(sample_store, tmp_path):
    """Without a screen and without imagery but the sample; it writes nothing beside itself.

    tests/deploy/test_notebooks.py runs all of them, as notebooks.
    """
    environment = {**os.environ, "MPLBACKEND": "agg"}
    environment.pop("SEN2FINE_DATA", None)
    words = [sys.executable, str(ROOT / "deploy" / "notebooks" / "first_look.py"), str(sample_store)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_all_notebooks_are_scripts_that_find_their_store_in_the_same_way():
    """By a line that works as a script and in Jupyter, without which they do; the season makes its own store."""
    line = 'store = next((word for word in sys.argv[1:] if word.endswith(".zarr")), "sample.zarr")\n'
    pages = {path.stem: path.read_text() for path in (ROOT / "deploy" / "notebooks").glob("*.py")}
    notebooks = {name: text for name, text in pages.items() if text.startswith("# %%")}
    assert {"field_statistics", "first_look", "from_odc_stac"} < {*notebooks}
    for name, text in notebooks.items():
        compile(text, name, "exec")
        assert not re.search(r"IPython|ipython|\bdisplay\(", text), name
    assert {name for name, text in notebooks.items() if line not in text} == {"time_series"}
