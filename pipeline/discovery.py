"""Discovery of systems and training tasks in the modules of a package and in installed packages."""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from types import ModuleType

T = TypeVar("T")


def in_package(package: ModuleType, attribute: str, kind: type[T]) -> list[T]:
    """Return `attribute` of every module of a package where it is of type `kind`, sorted by module name."""
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    modules = (importlib.import_module(f"{package.__name__}.{name}") for name in names)
    return [found for module in modules if isinstance(found := getattr(module, attribute, None), kind)]


def in_entry_points(group: str, kind: type[T]) -> list[T]:
    """Return the objects of type `kind` from entry points of a group. Others are only imported (self-registration)."""
    return [found for entry in entry_points(group=group) if isinstance(found := entry.load(), kind)]
