"""The command that fits a harmoniser on pairs, and training with the coarse images that it makes."""

import json

import pytest

from pipeline.models.bundle import load_bundle
from tests.training.imagery import corner_in
from tests.training.latent_for_tests import AUTOENCODER, PAIRS, RGBN, write_images
from tests.training.pairs_for_tests import GAINS, OFFSETS, write_pair
from tests.training.tasks_for_tests import add_preset
from training import harmonise, train
from training.degradation.harmonise import Harmoniser


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Exit code, and the file of a harmoniser fitted on two pairs to train on, beside one held out."""
    folder = tmp_path_factory.mktemp("fit")
    for number, split in enumerate(("train", "train", "held-out")):
        left, top = corner_in(split, number)
        write_pair(folder / "pairs", f"p{number}", left + 1000, top - 1000, (0.4, -0.3), seed=number, bands=4, side=384)
    (folder / "pairs.toml").write_text(PAIRS)
    out = folder / "harmoniser.json"
    return harmonise.main([str(folder / "pairs.toml"), "--out", str(out)]), out


def test_blur_radiometry_and_noise_of_pairs_are_fitted(fitted, capsys):
    code, path = fitted
    assert code == 0, capsys.readouterr().err
    found = Harmoniser.read(path)
    assert found.bands == RGBN
    assert found.fitted_on["pairs"] == 2  # the one that is held out is left out
    for one, gain, offset in zip(found.fitted, GAINS, OFFSETS, strict=True):
        for x in (0.15, 0.2, 0.3):  # where the ground is, the power law is near the true line
            assert one.gain * x**one.exponent == pytest.approx(gain * x + offset, rel=0.05)
        assert one.eta_px == pytest.approx(2.2, abs=0.2)
        assert one.epsilon == pytest.approx(1e-3, rel=0.4)


def test_training_takes_it(fitted, tmp_path, monkeypatch, capsys):
    _, path = fitted
    file = write_images(tmp_path, "naip")
    add_preset(monkeypatch, AUTOENCODER)
    command = ["--preset", "ldsr-autoencoder", "--data", str(file), "--images", "4", "--every", "1e9"]
    words = [*command, "--recipe", "other_bands=0", "--recipe", f"harmoniser={path}"]
    assert train.main([*words, "--out", str(tmp_path / "run")]) == 0
    bundle = load_bundle(tmp_path / "run" / "ldsr-autoencoder.safetensors")
    assert Harmoniser.stored(bundle.provenance["degradation"]) == Harmoniser.read(path)
    assert train.main([*words, "--bands", "6", "--out", str(tmp_path / "six")]) == 2
    assert "a harmoniser of B04, B03, B02, B08; expected one that has B05" in capsys.readouterr().err


def test_mistakes_are_said(tmp_path, capsys):
    file, out = write_images(tmp_path, "rgbn"), tmp_path / "out.json"
    assert harmonise.main([str(file), "--out", str(out)]) == 2
    assert capsys.readouterr().err == (
        f'{file} has no pair of B04, B03, B02, B08 to train on; expected a source of role "pair"\n'
    )
    assert harmonise.main([str(file), "--out", str(out), "--bands", "B04,B99"]) == 2
    assert capsys.readouterr().err.startswith("--bands B04,B99: B99; expected names of B01")
    assert not out.exists()


def test_the_file_is_plain_json(fitted):
    content = json.loads(fitted[1].read_text())
    assert content["kind"] == "power"
    assert [one["band"] for one in content["fitted"]] == list(RGBN)
