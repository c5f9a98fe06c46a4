"""`python deploy/notebooks/render.py OUT_DIR [STORE]`: run the notebooks and write them as .ipynb with their figures.

In: the percent-format scripts beside this file, a store (default sample.zarr). Out: one executed notebook each.
Needs the extra `notebooks`; jupytext reads, nbclient runs, nbformat writes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NOTEBOOKS = tuple(sorted(path.stem for path in HERE.glob("*.py") if path != Path(__file__).resolve()))
_CELL_TIMEOUT_S = 600


def render(name: str, store: Path, out: Path) -> Path:
    """Run notebook `name` on `store`, which it sees as its argument, and write out/name.ipynb.

    Raises nbclient's CellExecutionError, with the cell and its traceback, before anything is written.
    """
    import jupytext
    import nbformat
    from nbclient import NotebookClient

    notebook = jupytext.read(HERE / f"{name}.py", fmt="py:percent")
    NotebookClient(
        notebook, timeout=_CELL_TIMEOUT_S, kernel_name="python3", extra_arguments=[str(store.resolve())],
        resources={"metadata": {"path": str(out)}},
    ).execute()  # fmt: skip
    target = out / f"{name}.ipynb"
    nbformat.write(notebook, target)
    return target


def parser() -> argparse.ArgumentParser:
    """All flags."""
    p = argparse.ArgumentParser("python deploy/notebooks/render.py", description="Run notebooks and write .ipynb.")
    p.add_argument("out", type=Path, metavar="OUT_DIR", help="folder to write to, made if it is not there")
    p.add_argument("store", type=Path, nargs="?", default=Path("sample.zarr"), help="(%(default)s)")
    p.add_argument("--only", choices=NOTEBOOKS, action="append", help="this one (may be repeated)")
    return p


def main() -> int:
    """Render all notebooks, or those named."""
    given = parser().parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.only or NOTEBOOKS:
        print(render(name, given.store, given.out), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
