"""Settings of a preset by name, as `--set NAME=VALUE` changes them."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

from pipeline.bands import BAND_NAMES, BY_NAME, RGB, bands_at
from pipeline.errors import UsageError
from training.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from training.presets import Preset

CROP_STEP = 8  # px: crops are reduced by up to 8
_RATE = "learning_rate"
_SHAPE = ("bands", "scale")
BAND_SETS: dict[int, tuple[str, ...]] = {4: (*RGB, "B08"), 6: bands_at(20)}  # of `--bands`: those of 10 m and of 20 m


@dataclass(frozen=True)
class _Number:
    """What a number must be: its field, type, test, and the test in words."""

    field: str
    kind: type[int] | type[float]
    fits: Callable[[float], bool]
    words: str


_NUMBERS = {
    "batch": _Number("batch", int, lambda n: n >= 1, "a whole number of at least 1"),
    "crop": _Number("crop_px", int, lambda n: n >= CROP_STEP and n % CROP_STEP == 0, f"a multiple of {CROP_STEP} px"),
    "ema": _Number("ema", float, lambda n: 0 <= n < 1, "a number from 0 to below 1"),
    "warmup": _Number("warmup_steps", int, lambda n: n >= 0, "a whole number of at least 0"),
}


def names_of(preset: Preset) -> list[str]:
    """Return the names of all settings of a preset."""
    rates = [_RATE, *(f"{_RATE}.{stage.name}" for stage in preset.stages)] if preset.stages else []
    shape = _SHAPE if preset.scales else ()
    names = (*_NUMBERS, "schedule", *shape, *rates, *preset.architecture, *preset.sampler, *preset.recipe)
    return list(dict.fromkeys(names))  # published networks count their bands


def changed(preset: Preset, texts: Sequence[str]) -> Preset:
    """Return the preset with settings "NAME=VALUE". Raises UsageError for unknown names and values that do not fit.

    `learning_rate` is that of all stages, `learning_rate.STAGE` of one. Other names are those of the network's
    architecture, of its sampler and of the task's recipe.
    """
    for text in texts:
        name, given, value = text.partition("=")
        names = names_of(preset)
        if not given or name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]}?" if near else ""
            raise UsageError(f"--set {text}: {preset.name} has no {name}", f"NAME=VALUE of {', '.join(names)}", hint)
        preset = _with(preset, text, name, value)
    return preset


def of_bands(preset: Preset, count: int, also: Sequence[str] = ()) -> Preset:
    """Return the preset with one of `BAND_SETS` and the settings `also`. Raises UsageError if its bands are fixed."""
    if not preset.scales:
        raise UsageError(f"--band-set {count}: {preset.name} has its own bands", "a preset whose bands can be set")
    return changed(preset, [f"bands={','.join(BAND_SETS[count])}", *also])


def _with(preset: Preset, text: str, name: str, value: str) -> Preset:
    if name in _NUMBERS:
        number = _NUMBERS[name]
        return _replaced(preset, number.field, _number(text, value, number))
    if name in _SHAPE:
        return _of_bands(preset, _bands(text, value)) if name == "bands" else _scaled(preset, text, value)
    if name == "schedule":
        if value not in get_args(Schedule):
            raise UsageError(f"--set {text}", f"one of {', '.join(get_args(Schedule))}")
        return _replaced(preset, "schedule", value)
    if name.partition(".")[0] == _RATE:
        rate = _number(text, value, _Number(_RATE, float, lambda n: n > 0, "a number above 0"))
        _, _, only = name.partition(".")
        stages = [replace(s, learning_rate=rate) if only in ("", s.name) else s for s in preset.stages]
        return replace(preset, stages=tuple(stages))
    group = next(g for g in ("architecture", "sampler", "recipe") if name in getattr(preset, g))
    settings = getattr(preset, group)
    found = parsed("--set", text, value, settings[name])
    numbers = found if isinstance(found, list) else [found]
    if group != "recipe" and any(isinstance(one, int) and not isinstance(one, bool) and one < 1 for one in numbers):
        raise UsageError(f"--set {text}", "a whole number of at least 1")
    return _replaced(preset, group, {**settings, name: found})


def _of_bands(preset: Preset, bands: tuple[str, ...]) -> Preset:
    """Return the preset with other bands, and their number where its network counts them."""
    counted = {"bands": len(bands)} if "bands" in preset.architecture else {}
    return replace(preset, bands=bands, architecture={**preset.architecture, **counted})


def _bands(text: str, value: str) -> tuple[str, ...]:
    bands = tuple(band.strip() for band in value.split(","))
    unknown = [band for band in bands if band not in BAND_NAMES]
    if unknown or len({*bands}) < len(bands):
        raise UsageError(f"--set {text}", f"different names of {', '.join(BAND_NAMES)}, such as B04,B03,B02,B08")
    gsds = sorted({BY_NAME[band].gsd_m for band in bands})
    if len(gsds) > 1:
        raise UsageError(
            f"--set {text}: bands of {' and '.join(f'{gsd} m' for gsd in gsds)}", "bands of one native GSD"
        )
    return bands


def _scaled(preset: Preset, text: str, value: str) -> Preset:
    if value not in map(str, preset.scales):
        raise UsageError(f"--set {text}", f"one of {', '.join(map(str, preset.scales))}")
    return replace(preset, scale=int(value))


def _replaced(preset: Preset, field: str, value: object) -> Preset:
    fields: dict[str, Any] = {field: value}
    return replace(preset, **fields)


def _number(text: str, value: str, wanted: _Number) -> float:
    try:
        number = wanted.kind(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or not wanted.fits(number):
        raise UsageError(f"--set {text}", wanted.words)
    return number


def parsed(flag: str, text: str, value: str, like: float | str | list[int]) -> float | str | list[int]:
    """Parse a setting with the type of the value it replaces; lists are separated by commas.

    Raises UsageError for other text.
    """
    try:
        if isinstance(like, list):
            return [int(part) for part in value.strip("[] ").split(",") if part.strip() or like]
        return {"true": True, "false": False}[value] if isinstance(like, bool) else type(like)(value)
    except (KeyError, TypeError, ValueError):
        raise UsageError(f"{flag} {text}", f"a value like {str(like).lower().strip('[]')}") from None
