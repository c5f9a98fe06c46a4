"""The super-resolution systems by name: those in `pipeline.superres.systems`, and those that packages bring."""

from __future__ import annotations

from functools import lru_cache

from pipeline import discovery
from pipeline.errors import UsageError
from pipeline.superres import systems
from pipeline.superres.spec import SystemSpec

PLUGINS = "sen2fine.systems"  # group of entry points

_REGISTERED: dict[str, SystemSpec] = {}


def register(spec: SystemSpec) -> None:
    """Make a system known in this process as `--sr NAME`. UsageError for a name that another system has.

    Commands and workers are processes of their own: they find what a package names as an entry point of the group
    `sen2fine.systems`, such as `mine = "my_package:SYSTEM"`.
    """
    if known().get(spec.name, spec) != spec:
        raise UsageError(f"there is a system {spec.name} already", "a name of its own")
    _REGISTERED[spec.name] = spec


def known() -> dict[str, SystemSpec]:
    """The systems of this package, then those registered so far."""
    return {**_shipped(), **_REGISTERED}


def spec_of(name: str) -> SystemSpec:
    """The system of that name; installed packages are asked for it last. UsageError where nobody knows it."""
    if name not in known():
        _installed()
    if name not in known():
        raise UsageError(
            f"--sr {name} is not known", f"one of {', '.join(known())}", "install the package that brings it"
        )
    return known()[name]


@lru_cache(maxsize=1)
def _shipped() -> dict[str, SystemSpec]:
    """`SYSTEM` of every module of the package `systems` that has one; the others are shared by several."""
    return {one.name: one for one in discovery.in_package(systems, "SYSTEM", SystemSpec)}


@lru_cache(maxsize=1)
def _installed() -> None:
    """Register, once, what installed packages bring: a `SystemSpec`, or a module that registers its own."""
    for one in discovery.in_entry_points(PLUGINS, SystemSpec):
        register(one)
