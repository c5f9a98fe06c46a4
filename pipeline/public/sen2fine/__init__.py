"""All 12 Sentinel-2 L2A bands at 2.5 m, from Python.

>>> import sen2fine
>>> ds = sen2fine.run(aoi="lyon.geojson", out="lyon.zarr", start="2024-06-01", end="2024-08-31")  # doctest: +SKIP
>>> ndvi = sen2fine.indices(ds, "ndvi")                                                          # doctest: +SKIP
>>> fine = sen2fine.super_resolve(my_dataset, offset=0)  # from odc-stac, stackstac or cubo      # doctest: +SKIP

The settings are those of the command `sen2fine run`, with underscores instead of hyphens.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.api.preview import Preview, plan
    from pipeline.api.resolve import super_resolve
    from pipeline.api.runs import run
    from pipeline.api.stores import check, view
    from pipeline.errors import PipelineError
    from pipeline.planning.plan import load_plan, open_cube
    from pipeline.products.color import false_color, true_color
    from pipeline.products.indices import indices
    from pipeline.products.mosaic import mosaic
    from pipeline.products.reobserve import difference, reobserve
    from pipeline.products.split_bands import split_bands
    from pipeline.store.reader import open_measured, open_store
    from pipeline.store.tree import open_tree

__all__ = [
    "PipelineError",
    "Preview",
    "__version__",
    "check",
    "difference",
    "false_color",
    "indices",
    "load_plan",
    "mosaic",
    "open_cube",
    "open_measured",
    "open_store",
    "open_tree",
    "plan",
    "reobserve",
    "run",
    "split_bands",
    "super_resolve",
    "true_color",
    "view",
]


def _claim(*names: str) -> None:
    """Make `names` mean the packages installed with this one, whatever the working folder holds.

    `pipeline.start` explains why. It is loaded by its place, since the name `pipeline` may mean something else so far.
    """
    here = Path(__file__).resolve().parent
    installed = here.parent / "pipeline"
    folder = installed if (installed / "start.py").is_file() else here.parents[1]  # a source tree
    spec = importlib.util.spec_from_file_location("_sen2fine_start", folder / "start.py")
    assert spec is not None
    assert spec.loader is not None
    start = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(start)
    for name in names:
        start.claim(name)


_claim("pipeline")
_pipeline = importlib.import_module("pipeline")
__version__: str = _pipeline.__version__
_HOMES: dict[str, str] = {
    **_pipeline._HOMES,
    "PipelineError": "pipeline.errors",
    "Preview": "pipeline.api.preview",
    "check": "pipeline.api.stores",
    "plan": "pipeline.api.preview",
    "run": "pipeline.api.runs",
    "super_resolve": "pipeline.api.resolve",
    "view": "pipeline.api.stores",
}


def __getattr__(name: str) -> object:
    """Import the public functions when they are first used, so that `import sen2fine` stays quick."""
    if name in _HOMES:
        value: object = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    msg = f"module 'sen2fine' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
