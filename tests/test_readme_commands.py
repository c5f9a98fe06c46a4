"""Every command of the README and of its pages is executed, word for word, where a user would stand.

Known archives are stood in for by a STAC API and a file server on loopback; the ground is synthetic. Training commands
run with presets of a few hundred parameters. The two lines of the quick start are CI's own.
"""

import re
import shlex
from contextlib import ExitStack, chdir
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path

import pytest
import torch

from pipeline.archive import catalog
from pipeline.running import choices
from pipeline.superres import spec, weights
from tests.archive.synthetic import make_scene
from tests.faults.conftest import online
from tests.models.small import write_lite
from tests.running.conftest import LEFT, SIZE, TOP, box, write_aoi
from tests.training.imagery import TINY_SR, own_imagery
from tests.training.test_convert import GROUPS, released, small_weights
from training.quality import cost, phases, real

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ("--images", "8")  # of training; the README's words take an hour
MORE = {  # what the README leaves to a user's data or patience
    "python -m training.train --preset lite-sr --data my_training.toml --out runs/a": IMAGES,
    "python -m training.evaluate": ("--per-set", "1", "--members", "2"),
    "python -m training.convert": tuple(map(str, GROUPS)),
    "python -m pipeline.run --aoi region.geojson --sr difffusr": ("--bands", "B02,B03,B04,B08"),
}


def commands(section, page="README.md"):
    text = (ROOT / page).read_text()
    part = text[text.index(f"\n## {section}\n") :]
    part = part[: part.find("\n## ", 5)]
    blocks = re.findall(r"^```\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("python -m ")]


def execute(command, capsys):
    """Exit code and output of a command of this project, in this process."""
    more = next((words for start, words in MORE.items() if command.startswith(start)), ())
    words = [str(Path(word).expanduser()) if word.startswith("~") else word for word in shlex.split(command)]
    assert words[:2] == ["python", "-m"]
    code = import_module(words[2]).main([*words[3:], *more])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def scenes_of(folder):
    """Scenes of the last weeks and of the summer of 2024, named as the archive names them."""
    now = datetime.now(UTC)
    days = [now - timedelta(days=9), now - timedelta(days=29), *(datetime(2024, m, 17, tzinfo=UTC) for m in (5, 6, 7))]
    return [
        make_scene(
            folder, scene_id=f"S2A_MSIL2A_{day:%Y%m%d}T102031_N0214_R065_T32TPT_{day:%Y%m%d}T120000",
            seed=number, size_m=SIZE, date=f"{day:%Y-%m-%d}T10:20:31Z", cloud_fraction=0.1,
        )
        for number, day in enumerate(days)
    ]  # fmt: skip


@pytest.fixture
def stand(tmp_path, monkeypatch):
    """A working folder with an AOI of 400 m, scenes under the home folder, and archives that answer on loopback.

    What ships as weights are small networks there, and the machine has one processor, so that no worker is started,
    which would not know them.
    """
    write_lite(tmp_path / "weights")
    monkeypatch.setattr(weights, "SHIPPED", tmp_path / "weights")
    monkeypatch.setattr(choices, "processors", lambda: 1)
    home, work = tmp_path / "home", tmp_path / "work"
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    scenes = scenes_of(home / "s2_archive")
    write_aoi(work / "region.geojson", box(LEFT + 700, TOP - 1100, LEFT + 1100, TOP - 700))
    with ExitStack() as stack:
        toml, _ = stack.enter_context(online((home / "s2_archive", scenes), lambda *_: None))
        toml = toml.rename(tmp_path / toml.name)  # the folder of scenes holds scenes alone
        answering = dict.fromkeys(("earth-search", "planetary-computer"), toml)
        monkeypatch.setattr(catalog, "known_catalogs", lambda: answering)
        stack.enter_context(chdir(work))
        yield work


@pytest.mark.slow
def test_recipes(stand, capsys):
    lines = commands("Recipes")
    assert len(lines) > 8
    for line in lines:
        code, said = execute(line, capsys)
        assert code == 0, f"{line}\n{said}"
    for name in ("lyon.html", "lyon_tifs", "stores.json", "sure.zarr", "months.zarr", "local.zarr"):
        assert (stand / name).exists(), name


@pytest.mark.slow
def test_parts(stand, capsys):
    lines = commands("The three steps", "deploy/README.md") + commands("Looking after a store", "deploy/README.md")
    assert [line.split()[-1] for line in lines[:3]] == ["64", "3/64", "--finalise"]
    (stand / "region.geojson").rename(stand / "country.geojson")
    for line in lines:
        if "--finalise" in line:
            code, said = execute(line, capsys)
            assert code == 75, said  # the other parts are missing, and it says so
            for part in range(1, 65):
                assert execute(f"python -m pipeline.run --plan run.zarr --shard-of {part}/64", capsys)[0] == 0
        code, said = execute(line, capsys)
        assert code == 0, f"{line}\n{said}"


@pytest.mark.long
@pytest.mark.slow
def test_training(stand, capsys, monkeypatch):
    own_imagery(stand, monkeypatch).rename(stand / "my_training.toml")
    torch.save(released(small_weights(attention_strides=[])), stand / "last.ckpt")
    lines = commands("In short", "training/README.md")
    for module, name, least in ((cost, "SIDE_60M_PX", 16), (phases, "SIDE_60M_PX", 16), (real, "PATCHES", 1)):
        monkeypatch.setattr(module, name, least)  # ground that tables of whole systems are made of
    monkeypatch.setattr(spec, "MEMBERS", 1)  # draws of a system without regression, which this takes minutes for
    # with all that these bands depend on in one window of 1.2 km, whose 20 steps take longest here
    write_aoi(stand / "region.geojson", box(LEFT + 450, TOP - 990, LEFT + 510, TOP - 930))
    assert {line.split()[2] for line in lines} == {
        "training.train", "training.evaluate", "training.convert", "pipeline.run"
    }  # fmt: skip
    for line in lines:
        code, said = execute(line, capsys)
        assert code == 0, f"{line}\n{said}"
    assert (stand / "runs" / "a" / f"{TINY_SR.name}.safetensors").exists()
