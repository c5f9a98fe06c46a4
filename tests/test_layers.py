"""Imports point down: no folder imports one above or beside it."""

import ast
import graphlib
import itertools
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from pipeline.superres.systems import PLAIN

ROOT = Path(__file__).resolve().parent.parent

# What each room may import of the project. Planning and running compose the others.
BOTTOM = {
    "pipeline.bands",
    "pipeline.decoding",
    "pipeline.discovery",
    "pipeline.errors",
    "pipeline.parsers",
    "pipeline.plain",
    "pipeline.redaction",
    "pipeline.start",
    "pipeline.temporary",
}
SCENES = {f"pipeline.archive.{name}" for name in ("scene", "radiometry", "passes")}  # records and rules of scenes
BELOW_PLANNING = {f"pipeline.{room}" for room in ("aoi", "archive", "grid", "superres", "conditions", "store")} | {
    "pipeline.config",
    "pipeline.process",
    "pipeline.version",
}
ABOVE_COMMANDS = {  # Python's doors to what the commands do
    "pipeline.api",
    "pipeline.running",
    "pipeline.planning",
    "pipeline.products",
    "pipeline.check",
    "pipeline.view",
    "pipeline.logs",
    "pipeline.report",
    "pipeline.run_file",
    "pipeline.terminal",
}
TRAINING_BOTTOM = {"training.presets", "training.schedule", "training.placement", "pipeline"}
TRAINING_DECLARATIONS = {"training.task_spec", "training.conversion", "training.checkpoint"}
ALLOWED = {
    "pipeline/grid": {"pipeline.grid", "pipeline.bands"},
    "pipeline/models": {"pipeline.models", "pipeline.errors"},
    "pipeline/aoi": {"pipeline.aoi", *BOTTOM},
    "pipeline/archive": {"pipeline.archive", "pipeline.aoi", "pipeline.grid", *BOTTOM},
    "pipeline/archive/read": {"pipeline.archive.read", *SCENES, "pipeline.grid", *BOTTOM},
    "pipeline/archive/stac": {
        "pipeline.archive.stac",
        "pipeline.archive.read",
        "pipeline.archive.catalog",
        *SCENES,
        "pipeline.aoi",
        "pipeline.grid",
        *BOTTOM,
    },
    "pipeline/archive/local": {
        "pipeline.archive.local",
        "pipeline.archive.read",
        "pipeline.archive.offset_audit",
        *SCENES,
        "pipeline.grid",
        *BOTTOM,
    },
    "pipeline/superres": {"pipeline.superres", "pipeline.models", "pipeline.grid", *BOTTOM},
    "pipeline/conditions": {"pipeline.conditions", "pipeline.superres", "pipeline.archive", "pipeline.grid", *BOTTOM},
    "pipeline/store": {"pipeline.store", "pipeline.grid", *BOTTOM},
    "pipeline/products": {"pipeline.products", "pipeline.store", "pipeline.grid", *BOTTOM},
    "pipeline/planning": {"pipeline.planning", *BELOW_PLANNING, *BOTTOM},
    "pipeline/running": {"pipeline.running", "pipeline.planning", "pipeline.products", *BELOW_PLANNING, *BOTTOM},
    "pipeline/jobs": {"pipeline.jobs", "pipeline.running", "pipeline.planning", "pipeline.store", *BOTTOM},
    "pipeline/api": {*ABOVE_COMMANDS, *BELOW_PLANNING, *BOTTOM},
    "pipeline/public": {"pipeline.api", "pipeline.planning", "pipeline.products", "pipeline.store", "pipeline.errors"},
    "training": {"training", "pipeline"},
    "training/data": {"training.data", *TRAINING_BOTTOM},
    "training/degradation": {"training.degradation", *TRAINING_BOTTOM},
    "training/loop": {"training.loop", "training.data", *TRAINING_BOTTOM},
    "training/quality": {"training.quality", "training.data", "training.degradation", *TRAINING_BOTTOM},
    "training/tasks": {f"training.{room}" for room in ("tasks", "quality", "loop", "degradation", "data")}
    | TRAINING_BOTTOM
    | TRAINING_DECLARATIONS,
}
COMMANDS = {"run", "check", "index", "view", "submit", "export"}


@dataclass(frozen=True)
class Module:
    """What the tests ask of a module's code."""

    imports: frozenset[str]  # of the project
    texts: frozenset[str]  # constants
    started: tuple[str | None, ...]  # modules that it starts as processes; None if the name is no constant


@cache
def module(path: Path) -> Module:
    """Read a module once for all tests."""
    imports, texts, started = set(), set(), []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imports |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.add(node.value)
        elif isinstance(node, ast.Call) and node.args and ast.unparse(node.func) in ("command", "start.command"):
            started.append(constant(node.args[0]))
        elif isinstance(node, ast.List | ast.Tuple):
            words = [constant(item) for item in node.elts]
            started += [name for flag, name in itertools.pairwise(words) if flag == "-m"]
    ours = {name for name in imports if name.split(".")[0] in ("pipeline", "training")}
    return Module(frozenset(ours), frozenset(texts), tuple(started))


def constant(node):
    return node.value if isinstance(node, ast.Constant) else None


def imported(path: Path) -> frozenset[str]:
    return module(path).imports


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_only_what_lies_below(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            fits = any(name == allowed or name.startswith(allowed + ".") for allowed in ALLOWED[room])
            assert fits or name in ("pipeline", "training"), f"{path.relative_to(ROOT)} imports {name}"


def test_pipeline_never_imports_training_nor_its_own_commands():
    for path in (ROOT / "pipeline").rglob("*.py"):
        for name in imported(path):
            assert not name.startswith("training"), f"{path} imports {name}"
            if ROOT / "pipeline" / "api" not in path.parents:
                assert name.split(".")[1:2] not in [[c] for c in COMMANDS], f"{path} imports the command {name}"


def test_nothing_but_the_package_of_users_imports_the_api():
    doors = {ROOT / "pipeline" / "api", ROOT / "pipeline" / "public"}
    for path in (file for folder in ("pipeline", "training") for file in (ROOT / folder).rglob("*.py")):
        if not doors & {*path.parents}:
            assert not any(name.startswith("pipeline.api") for name in imported(path)), path
            assert "import sen2fine" not in [line.strip() for line in path.read_text().splitlines()], path


def test_no_command_starts_another_as_a_process():
    """An arrow that imports do not show. Text for users, such as "python -m pipeline.run", is one string."""
    started = {}
    for path in (ROOT / "pipeline").rglob("*.py"):
        started |= dict.fromkeys(module(path).started, path.relative_to(ROOT).as_posix())
    assert "pipeline.archive.read.gateway_server" in started
    assert not {f"pipeline.{command}" for command in COMMANDS} & started.keys(), started


def test_models_import_nothing_of_the_pipeline_but_its_errors():
    for path in (ROOT / "pipeline" / "models").rglob("*.py"):
        assert all(name.startswith(("pipeline.models", "pipeline.errors")) for name in imported(path)), path


def test_no_two_modules_need_each_other():
    """Not even for their types, nor inside functions: what two share has a home below both."""
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for folder in ("pipeline", "training")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py"
    }
    needs = {module: (imported(path) & files.keys()) - {module} for module, path in files.items()}
    assert sum(map(len, needs.values())) > len(files)
    try:
        graphlib.TopologicalSorter(needs).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"circle: {' <- '.join(error.args[1])}")


def test_one_module_knows_where_a_store_keeps_its_plan():
    """All others ask it, also those that only quote the plan."""
    spelled = set()
    for path in (ROOT / "pipeline").rglob("*.py"):
        if any(text.endswith("/plan.json") for text in module(path).texts):
            spelled.add(path.relative_to(ROOT).as_posix())
    assert spelled == {"pipeline/store/keys.py"}


def test_importing_pipeline_loads_nothing_heavy():
    code = "import sys, pipeline; print(sorted({'torch','dask','xarray','rasterio','zarr','numpy'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"


def test_modules_are_one_thing_each():
    for folder in ("pipeline", "training"):
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 380, f"{path.relative_to(ROOT)} is too long"
            assert path.name != "utils.py"


def test_only_systems_and_their_networks_know_systems_by_name():
    """Not the interpolation's, which is also the name of a method."""
    from pipeline.superres.registry import known

    kinds = {kind for spec in known().values() for weights in spec.weights for kind in weights.kinds}
    names = {name for name in (*known(), *kinds) if name != PLAIN}
    assert {"lite", "lite-sr"} <= names
    own = {ROOT / "pipeline" / "models", ROOT / "pipeline" / "superres" / "systems"}
    for path in (ROOT / "pipeline").rglob("*.py"):
        if own & {*path.parents}:
            continue
        found = names & {word for text in module(path).texts for word in re.findall(r"[\w-]+", text)}
        assert not found, f"{path.relative_to(ROOT)} names {', '.join(found)}"


def test_only_tasks_know_systems_and_their_networks_in_training():
    """Neither in code nor in comments; of `pipeline.superres.systems` only which one interpolates is asked for."""
    from pipeline.superres.registry import known
    from training.registry import every

    kinds = {kind for spec in known().values() for weights in spec.weights for kind in weights.kinds}
    presets = {preset.name for task in every().values() for preset in task.presets}
    names = {name for name in (*known(), *kinds, *every(), *presets) if name != PLAIN}
    assert {"lite", "difffusr", "difffusr-sr-small"} <= names
    spelled = re.compile("|".join(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])" for name in sorted(names)))
    shared = {"pipeline.models.bundle", "pipeline.models.diffusion", "pipeline.models.layout"}
    for path in (ROOT / "training").rglob("*.py"):
        if ROOT / "training" / "tasks" in path.parents:
            continue
        found = spelled.findall(path.read_text())
        assert not found, f"{path.relative_to(ROOT)} names {', '.join(found)}"
        for name in imported(path):
            if name.startswith("pipeline.models."):
                assert any(name.startswith(module) for module in shared), f"{path.relative_to(ROOT)} imports {name}"
