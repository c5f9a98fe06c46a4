"""Systems by name: shipped, registered by hand or found by an entry point; their weights; what they may declare."""

import dataclasses
import math
import textwrap
from dataclasses import replace

import pytest
import torch

from pipeline.bands import RGB
from pipeline.errors import UsageError
from pipeline.grid.lattice import Lattice
from pipeline.models.bundle import Bundle, LatticeSpec, load_tensors, save_bundle
from pipeline.superres import registry
from pipeline.superres.declared import Condition
from pipeline.superres.map_classes import map_classes
from pipeline.superres.passes import check_chain
from pipeline.superres.registry import known, register
from pipeline.superres.spec import (
    Input,
    Predictor,
    Stage,
    SystemSpec,
    Weights,
    draws,
    lattice_of,
    mean_draws,
    stochastic,
)
from pipeline.superres.system import load
from pipeline.superres.systems import DEFAULT, PLAIN
from pipeline.superres.weights import choose, from_older, stages_of, to_older

LATTICE = Lattice(480, 336, 48, 48)


class Mine(Predictor):
    """Nearest neighbour times a weight."""

    def __init__(self, bundles, options):
        self.weight = load_tensors(bundles["net"])["weight"]

    def to(self, device):
        self.weight = self.weight.to(device)
        return self

    def predict(self, stage, given):
        return self.weight * given.images["rgb"].repeat_interleave(4, -1).repeat_interleave(4, -2)


def stages(bundles, options):
    return (Stage("sr", (Input("rgb", RGB, 10),), RGB, 2.5, lattice_of(bundles["net"])),)


SPEC = SystemSpec("mine", "for a test", stages, Mine, (Weights("net", ("mine-net",)),))


@pytest.fixture
def clean(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {})
    registry._installed.cache_clear()
    yield
    registry._installed.cache_clear()


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "mine.safetensors"
    bundle = Bundle("mine-net", {}, RGB, RGB, 4, LatticeSpec(480, 336, 48, 48), licence="CC0-1.0")
    save_bundle(path, bundle, {"weight": torch.tensor(0.5)})
    return str(path)


@pytest.mark.usefixtures("clean")
def test_a_registered_system_is_chosen_and_loaded(weights):
    with pytest.raises(UsageError, match="--sr mine is not known"):
        choose("mine", (weights,))
    register(SPEC)
    register(SPEC)  # a notebook cell may run twice
    choice = choose("mine", (weights,))
    assert choice.licence == "CC0-1.0"
    assert choice.generated_bands == RGB
    assert (choice.stochastic, choice.mean_draws) == (False, 0)
    assert choose("mine", (f"net={weights}",)) == choice
    system = load(choice, "cpu")
    assert isinstance(system.predictor, Mine)
    assert [stage.lattice for stage in system.stages] == [LATTICE]


@pytest.mark.usefixtures("clean")
def test_taken_names_are_refused():
    with pytest.raises(UsageError, match="there is a system lite already"):
        register(dataclasses.replace(SPEC, name="lite"))
    register(SPEC)
    with pytest.raises(UsageError, match="there is a system mine already"):
        register(dataclasses.replace(SPEC, summary="another"))


@pytest.mark.usefixtures("clean")
def test_an_installed_package_is_found_by_its_entry_point(tmp_path, weights, monkeypatch):
    """As in a command or a worker, which nobody told about the system."""
    site = tmp_path / "site"
    (site / "mine-1.0.dist-info").mkdir(parents=True)
    (site / "mine-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (site / "mine-1.0.dist-info" / "entry_points.txt").write_text(f"[{registry.PLUGINS}]\nmine = mine_sr\n")
    (site / "mine_sr.py").write_text(
        textwrap.dedent("""
        from tests.superres.test_register import SPEC
        from pipeline.superres.registry import register
        register(SPEC)
        """)
    )
    monkeypatch.syspath_prepend(str(site))
    assert isinstance(load(choose("mine", (weights,)), "cpu").predictor, Mine)


def test_every_shipped_system_keeps_what_it_says(tmp_path):
    assert {DEFAULT, PLAIN} <= set(known())
    for name, spec in known().items():
        assert spec.name == name
        if all(one.shipped for one in spec.weights):
            choice = choose(name)
            assert stages_of(choice) == load(choice, "cpu").stages


@pytest.mark.usefixtures("clean")
def test_weights_that_a_system_does_not_take_are_refused(weights):
    register(SPEC)
    with pytest.raises(UsageError, match=r"mine\.safetensors and .*mine\.safetensors for net"):
        choose("mine", (weights, weights))
    with pytest.raises(UsageError, match="plain|takes no weights"):
        choose(PLAIN, (weights,))
    with pytest.raises(UsageError, match="'mine-net'; expected lite-sr"):
        choose("lite", (weights,))
    with pytest.raises(UsageError, match="give another with --weights fusion="):
        choose("lite", (f"fusion={weights}",))


@pytest.mark.parametrize(("mapped", "said"), [(True, ["road", "rail"]), (False, [])])
@pytest.mark.usefixtures("clean")
def test_classes_of_a_map_that_weights_never_saw_are_said(tmp_path, mapped, said):
    """They change nothing, which the picture alone does not tell. Without a map there is nothing to say."""
    path = tmp_path / "taught.safetensors"
    architecture, provenance = {"classes": ["water", "road", "rail"]}, {"map_classes_shown": ["water"]}
    lattice = LatticeSpec(480, 336, 48, 48)
    bundle = Bundle("mine-net", architecture, RGB, RGB, 4, lattice, licence="CC0-1.0", provenance=provenance)
    save_bundle(path, bundle, {"weight": torch.tensor(0.5)})
    some_map = Condition("map", "for a test", classes=map_classes())
    register(replace(SPEC, conditions=(some_map,), conditions_of=lambda _options: (some_map,) if mapped else ()))
    notes = choose("mine", (str(path),)).notes
    expected = f"the weights taught.safetensors were trained on maps without {', '.join(said)}: these change nothing"
    assert list(notes) == ([expected] if said else [])


@pytest.mark.parametrize("name", ["lite", PLAIN])
def test_choices_of_older_plans_are_understood(name):
    choice = choose(name)
    older = to_older(choice)
    assert set(older) == {
        "name", "sr_weights", "sr_digest", "fusion_weights", "fusion_digest", "licence", "generated_bands",
    }  # fmt: skip
    assert from_older(older) == replace(choice, credits=""), "older plans did not record credits"


@pytest.mark.parametrize(
    ("estimate", "members", "of_regression", "of_draws", "of_none"),
    [("mean", 0, 0, 4, 0), ("mean", 1, 1, 1, 0), ("mean", 8, 8, 8, 0), ("sample", 0, 1, 1, 0), ("sample", 1, 1, 1, 0)],
)
def test_draws_are_as_few_as_give_the_estimate(estimate, members, of_regression, of_draws, of_none):
    ways = ((stage(stochastic=True, regresses=True),), (stage(stochastic=True),), (stage(),))
    found = [draws(estimate, members, stochastic=stochastic(one), mean_draws=mean_draws(one)) for one in ways]
    assert found == [of_regression, of_draws, of_none]


def test_a_sample_of_several_members_is_refused():
    with pytest.raises(UsageError, match="estimate = sample with members = 2"):
        draws("sample", 2, stochastic=True, mean_draws=0)


def stage(**changes):
    given = {"name": "sr", "reads": (Input("rgb", RGB, 10),), "gives": RGB, "gsd_m": 2.5, "lattice": LATTICE}
    return Stage(**{**given, **changes})


def test_windows_nest_with_the_rasters_of_a_stage():
    assert stage().nest_px == 4
    assert stage(lattice=Lattice(512, 448, 32, 16)).nest_px == 4
    assert stage(gives=("B11",)).nest_px == 8
    assert stage(gives=("B01",)).nest_px == 24
    assert stage(gsd_m=1.25).nest_px == 8
    assert stage(gsd_m=10.0).nest_px == 1
    with pytest.raises(ValueError, match=r"multiples of 24 px, so that windows hold whole pixels of 60 m"):
        stage(gives=("B01",), lattice=Lattice(512, 448, 32, 16))
    with pytest.raises(ValueError, match="multiple of 32 px, which its network needs"):
        stage(lattice=Lattice(464, 400, 32, 16), multiple_px=32)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reads": (Input("rgb", RGB, 20),)}, "at 20 m, not their native GSD"),
        ({"reads": (Input("rgb", ("B04", "NDVI"), 10),)}, "NDVI"),
        ({"reads": (Input("a", RGB, 10), Input("a", ("B08",), 10))}, "share a name"),
        ({"gsd_m": 3.0}, "does not nest with 10 m"),
        ({"gives": ()}, "gives nothing"),
    ],
)
def test_stages_that_cannot_be_run_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        stage(**changes)


def test_chains_that_do_not_hold_together_are_refused():
    first = stage()
    after = stage(name="fusion", reads=(Input("guide", RGB, 2.5, source="sr"),), gives=("B08",))
    check_chain((first, after))
    with pytest.raises(ValueError, match="no stage before it"):
        check_chain((after, first))
    with pytest.raises(ValueError, match="two stages are called sr"):
        check_chain((first, first))
    wrong = dataclasses.replace(after, reads=(Input("guide", ("B08",), 2.5, source="sr"),))
    with pytest.raises(ValueError, match="reads B08 at 2.5 m from sr, which gives B04, B03, B02 at 2.5 m"):
        check_chain((first, wrong))
    with pytest.raises(ValueError, match=r"B04 comes last from stage sr, at 10 m; expected 2.5 m or less"):
        check_chain((stage(gsd_m=10.0),))


def test_what_is_required_is_what_is_not_optional():
    both = stage(reads=(Input("rgb", RGB, 10), Input("swir", ("B11",), 20, optional=True)))
    assert both.required == RGB
    assert both.measured == (*RGB, "B11")
    assert stage(bright_reflectance=math.inf).required == RGB
