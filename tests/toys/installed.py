"""The toys as an installed package, which worker processes find by its entry points."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.superres.registry import PLUGINS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import ModuleType


def write_package(folder: Path, modules: Sequence[ModuleType]) -> Path:
    """Write the metadata of a package whose entry points are the SYSTEM of each module. Return the folder."""
    about = folder / "toys-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    lines = [f"{module.SYSTEM.name} = {module.__name__}:SYSTEM" for module in modules]
    (about / "entry_points.txt").write_text("\n".join([f"[{PLUGINS}]", *lines, ""]))
    return folder
