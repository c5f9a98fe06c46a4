"""Settings given in Python: names and values of the command's flags, as numbers, dates, paths, lists and mappings."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any

from pipeline.aoi.aoi import MAX_AREA_KM2
from pipeline.config import RunConfig
from pipeline.errors import UsageError
from pipeline.planning.output_size import MAX_OUTPUT_GB
from pipeline.run_file import AOI_NAME, read
from pipeline.store.receipts import VERIFY_LEVELS

_OF_COMMANDS = ("quiet", "log_format", "price_per_hour", AOI_NAME)  # which say how a command speaks
_OTHERWISE = {"repair_aoi": "repair"}  # names of flags that Python users know by others
_PLACES = ("aoi", "bbox")
_LISTS = ("bands", "weights", "options", "conditions", "mtf", "exclude")
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "workers": ((int, type(None)), "a number of processes"),
    "cluster": ((str,), '"auto", "inline", "local", "cuda", "slurm" or the address of a scheduler'),
    "overwrite": ((bool,), "True or False"),
    "verify": ((str,), f"one of {', '.join(VERIFY_LEVELS)}"),
    "mixed_software": ((bool,), "True or False"),
    "max_outage": ((int, float), "minutes"),
    "max_area_km2": ((int, float), "square kilometres"),
    "max_output_gb": ((int, float), "gigabytes"),
    "repair": ((bool,), "True or False"),
    "progress": ((bool,), "True or False"),
}


@dataclass(frozen=True)
class Manner:
    """Settings of how a run is done. They do not change the pixels."""

    workers: int | None = None  # processes; None: one per processor, as memory allows
    cluster: str = "auto"
    overwrite: bool = False
    verify: str = "size"
    mixed_software: bool = False
    max_outage: float = 30.0  # minutes
    max_area_km2: float = MAX_AREA_KM2
    max_output_gb: float = MAX_OUTPUT_GB
    repair: bool = False  # of self-crossing polygons
    progress: bool = True

    def __post_init__(self) -> None:
        for name, (kinds, expected) in _KINDS.items():
            value = getattr(self, name)
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise UsageError(f"{name} = {value!r}", expected)
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"workers = {self.workers}", "at least 1")
        if self.verify not in VERIFY_LEVELS:
            raise UsageError(f"verify = {self.verify!r}", f"one of {', '.join(VERIFY_LEVELS)}")


def settled(settings: Mapping[str, Any], call: str) -> tuple[RunConfig, Manner]:
    """Return the settings of pixels and of the manner of a run, from names and values.

    `config` may be a TOML file, which the other settings override. `call` is the function that they were given to.
    Raises UsageError for unknown names and wrong values.
    """
    given = with_file(settings)
    of_manner = {field.name for field in fields(Manner)}
    of_pixels = {field.name for field in fields(RunConfig)} | {"fusion_weights"}
    for name in given:
        if name not in of_manner | of_pixels:
            raise _unknown(name, of_manner | of_pixels | {"config"}, call)
    manner = Manner(**{name: value for name, value in given.items() if name in of_manner})
    own = {name: _plain(name, value) for name, value in given.items() if name in of_pixels and value is not None}
    return RunConfig.from_mapping(own, call), manner


def with_file(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings together with those of the file `config`, if there is one, which they override.

    A place given replaces that of the file. Raises UsageError.
    """
    given = dict(settings)
    if (file := given.pop("config", None)) is None:
        return given
    found = {_OTHERWISE.get(name, name): value for name, value in read(Path(file)).items() if name not in _OF_COMMANDS}
    if any(given.get(name) is not None for name in _PLACES):
        found = {name: value for name, value in found.items() if name not in _PLACES}
    return {**found, **{name: value for name, value in given.items() if value is not None}}


def _unknown(name: str, known: set[str], call: str) -> UsageError:
    near = difflib.get_close_matches(name, known, 1, 0.7)
    cure = f"did you mean {near[0]}?" if near else ""
    return UsageError(f"{call}({name}=...)", f"only {', '.join(sorted(known))}", cure)


def _plain(name: str, value: object) -> object:
    """Return a value in the form of a TOML file."""
    if isinstance(value, date):  # datetimes too
        return value.isoformat()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if name not in _LISTS:
        return value
    if isinstance(value, Mapping):
        return [f"{key}={_plain('', entry)}" for key, entry in value.items()]
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")] if name == "bands" else [value]
    if isinstance(value, float | int):
        return [str(value)]
    return [_plain("", entry) for entry in value] if isinstance(value, list | tuple) else value
