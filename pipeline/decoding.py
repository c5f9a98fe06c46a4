"""Strict decoding of plain JSON into dataclasses: values are not converted, and unknown names are errors."""

from __future__ import annotations

import types
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, Union, cast, get_args, get_origin

import cattrs

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
_SHOWN = 3  # faults named in a message
_SCALARS = (bool, int, float, str)


class DecodingError(ValueError):
    """Content that does not fit its type. The message names faults with their paths."""


def decode(kind: type[T], content: object, name: str, ready: tuple[type, ...] = ()) -> T:
    """Decode `content` from `json.loads` to a `kind`. Raises DecodingError, which names faults by path below `name`.

    An int is accepted for a float and stays an int, so that a record encodes to the bytes it was decoded from.
    Instances of the types in `ready` are kept as they are.
    """
    try:
        return _converter(ready).structure(content, kind)
    except cattrs.BaseValidationError as error:
        faults = cattrs.transform_error(error, path=name, format_exception=_words)
        more = f", and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise DecodingError("; ".join(faults[:_SHOWN]) + more) from error
    except (TypeError, ValueError) as error:
        raise DecodingError(f"{error} @ {name}") from error


@lru_cache(maxsize=8)
def _converter(ready: tuple[type, ...]) -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind in (*_SCALARS, *ready):
        converter.register_structure_hook(kind, _instance)
    converter.register_structure_hook_func(_is_scalars, _one_of)
    converter.register_structure_hook_factory(_is_sequence, _sequence)
    return converter


def _instance(value: object, kind: type[T]) -> T:
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise TypeError(f"expected {kind.__name__}, found {value!r:.40}")
    return cast("T", value)


def _is_scalars(kind: object) -> bool:
    """Return whether a type is a union of scalars and None, such as `int | str`."""
    return get_origin(kind) in (Union, types.UnionType) and set(get_args(kind)) <= {*_SCALARS, types.NoneType}


def _one_of(value: object, kind: object) -> object:
    kinds = get_args(kind)
    if type(value) not in kinds and not (float in kinds and type(value) is int):
        names = " or ".join("null" if one is types.NoneType else one.__name__ for one in kinds)
        raise TypeError(f"expected {names}, found {value!r:.40}")
    return value


def _is_sequence(kind: object) -> bool:
    return get_origin(kind) in (tuple, list)


def _sequence(kind: object, converter: cattrs.Converter) -> Callable[[object, object], object]:
    """Return a hook that structures a list as `kind`. The default hook would accept a text as a list of letters."""
    whole, inside = cast("type[Any]", get_origin(kind)), get_args(kind)
    uniform = whole is list or inside[-1] is Ellipsis

    def structure(value: object, _kind: object) -> object:
        if not isinstance(value, list | tuple):
            raise TypeError(f"expected a list, found {value!r:.40}")
        kinds = inside[:1] * len(value) if uniform else inside
        if len(kinds) != len(value):
            raise TypeError(f"expected {len(kinds)} values, found {len(value)}")
        return whole(converter.structure(one, kind) for one, kind in zip(value, kinds, strict=True))

    return structure


def _words(error: BaseException, _kind: type | None) -> str:
    if isinstance(error, KeyError):
        return "missing"
    if isinstance(error, AttributeError):  # the value has no items
        return "expected an object"
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        return f"unknown: {', '.join(sorted(map(str, error.extra_fields)))}"
    return str(error)
