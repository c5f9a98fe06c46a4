"""Measures of what maps and styles do, on a system whose answers are known, and through the command."""

from dataclasses import dataclass, replace

import pytest
import torch

from pipeline.models.bundle import Bundle, LatticeSpec, load_bundle, load_tensors, save_bundle
from tests.models.sgdm_small import write_guidance, write_prior, write_style
from tests.training import sgdm_for_tests
from training import evaluate
from training.quality.map_guidance import (
    BICUBIC,
    COLOURS,
    ERRORS,
    OTHERS,
    OWN,
    SWAPS,
    WITHOUT,
    another,
    colours_text,
    gradients,
    guided_sections,
)
from training.quality.pairs import Pair

SIDE = 64


@dataclass
class Known:
    """Shifts reflectance by 0.05 in class 0 of the map, by 0.005 elsewhere with any map, and by 0.04 per style."""

    styled: bool = True
    scale: int = 4
    window_px: int = SIDE
    multiple_px: int = 16
    bundle = Bundle("known", {}, ("B04", "B03", "B02"), ("B04", "B03", "B02"), 4, LatticeSpec(64, 48, 8, 4))

    def map_of(self, pair):
        of_map = torch.zeros(1, 2, SIDE, SIDE)
        of_map[:, 0, :, : SIDE // 2] = 1.0 if pair.index % 2 else 0.0
        return of_map

    def draw(self, lr, of_map, style, seed):
        image = torch.nn.functional.interpolate(lr, scale_factor=self.scale, mode="nearest")
        if of_map is not None:
            image = image + 0.05 * of_map[:, :1] + 0.005 * of_map[:, :1].amax()
        return image + 0.04 * (style or 0) + 0.01 * (seed - 3)


def pair_of(index):
    generator = torch.Generator().manual_seed(index)
    lr = 0.2 + 0.1 * torch.rand(1, 3, SIDE // 4, SIDE // 4, generator=generator)
    hr = torch.nn.functional.interpolate(lr, scale_factor=4, mode="nearest")
    own = Known().map_of(Pair("", index, hr, lr))
    return Pair(f"set {index // 2}", index, hr + 0.05 * own[:, :1] + 0.005 * own[:, :1].amax(), lr)


def test_measures_of_known_answers():
    said = []
    sections = guided_sections("known", Known(), [pair_of(k) for k in range(4)], 3, said.append)
    by_table = {
        record.table: [r for s in sections for r in s.records if r.table == record.table]
        for section in sections
        for record in section.records
    }
    errors = by_table[ERRORS]
    assert {record.method for record in errors} == {OWN, OTHERS, WITHOUT, BICUBIC}
    own = [record.values["L1"] for record in errors if record.method == OWN]
    others = [record.values["L1"] for record in errors if record.method == OTHERS]
    assert own == pytest.approx([0, 0, 0, 0], abs=1e-6)
    # two of the four are exchanged with a map of the same class, depending on the half of the list
    assert sum(others) >= 0
    swaps = by_table.get(SWAPS, [])
    for record in swaps:
        assert record.values["inside"] == pytest.approx(0.055, abs=1e-6)
        assert record.values["outside"] == pytest.approx(0.005, abs=1e-6)
        assert record.values["share"] == pytest.approx(0.5)
    for record in by_table[COLOURS]:
        # styles 0.04 apart, the two seeds 0.01
        assert record.values["between"] == pytest.approx(0.04 * torch.arange(4.0).std().item(), rel=1e-4)
        assert record.values["within"] == pytest.approx(torch.tensor([0.0, 0.01]).std().item(), rel=1e-3)
        assert record.values["structure"] == pytest.approx(1.0, abs=1e-4)
    assert "7.30 times as much" in colours_text(by_table[COLOURS])


def test_swapped_maps_are_measured_inside_and_outside_of_what_changes():
    sections = guided_sections("known", Known(styled=False), [pair_of(0), pair_of(1)], 3, lambda _: None)
    assert len(sections) == 2
    assert "11.00 times as much" in sections[1].text
    assert "the own map is better on 2 of 2 images" in sections[0].text
    same = guided_sections("known", Known(styled=False), [pair_of(0), pair_of(2)], 3, lambda _: None)
    assert "No two maps differ" in same[1].text


def test_maps_are_exchanged_with_images_of_the_same_size():
    maps = [torch.full((1, 1, 4, 4), float(k)) for k in range(4)] + [torch.arange(16.0).reshape(1, 1, 4, 4)[..., :2]]
    exchanged = [another(maps, place) for place in range(4)]
    assert sorted(float(one.mean()) for one in exchanged) == [0, 1, 2, 3]
    assert all(not torch.equal(one, maps[place]) for place, one in enumerate(exchanged))
    assert torch.equal(another(maps, 4), torch.flip(maps[4], (-2, -1)))


def test_gradients_are_those_of_a_slope():
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(6.0), indexing="ij")
    assert torch.allclose(gradients(3 * x + 4 * y), torch.full((4, 5), 5.0))


@pytest.fixture
def weights(tmp_path):
    prior = write_prior(tmp_path)
    guidance = write_guidance(tmp_path, steps=2, prior=load_bundle(prior).digest)
    return guidance, prior, write_style(tmp_path)


def test_the_command_judges_guidance_with_its_prior_and_styles(weights, tmp_path, capsys):
    data = sgdm_for_tests.images(tmp_path)
    out = tmp_path / "table.md"
    command = [*map(str, weights), "--on", str(data), "--per-set", "1", "--out", str(out)]
    assert evaluate.main(command) == 0
    text = out.read_text()
    assert "draws with right and wrong maps" in text
    assert "sampled styles" in text
    assert "no map" in out.with_suffix(".csv").read_text()
    assert evaluate.main([*command[:2], *command[3:]]) == 0  # without styles
    assert "no table of styles" in capsys.readouterr().err


def test_guidance_is_not_judged_with_another_prior(weights, tmp_path, capsys):
    guidance, prior, _ = weights
    data = sgdm_for_tests.images(tmp_path)
    found = load_bundle(prior)
    other = tmp_path / "other.safetensors"
    save_bundle(other, replace(found, licence="another"), load_tensors(found))
    assert evaluate.main([str(guidance), str(other), "--on", str(data)]) != 0
    assert "give its file too" in capsys.readouterr().err
    assert evaluate.main([str(guidance), str(prior), "--on", str(data), "--steps", "2"]) != 0
    assert "together with --steps" in capsys.readouterr().err
