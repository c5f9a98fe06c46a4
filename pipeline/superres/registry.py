"""Super-resolution systems by name: those in `pipeline.superres.systems` and those of installed packages."""

from __future__ import annotations

import difflib
from functools import lru_cache

from pipeline import discovery
from pipeline.errors import UsageError
from pipeline.superres import systems
from pipeline.superres.spec import SystemSpec

PLUGINS = "sen2fine.systems"  # group of entry points

_REGISTERED: dict[str, SystemSpec] = {}


def register(spec: SystemSpec) -> None:
    """Make a system known in this process as `--sr NAME`. Raises UsageError if another system has the name.

    Commands and workers are separate processes: they find what a package names as an entry point of the group
    `sen2fine.systems`, such as `mine = "my_package:SYSTEM"`.
    """
    if known().get(spec.name, spec) != spec:
        raise UsageError(f"there is a system {spec.name} already", "a name of its own")
    _REGISTERED[spec.name] = spec


def known() -> dict[str, SystemSpec]:
    """Return the systems of this package, then those registered so far."""
    return {**_shipped(), **_REGISTERED}


def spec_of(name: str) -> SystemSpec:
    """Return the system of that name, asking installed packages last. Raises UsageError if it is unknown."""
    if name not in known():
        _installed()
    if name not in known():
        near = difflib.get_close_matches(name, known(), 1)
        cure = f"did you mean {near[0]}? Otherwise install" if near else "install"
        raise UsageError(
            f"--sr {name} is not known", f"one of {', '.join(known())}", f"{cure} the package that brings it"
        )
    return known()[name]


@lru_cache(maxsize=1)
def _shipped() -> dict[str, SystemSpec]:
    """Return `SYSTEM` of every module in the package `systems` that has one; the other modules are shared code."""
    return {one.name: one for one in discovery.in_package(systems, "SYSTEM", SystemSpec)}


@lru_cache(maxsize=1)
def _installed() -> None:
    """Register the systems of installed packages, once: a `SystemSpec`, or a module that registers its own."""
    for one in discovery.in_entry_points(PLUGINS, SystemSpec):
        register(one)
