"""Short names for the weights of an evaluation, and the list that says which files they are."""

from __future__ import annotations

from collections import Counter
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.superres.systems import PLAIN
from pipeline.superres.weights import SHIPPED, locate
from training.quality.tables import Section, markdown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.models.bundle import Bundle
    from pipeline.superres.weights import Choice

    Parts = tuple[str, ...]

OF_PROJECT = "shipped"  # name of the weights that come with the project
TAKEN = (OF_PROJECT, PLAIN)  # not for the user's own weights


def names_of(bundles: Sequence[Bundle], systems: Sequence[str]) -> list[str]:
    """Return one distinct name per bundle: its system or, if several share a system, what tells their paths apart.

    The shipped weights are then named `OF_PROJECT`. Names that weights of different systems would share are followed
    by the system.
    """
    paths = [Path(bundle.path).resolve() for bundle in bundles]
    counts, names = Counter(systems), list(systems)
    for system in (system for system, count in counts.items() if count > 1):
        places = [place for place, of in enumerate(systems) if of == system]
        own = [place for place in places if not paths[place].is_relative_to(SHIPPED)]
        compared = own if len(own) > 1 else places
        short = _short([paths[place].with_suffix("").parts for place in compared])
        for place in places:
            names[place] = short[compared.index(place)] if place in own else OF_PROJECT
    return _with_system(names, systems)


def names_of_whole(choices: Sequence[Choice], names: Sequence[str], bundles: Sequence[Bundle]) -> list[str]:
    """Return the names of systems composed of `bundles`: the system or, if there are several, those of the weights.

    Weights that all share, and shipped ones that fill in what was not given, are not named.
    """
    if len(choices) == 1:
        return [choices[0].name]
    known = {Path(bundle.path).resolve(): name for bundle, name in zip(bundles, names, strict=True)}
    found = []
    for choice in choices:
        paths = [locate(file.where).resolve() for file in choice.weights]
        found.append([known[path] for path in paths if path in known])
    shared = set.intersection(*map(set, found)) if found else set()
    named = [" with ".join([name for name in of if name not in shared] or of) for of in found]
    return _with_system(named, [choice.name for choice in choices])


def _with_system(names: Sequence[str], systems: Sequence[str]) -> list[str]:
    """Return the names, followed by the system where several are the same."""
    counts = Counter(names)
    return [f"{name} ({of})" if counts[name] > 1 else name for name, of in zip(names, systems, strict=True)]


def _short(paths: Sequence[Parts]) -> list[str]:
    """Return for each absolute path its fewest last parts that no other ends with, after the end that all share."""
    last = _agreeing([path[::-1] for path in paths])
    rests = [path[: len(path) - last] for path in paths]
    return [_distinct_end(place, rests) for place in range(len(rests))]


def _distinct_end(place: int, rests: Sequence[Parts]) -> str:
    mine, others = rests[place], [*rests[:place], *rests[place + 1 :]]
    for count in range(1, len(mine) + 1):
        end = mine[-count:]
        if end not in {(taken,) for taken in TAKEN} and all(other[-count:] != end for other in others):
            break
    return "/".join(end)


def _agreeing(paths: Sequence[Parts]) -> int:
    """Return the number of leading parts that all paths share."""
    return sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False)))


def listing(names: Sequence[str], systems: Sequence[str], bundles: Sequence[Bundle]) -> Section:
    """Return the section that gives system, file and digest of every name."""
    rows = [[n, s, str(b.path), b.digest] for n, s, b in zip(names, systems, bundles, strict=True)]
    return Section("weights", markdown(["name", "system", "file", "SHA-256"], rows))
