"""Classes of maps in a TOML file: ours, and what is refused in a user's."""

import pytest

from pipeline.errors import UsageError
from pipeline.superres.declared import MapClass, MapRule
from pipeline.superres.map_classes import map_classes

SMALL = """
[[class]]
name = "pond"
rules = [
  { schema = "mine", tags = { kind = "pond", depth = true }, without = { state = ["dry", "gone"] } },
  { tags = { kind = ["ditch"] }, width_m = 2 },
]
[[class]]
name = "hut"
rules = [{ fields = ["roof"] }]
"""


def test_ours_are_in_the_order_of_priority():
    found = map_classes()
    assert [one.name for one in found] == ["building", "road-major", "road-minor", "rail", "water", "wood", "farmland"]
    widths = {one.name: one.widest_m for one in found}
    assert widths["building"] == widths["farmland"] == 0
    assert widths["road-major"] > widths["road-minor"] > widths["rail"] > 0
    assert all("class" in one.attributes for one in found), "a plain attribute of our own names"
    assert hash(found) == hash(map_classes())


def test_a_users_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(SMALL)
    dry = (("state", ("dry", "gone")),)
    assert map_classes(path) == (
        MapClass(
            "pond",
            rules=(
                MapRule((("kind", ("pond",)), ("depth", ())), dry),
                MapRule((("kind", ("ditch",)),), width_m=2.0),
            ),
        ),
        MapClass("hut", rules=(MapRule(fields=("roof",)),)),
    )
    assert map_classes(str(path))[0].attributes == ("kind", "depth")


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ('name = "hut"', 'name = "pond"', "pond, pond"),
        ('name = "hut"', 'title = "hut"', "unknown: title"),
        ("width_m = 2", "width_m = -2", "class 'pond' has width_m = -2"),
        ("width_m = 2", 'width_m = "2 m"', "expected float, found '2 m'"),
        ("width_m = 2", "color = 2", "unknown: color"),
        ("depth = true", "depth = false", "class 'pond', depth = False"),
        ("depth = true", "depth = []", "class 'pond', depth = []"),
        ("depth = true", "depth = [1, 2]", "depth = [1, 2]"),
        ('rules = [{ fields = ["roof"] }]', "rules = []", "class 'hut' has no rules"),
        ('rules = [{ fields = ["roof"] }]', "rules = [{ width_m = 1 }]", "class 'hut' has a rule without tags"),
        ("[[class]]", "[[class]", "is not TOML"),
        (SMALL, "", "missing @"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, old, new, found):
    path = tmp_path / "mine.toml"
    path.write_text(SMALL.replace(old, new))
    with pytest.raises(UsageError) as caught:
        map_classes(path)
    assert found in caught.value.found
    assert str(path) in caught.value.found
    assert caught.value.expected


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match="cannot read"):
        map_classes(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'[[class]]\nname = "\xfc"')
    with pytest.raises(UsageError, match="is not TOML"):
        map_classes(tmp_path / "latin.toml")
