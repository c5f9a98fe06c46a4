"""Start a module of this package as a process, whatever the working folder holds: `python -P start.py MODULE ...`.

The packages here are called `pipeline` and `training`, and a user's folder may hold files of these names, which Python
would import first. `claim` binds a name to the package beside this file. It is called before anything else is imported:
by `sen2fine`, in processes that `command` starts, and in workers that `multiprocessing` spawns from these, which run
this file as `__mp_main__`. Nothing of this package may be imported at the top of this file.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

_HOME = Path(__file__).resolve().parent.parent  # site-packages, or the root of a source tree


def claim(name: str) -> None:
    """Bind the module `name` to the package beside this file. Raises ImportError if another was imported before."""
    folder = _HOME / name
    there = sys.modules.get(name)
    if there is not None:
        if not _is_at(there, folder):
            raise ImportError(_clash(name, there))
        return
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        msg = f"{folder} is missing; expected the whole of sen2fine; cure: install it again"
        raise ImportError(msg)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs `module.main(arguments)` in a new process of this Python."""
    return [sys.executable, "-P", __file__, module, *arguments]


def environment(**more: str) -> dict[str, str]:
    """Return the environment of such a process, in which modules are looked for where this process finds them."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path), **more}


def _is_at(module: ModuleType, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).resolve().parent == folder


def _clash(name: str, there: ModuleType) -> str:
    where = getattr(there, "__file__", None) or ", ".join(getattr(there, "__path__", ())) or "an unknown place"
    return (
        f"the module {name!r} was imported from {where} before sen2fine, whose own package has that name; "
        f"expected sen2fine's; cure: rename yours, since one process can hold only one module {name!r}"
    )


if __name__ in ("__main__", "__mp_main__"):
    claim("pipeline")

if __name__ == "__main__":
    sys.exit(importlib.import_module(sys.argv[1]).main(sys.argv[2:]))
