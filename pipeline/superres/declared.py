"""What users can set and supply for a system: options, and conditions such as maps."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

Value = bool | int | float | str
Settings = Mapping[str, Value]  # options by name
CONDITION = "condition:"  # before the name of a condition, as the source of an input
MOST = 100  # of what a word counts
_WORDS = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}


@dataclass(frozen=True)
class Option:
    """A setting of a system, `--option NAME=VALUE`; values have the type of `default`.

    Numbers must lie from `low` to `high` inclusive, where given; words must be one of `choices`, if there are any. With
    `of_draws` it shapes draws alone: the conditional mean of stages that regress does not depend on it.
    Words that are `counted` may be followed by a number, as in "sample:4" (`word_and_count`).
    """

    name: str
    default: Value
    about: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    of_draws: bool = False
    counted: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        """Allowed values, for messages."""
        if self.choices:
            return f"one of {', '.join((*self.choices, *(f'{word}:N, N up to {MOST}' for word in self.counted)))}"
        if isinstance(self.default, bool):
            return "true or false"
        kind = {int: "a whole number", float: "a number"}.get(type(self.default), "a word")
        ends = [
            f"from {self.low:g}" if self.low is not None else "",
            f"to {self.high:g}" if self.high is not None else "",
        ]
        return " ".join([kind, *filter(None, ends)])

    def value(self, given: Value) -> Value:
        """Return `given`, which may be text, as a value of this option. Raises UsageError if it is invalid."""
        try:
            found = self._converted(given)
        except (ValueError, KeyError):
            raise self._refused(given) from None
        if self.choices and found not in self.choices and not self._is_counted(str(found)):
            raise self._refused(given)
        if isinstance(found, int | float) and not self._in_range(found):
            raise self._refused(given)
        return found

    def _is_counted(self, text: str) -> bool:
        word, _, count = text.partition(":")
        return word in self.counted and count.isdecimal() and 1 <= int(count) <= MOST

    def _in_range(self, number: float) -> bool:
        return (self.low is None or number >= self.low) and (self.high is None or number <= self.high)

    def _converted(self, given: Value) -> Value:
        if isinstance(self.default, bool):
            return given if isinstance(given, bool) else _WORDS[str(given).lower()]
        if isinstance(given, bool) and not isinstance(self.default, str):
            raise ValueError(given)
        if isinstance(self.default, int):
            number = float(given)
            if number != int(number):
                raise ValueError(given)
            return int(number)
        return type(self.default)(given)

    def _refused(self, given: Value) -> UsageError:
        return UsageError(f"--option {self.name}={given}", self.expected, f"it is: {self.about}")


def word_and_count(value: Value) -> tuple[str, int]:
    """Return the word of an option, and the number behind it, 0 without one.

    >>> word_and_count("sample:4"), word_and_count("sample")
    (('sample', 4), ('sample', 0))
    """
    word, _, count = str(value).partition(":")
    return word, int(count) if count.isdecimal() else 0


@dataclass(frozen=True)
class Variants:
    """Several images of every time step, stored along the dimension `name`, whose coordinate is `numbers`."""

    name: str = ""
    numbers: tuple[int, ...] = ()


def settled(options: Sequence[Option], given: Mapping[str, Value], system: str) -> dict[str, Value]:
    """Return every option's value, in the order of names. Raises UsageError for unknown names or invalid values."""
    known = {option.name: option for option in options}
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise UsageError(
                f"--option {name}: --sr {system} has no such option",
                f"one of {', '.join(known)}" if known else f"no --option with --sr {system}",
                f"did you mean {near[0]}?" if near else "",
            )
    values = {name: option.value(given.get(name, option.default)) for name, option in known.items()}
    return dict(sorted(values.items()))


@dataclass(frozen=True)
class MapRule:
    """Features of a vector map by their attributes, in the words of one schema such as OpenStreetMap's.

    A feature fits if each attribute in `tags` has one of the values, or any value but "no" if there are none, and no
    attribute in `without` has one of its values. The rule applies to layers that have the attributes of `tags` and
    `fields`. Lines and points are drawn `width_m` wide, and left out if it is 0.
    """

    tags: tuple[tuple[str, tuple[str, ...]], ...] = ()
    without: tuple[tuple[str, tuple[str, ...]], ...] = ()
    fields: tuple[str, ...] = ()
    width_m: float = 0.0


@dataclass(frozen=True)
class MapClass:
    """Features of a vector map that make one channel: 1 within them, 0 elsewhere.

    Features are those that fit any of `rules`; the first that fits says the width of lines. Without rules, they are
    selected by `where`, an OGR SQL expression on attributes, empty for all features, and lines and points get a width
    of `width_m` on the ground, and are left out if it is 0.
    """

    name: str
    where: str = ""
    width_m: float = 0.0
    rules: tuple[MapRule, ...] = ()

    @property
    def widest_m(self) -> float:
        """Largest width of lines."""
        return max([rule.width_m for rule in self.rules], default=self.width_m)

    @property
    def attributes(self) -> tuple[str, ...]:
        """Attributes that features are selected by, but those of `where`."""
        used = (name for rule in self.rules for name in (*(tag for tag, _ in rule.tags), *rule.fields))
        return tuple(dict.fromkeys(used))


@dataclass(frozen=True)
class Condition:
    """A map that a system takes beside the scenes, `--condition NAME=FILE`.

    A "vector" map is rasterised, one channel for each of `classes`. If these are `exclusive`, a pixel within features
    of several classes belongs to the first of them alone.

    A "raster" has one channel per band of the file, in their order, named `bands`, and is resampled onto the stage's
    grid by `resampling`: "area" averages where the file's pixels are smaller than the stage's and interpolates by cubic
    convolution where they are larger. Ground without data has the value `nodata`. Where a pixel of a raster is as large
    as `coarsest_px` pixels of an input that reads it or larger, the map counts as not given there. A raster that is
    taken `whole` may show any ground: no stage reads it window by window, and those that name it in `Stage.whole` get
    what `Predictor.image_state` returns for it.
    """

    name: str
    about: str
    kind: Literal["vector", "raster"] = "vector"
    classes: tuple[MapClass, ...] = ()
    bands: tuple[str, ...] = ()
    resampling: Literal["nearest", "bilinear", "average", "area"] = "bilinear"
    required: bool = True
    nodata: float = 0.0
    coarsest_px: float = math.inf
    exclusive: bool = False
    whole: bool = False

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of its channels."""
        return tuple(one.name for one in self.classes) if self.kind == "vector" else self.bands

    @property
    def source(self) -> str:
        """Name of this condition as the source of an input."""
        return f"{CONDITION}{self.name}"


def require_known(conditions: Sequence[Condition], given: Sequence[str], system: str) -> None:
    """Raise UsageError for conditions that the system does not take, or that it requires and that are missing."""
    known = [one.name for one in conditions]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise UsageError(
                f"--condition {name}: --sr {system} takes no such map",
                f"one of {', '.join(known)}" if known else f"no --condition with --sr {system}",
                f"did you mean {near[0]}?" if near else "",
            )
    for one in conditions:
        if one.required and one.name not in given:
            raise UsageError(
                f"--sr {system} needs {one.about}", f"--condition {one.name}=FILE", "give one, or choose another --sr"
            )
