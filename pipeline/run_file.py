"""Whole runs in a TOML file: `--config run.toml` takes every setting of `pipeline.run`, and flags override it.

Keys are the names of the flags, with `_` or `-`. Relative paths are relative to the file. `aoi` is a path or a GeoJSON
geometry, `bbox` a list of four degrees.
"""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import RunConfig, read_toml, require_known
from pipeline.errors import PipelineError, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from pipeline.planning.plan import Plan

AOI_NAME = "aoi_name"  # name of an area given in the file itself
_DECIDING = {field.name for field in fields(RunConfig)} | {"fusion_weights"}
_SPELLED = {"option": "options", "condition": "conditions"}  # flags whose settings have another name
_ACTS = {"plan_only", "parts", "plan", "wait_for_plan", "shard_of", "of_pass", "pass", "finalise", "dry_run",
         "overwrite", "config", "help", "version", "json"}  # fmt: skip
_EXECUTION = "# How it is computed, which changes no pixel: workers, cluster, verify, out, quiet, log_format ..."


def parse(p: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line of `pipeline.run`. What no flag gives comes from the file that --config names.

    Settings that decide the pixels are left to `decided`. Raises UsageError for what the file should not hold.
    """
    given = p.parse_args(words)
    if given.config is None:
        return given
    path = Path(given.config)
    found = read(path)
    actions = {action.dest: action for action in p._actions}
    settings = {name: value for name, value in found.items() if name not in _DECIDING}
    require_known(settings, (_DECIDING | actions.keys() | {AOI_NAME}) - _ACTS, str(path))
    if given.aoi is not None or given.bbox is not None:  # a place replaces a place
        settings = {name: value for name, value in settings.items() if name not in ("aoi", "bbox", AOI_NAME)}
    named = settings.pop(AOI_NAME, None)
    p.set_defaults(**{name: _checked(actions[name], value, path) for name, value in settings.items()})
    if named is not None:
        p.set_defaults(**{AOI_NAME: str(named)})
    return p.parse_args(words)


def decided(path: Path) -> RunConfig:
    """Return the settings of a file that decide the pixels. Raises UsageError."""
    found = {name: value for name, value in read(path).items() if name in _DECIDING}
    return RunConfig.from_mapping(found, str(path))


def read(path: Path) -> dict[str, Any]:
    """Return the settings of a file by their names in the program, with paths relative to the working folder.

    Raises UsageError for what only a command line may hold.
    """
    names = ((_SPELLED.get(name := key.replace("-", "_"), name), value) for key, value in read_toml(path).items())
    found: dict[str, Any] = dict(names)
    if acts := sorted(found.keys() & _ACTS):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in acts)
        raise UsageError(f"{path} names {', '.join(acts)}", "settings of a run", f"give {flags} on the command line")
    return {name: _located(name, value, path.parent) for name, value in found.items()}


def _located(name: str, value: object, folder: Path) -> object:
    """Return a setting with its relative paths put below `folder`. Known names and addresses stay as they are."""
    if isinstance(value, list) and name in _PATHS:
        return [_located(name, one, folder) for one in value]
    if not isinstance(value, str) or name not in _PATHS:
        return value
    return _PATHS[name](value, folder)


def _always(text: str, folder: Path) -> str:
    return text if "://" in text or text in ("", "-") else os.path.normpath(folder / text)


def _where_found(text: str, folder: Path) -> str:
    return os.path.normpath(folder / text) if text and "://" not in text and (folder / text).exists() else text


def _file_of(place: Callable[[str, Path], str]) -> Callable[[str, Path], str]:
    """Return the rule for "NAME=FILE", of which only the file is a path."""

    def located(text: str, folder: Path) -> str:
        name, equals, file = text.rpartition("=") if "://" not in text else text.partition("=")
        return f"{name}{equals}{place(file, folder)}"

    return located


_PATHS: dict[str, Callable[[str, Path], str]] = {
    "aoi": _always,
    "out": _always,
    "catalog": _where_found,  # or a known name
    "weights": _file_of(_always),
    "fusion_weights": _always,
    "conditions": _file_of(_always),
    "options": _file_of(_where_found),  # most are numbers and words
}


def _checked(action: argparse.Action, value: object, path: Path) -> object:
    """Return the value of a setting as the parser would give it. Raises UsageError for another type or choice."""
    name = action.dest
    if name == "aoi" and isinstance(value, dict):
        return value
    if name == "bbox" and isinstance(value, list):
        return ",".join(map(str, value))
    kinds: tuple[type, ...] = (bool,) if action.nargs == 0 else {int: (int,), float: (int, float)}.get(
        action.type if isinstance(action.type, type) else str, (str,)
    )  # fmt: skip
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        words = {bool: "true or false", int: "a whole number", float: "a number"}.get(kinds[-1], "a text in quotes")
        raise UsageError(f"{path}: {name} = {value!r}", words)
    if action.choices is not None and value not in action.choices:
        raise UsageError(f"{path}: {name} = {value!r}", f"one of {', '.join(map(str, action.choices))}")
    return value


def as_toml(plan: Plan) -> str:
    """Return a file of settings from which `pipeline.run --config` makes the same plan again.

    The plan has the same digest as long as the archive lists the same scenes. Raises UsageError if the plan was made
    by a version that did not keep the area.
    """
    if not plan.aoi_geometry:
        raise UsageError(
            f"the plan of {plan.aoi_name} does not hold its area: it was made by sen2fine {plan.version or 'before 1'}",
            "a plan made by this version",
            "write the settings by hand, with --aoi; the store's attributes tell them",
        )
    lines = [f"# {plan.aoi_name}, planned {plan.created_utc}, digest {plan.digest}"]
    for name, value in {**plan.config.to_json(), "batch": plan.batch}.items():  # 0 would be chosen anew
        if value in (None, [], ""):
            lines.append(f"# {name}: not set")
            if name == "start" and plan.scenes:
                days = sorted(scene.datetime_utc[:10] for scene in plan.scenes.values())
                lines.append(f"#   scenes of {days[0]} to {days[-1]} were used{_searched(plan.config)}")
        else:
            lines.append(f"{name} = {_value(value)}")
    lines += [_EXECUTION, "", f"{AOI_NAME} = {_value(plan.aoi_name)}", "", "[aoi]"]
    return "\n".join([*lines, *(f"{name} = {_value(value)}" for name, value in plan.aoi_geometry.items()), ""])


def _searched(config: RunConfig) -> str:
    """Return which dates a search of this catalogue without a first day covers; "" if it cannot be loaded here."""
    from pipeline.archive.catalog import load_catalog

    try:
        days = load_catalog(config.catalog).default_days
    except PipelineError:
        return ""
    if not days:
        return "; without dates all scenes of this catalogue are searched"
    return f"; without a first day the {days} days before {config.end or 'today'} are searched"


def _value(value: object) -> str:
    """Return a text, number, boolean or list as TOML, whose notation is JSON's but for one control character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
