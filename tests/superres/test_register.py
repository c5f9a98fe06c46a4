"""Systems of one's own: registered by hand or found by an entry point, loaded from their bundle."""

import textwrap

import pytest
import torch

from pipeline.errors import UsageError
from pipeline.models.bundle import Bundle, LatticeSpec, load_tensors, save_bundle
from pipeline.superres import systems
from pipeline.superres.systems import Spec, choose, load, register

RGB = ("B04", "B03", "B02")
SPEC = Spec("mine", "for a test", "mine-sr", ("lite-fusion",), None, "lite-fusion.safetensors")


class Mine:
    """Nearest neighbour times a weight."""

    in_bands = out_bands = RGB
    scale, stochastic, needs_state = 4, False, False

    def __init__(self, bundle):
        self.bundle, self.weight = bundle, load_tensors(bundle)["weight"]

    def to(self, device):
        self.weight = self.weight.to(device)
        return self

    def scene_state(self, windows):
        return {}

    def predict(self, lr, conditions, valid, noise, state):
        return self.weight * lr.repeat_interleave(4, -1).repeat_interleave(4, -2)


@pytest.fixture
def clean(monkeypatch):
    monkeypatch.setattr(systems, "SYSTEMS", dict(systems.SYSTEMS))
    monkeypatch.setattr(systems, "_BUILDERS", {})
    systems._installed.cache_clear()
    yield
    systems._installed.cache_clear()


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "mine.safetensors"
    bundle = Bundle("mine-sr", {}, RGB, RGB, 4, LatticeSpec(480, 336, 48, 48), licence="CC0-1.0")
    save_bundle(path, bundle, {"weight": torch.tensor(0.5)})
    return path


@pytest.mark.usefixtures("clean")
def test_registered_system_is_chosen_and_loaded(weights):
    with pytest.raises(UsageError, match="--sr mine is not known"):
        choose("mine", str(weights))
    register(SPEC, Mine)
    register(SPEC, Mine)  # a notebook cell may run twice
    choice = choose("mine", str(weights))
    assert "CC0-1.0" in choice.licence
    system = load(choice, "cpu")
    assert isinstance(system.resolver, Mine)
    assert system.lattice.stride_px == 336
    assert system.fuser is not None
    out = system.resolver.predict(torch.full((1, 3, 2, 2), 0.4), {}, None, None, None)
    assert out.shape == (1, 3, 8, 8)
    assert out.unique().tolist() == pytest.approx([0.2])


@pytest.mark.usefixtures("clean")
def test_taken_names_and_systems_without_bundle_are_refused():
    for spec in (Spec("lite", "", "mine-sr", (), None, None), Spec("mine", "", "lite-sr", (), None, None)):
        with pytest.raises(UsageError, match="is there already"):
            register(spec, Mine)
    with pytest.raises(UsageError, match="names no kind of bundle"):
        register(Spec("mine", "", None, (), None, None), Mine)
    assert "mine" not in systems.SYSTEMS


@pytest.mark.usefixtures("clean")
def test_an_installed_package_is_found_by_its_entry_point(tmp_path, weights, monkeypatch):
    """As in a command or a worker, which nobody told about the system."""
    site = tmp_path / "site"
    (site / "mine-1.0.dist-info").mkdir(parents=True)
    (site / "mine-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (site / "mine-1.0.dist-info" / "entry_points.txt").write_text(f"[{systems.PLUGINS}]\nmine = mine_sr\n")
    (site / "mine_sr.py").write_text(
        textwrap.dedent("""
        from tests.superres.test_register import SPEC, Mine
        from pipeline.superres.systems import register
        register(SPEC, Mine)
        """)
    )
    monkeypatch.syspath_prepend(str(site))
    assert isinstance(load(choose("mine", str(weights)), "cpu").resolver, Mine)
