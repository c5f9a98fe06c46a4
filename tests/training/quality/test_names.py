"""Short names of weights: as short as they can be while distinct, and listed once with their files."""

from pathlib import Path

import pytest

from pipeline.models.bundle import Bundle
from pipeline.models.lite import LATTICE, RGB_BANDS, SYSTEM
from pipeline.superres.weights import SHIPPED, Choice, File
from training.quality.names import listing, names_of, names_of_whole


def bundle(path, digest="0" * 64):
    return Bundle(SYSTEM, {}, RGB_BANDS, RGB_BANDS, 4, LATTICE, path=str(path), digest=digest)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["tmp/c8/sr8", "tmp/c22/sr22"], ["sr8", "sr22"]),
        (["runs/a/lite-sr", "runs/b/lite-sr"], ["a", "b"]),
        (["runs/a/2/lite-sr", "runs/b/2/lite-sr"], ["a", "b"]),
        (["runs/a/first", "runs/a/second"], ["first", "second"]),
        (["runs/a/x", "runs/b/x", "runs/b/y"], ["a/x", "b/x", "y"]),
        (["runs/x", "runs/b/x"], ["runs", "b"]),
        (["runs/x", "runs/x/y"], ["x", "y"]),
        (["runs/bicubic", "runs/y"], ["runs/bicubic", "y"]),
        (["runs/a/x"], ["lite"]),
    ],
)
def test_names_say_what_differs(paths, names, tmp_path):
    bundles = [bundle(tmp_path / f"{path}.safetensors") for path in paths]
    found = names_of(bundles, ["lite"] * len(bundles))
    assert [name.replace(f"{tmp_path.name}/", "") for name in found] == names
    assert names_of([*bundles, bundle("f")], [*["lite"] * len(bundles), "lite-fusion"])[-1] == "lite-fusion"


def test_the_shipped_weights_have_a_name_of_their_own(tmp_path):
    shipped = bundle(SHIPPED / "lite-sr.safetensors")
    assert names_of([bundle(tmp_path / "tmp" / "sr8.safetensors"), shipped], ["lite"] * 2) == ["sr8", "shipped"]
    assert names_of([bundle(tmp_path / "a" / "lite-sr.safetensors"), shipped], ["lite"] * 2) == ["a", "shipped"]
    taken = bundle(tmp_path / "a" / "shipped.safetensors")
    assert names_of([taken, shipped], ["lite"] * 2) == ["a/shipped", "shipped"]


def test_weights_of_different_systems_do_not_share_a_name(tmp_path):
    paths = [f"{run}/{kind}" for kind in ("lite-sr", "lite-fusion") for run in "ab"]
    bundles = [bundle(tmp_path / f"{path}.safetensors") for path in paths]
    names = names_of(bundles, ["lite", "lite", "lite-fusion", "lite-fusion"])
    assert names == ["a (lite)", "b (lite)", "a (lite-fusion)", "b (lite-fusion)"]


def test_whole_systems_are_named_by_what_was_given(tmp_path):
    first, second, fusion, other = (bundle(tmp_path / f"{name}.safetensors") for name in ("one", "two", "f", "g"))

    def choice(*bundles):
        return Choice("lite", tuple(File("", of if isinstance(of, str) else of.path, "") for of in bundles))

    filled_in = "shipped:lite-fusion.safetensors"
    names, bundles = ["one", "two", "f", "g"], [first, second, fusion, other]
    assert names_of_whole([choice(first, filled_in), choice(second, filled_in)], names, bundles) == ["one", "two"]
    assert names_of_whole([choice(first, fusion), choice(second, fusion)], names, bundles) == ["one", "two"]
    mixed = [choice(first, fusion), choice(second, other)]
    assert names_of_whole(mixed, names, bundles) == ["one with f", "two with g"]
    assert names_of_whole([], names, bundles) == []
    assert names_of_whole([choice(first, filled_in)], names, bundles) == ["lite"]


def test_the_list_gives_file_and_digest_in_full():
    path = Path("tmp") / "sr8.safetensors"
    text = listing(["sr8"], ["lite"], [bundle(path, "f" * 64)]).text
    assert text.splitlines()[-1] == f"| sr8 | lite | {path} | {'f' * 64} |"
