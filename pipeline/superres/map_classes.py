"""Classes of ground in vector maps, by attributes of common schemas, from `map_classes.toml` or a user's file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from pipeline.decoding import DecodingError, decode
from pipeline.errors import UsageError
from pipeline.superres.declared import MapClass, MapRule

_OURS = "map_classes.toml"
_MAX_BYTES = 1_000_000
_WIDEST_M = 200.0
_EXAMPLE = '[[class]] with name = "water" and rules = [{ tags = { natural = "water" } }]'

Tags = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class _Rule:
    schema: str = ""  # for readers of the file
    tags: dict[str, Any] | None = None
    without: dict[str, Any] | None = None
    fields: tuple[str, ...] = ()
    width_m: float = 0.0


@dataclass(frozen=True)
class _Class:
    name: str
    rules: tuple[_Rule, ...]


@dataclass(frozen=True)
class _File:
    classes: tuple[_Class, ...]


def map_classes(path: Path | str | None = None) -> tuple[MapClass, ...]:
    """Return the classes of a TOML file, most important first; without `path`, those that ship with the package.

    The layout of the file is described at the top of `map_classes.toml`. Raises UsageError if it is unsuitable.
    """
    return _ours() if path is None else _parsed(_text(Path(path)), str(path))


@lru_cache(maxsize=1)
def _ours() -> tuple[MapClass, ...]:
    return _parsed(files("pipeline.superres").joinpath(_OURS).read_text(encoding="utf-8"), _OURS)


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UsageError(f"{path} is larger than 1 MB", "a short TOML file of map classes")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", "a TOML file of map classes") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not TOML ({error})", _EXAMPLE) from error


def _parsed(text: str, source: str) -> tuple[MapClass, ...]:
    try:
        content = tomllib.loads(text)
        content = {("classes" if name == "class" else name): value for name, value in content.items()}
        found = decode(_File, content, source)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{source} is not TOML ({error})", _EXAMPLE) from error
    except DecodingError as error:
        raise UsageError(f"{source}: {error}", _EXAMPLE) from error
    classes = tuple(_class(one, source) for one in found.classes)
    names = [one.name for one in classes]
    if not classes or len({*names}) < len(names):
        raise UsageError(f"{source} has the classes {', '.join(names) or '(none)'}", "one or more, each once")
    return classes


def _class(given: _Class, source: str) -> MapClass:
    where = f"{source}, class {given.name!r}"
    if not given.name or not given.rules:
        raise UsageError(f"{where} has no {'rules' if given.name else 'name'}", _EXAMPLE)
    return MapClass(given.name, rules=tuple(_rule(one, where) for one in given.rules))


def _rule(given: _Rule, where: str) -> MapRule:
    if not given.tags and not given.fields:
        raise UsageError(f"{where} has a rule without tags and fields", 'tags such as { natural = "water" }')
    if not 0 <= given.width_m <= _WIDEST_M:
        raise UsageError(f"{where} has width_m = {given.width_m}", f"0 to {_WIDEST_M:g} m")
    return MapRule(_tags(given.tags, where), _tags(given.without, where), given.fields, float(given.width_m))


def _tags(given: dict[str, Any] | None, where: str) -> Tags:
    return tuple((name, _values(value, f"{where}, {name}")) for name, value in (given or {}).items())


def _values(given: object, where: str) -> tuple[str, ...]:
    """Return accepted values; none for any value."""
    if given is True:
        return ()
    values = [given] if isinstance(given, str) else given
    if not isinstance(values, list) or not values or not all(isinstance(one, str) and one for one in values):
        raise UsageError(f"{where} = {given!r}", 'a text, a list of texts, or true for any value but "no"')
    return tuple(values)
