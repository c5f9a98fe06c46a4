"""Options and conditions of a system: what their user may give, and what is refused with the reason."""

import pytest

from pipeline.errors import UsageError
from pipeline.superres.declared import Condition, MapClass, Option, require_known, settled, word_and_count

STEPS = Option("steps", 50, "steps of the sampler", 1, 1000)
ETA = Option("eta", 0.5, "share of new noise", 0.0, 1.0)
FAST = Option("fast", default=False, about="leave out the second pass")
SAMPLER = Option("sampler", "ddim", "how noise is taken away", choices=("ddim", "dpm++2m"))
DRAWS = Option("draws", "none", "what is drawn", choices=("none", "one"), counted=("one",))
ALL = (STEPS, ETA, FAST, SAMPLER)


def test_options_have_their_type_and_their_default():
    assert settled(ALL, {}, "toy") == {"eta": 0.5, "fast": False, "sampler": "ddim", "steps": 50}
    given = {"steps": "20", "eta": "1e-1", "fast": "yes", "sampler": "dpm++2m"}
    assert settled(ALL, given, "toy") == {"eta": 0.1, "fast": True, "sampler": "dpm++2m", "steps": 20}
    assert list(settled(ALL, {}, "toy")) == sorted(option.name for option in ALL)
    assert type(settled(ALL, {"steps": "20.0"}, "toy")["steps"]) is int


WRONG = {
    ("steps", "20.5"): "a whole number from 1 to 1000",
    ("steps", "0"): "a whole number from 1 to 1000",
    ("steps", "many"): "a whole number",
    ("eta", "1.1"): "a number from 0 to 1",
    ("eta", "nan"): "a number from 0 to 1",
    ("fast", "perhaps"): "true or false",
    ("sampler", "euler"): "one of ddim, dpm++2m",
}


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_values_that_do_not_fit_are_refused_with_those_that_do(name, value):
    with pytest.raises(UsageError, match=f"--option {name}={value}") as caught:
        settled(ALL, {name: value}, "toy")
    assert WRONG[name, value] in caught.value.expected


def test_words_may_be_counted():
    found = [settled((DRAWS,), {"draws": given}, "toy")["draws"] for given in ("none", "one", "one:3")]
    assert [word_and_count(value) for value in found] == [("none", 0), ("one", 0), ("one", 3)]
    for given in ("none:3", "one:0", "one:", "one:x", "one:101", "two:3"):
        with pytest.raises(UsageError, match=f"--option draws={given}") as caught:
            settled((DRAWS,), {"draws": given}, "toy")
        assert caught.value.expected == "one of none, one, one:N, N up to 100"


def test_options_that_there_are_not_are_refused_with_a_guess():
    with pytest.raises(UsageError, match="--sr toy has no such option") as caught:
        settled(ALL, {"step": "3"}, "toy")
    assert caught.value.cure == "did you mean steps?"
    with pytest.raises(UsageError, match="no such option") as caught:
        settled((), {"step": "3"}, "toy")
    assert caught.value.expected == "no --option with --sr toy"


def test_exactly_the_needed_maps_are_given():
    needed = Condition("map", "a map of roads", classes=(MapClass("road"),))
    spare = Condition("heights", "heights", kind="raster", bands=("height",), required=False)
    require_known((needed, spare), ("map",), "toy")
    with pytest.raises(UsageError, match="--sr toy needs a map of roads") as caught:
        require_known((needed, spare), ("heights",), "toy")
    assert caught.value.expected == "--condition map=FILE"
    with pytest.raises(UsageError, match="--condition maps: --sr toy takes no such map") as caught:
        require_known((needed, spare), ("maps", "map"), "toy")
    assert caught.value.cure == "did you mean map?"
