"""From a STAC archive to all 12 Sentinel-2 L2A bands at 2.5 m in a Zarr store.

>>> import pipeline
>>> ds = pipeline.open_store("lyon.zarr")        # decoded, lazy                        # doctest: +SKIP
>>> ndvi = pipeline.indices(ds, "ndvi")           # and pipeline.true_color(ds)          # doctest: +SKIP
>>> cube = pipeline.open_cube(pipeline.load_plan("lyon.zarr"))  # what went in, lazy    # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.version import VERSION

if TYPE_CHECKING:
    from pipeline.planning.plan import load_plan, open_cube
    from pipeline.products.color import false_color, true_color
    from pipeline.products.indices import indices
    from pipeline.products.mosaic import mosaic
    from pipeline.products.reobserve import difference, reobserve
    from pipeline.products.split_bands import split_bands
    from pipeline.store.reader import open_measured, open_store
    from pipeline.store.tree import open_tree

__version__ = VERSION
__all__ = [
    "__version__",
    "difference",
    "false_color",
    "indices",
    "load_plan",
    "mosaic",
    "open_cube",
    "open_measured",
    "open_store",
    "open_tree",
    "reobserve",
    "split_bands",
    "true_color",
]

_HOMES = {
    "open_store": "pipeline.store.reader",
    "open_measured": "pipeline.store.reader",
    "open_tree": "pipeline.store.tree",
    "indices": "pipeline.products.indices",
    "split_bands": "pipeline.products.split_bands",
    "mosaic": "pipeline.products.mosaic",
    "reobserve": "pipeline.products.reobserve",
    "difference": "pipeline.products.reobserve",
    "true_color": "pipeline.products.color",
    "false_color": "pipeline.products.color",
    "load_plan": "pipeline.planning.plan",
    "open_cube": "pipeline.planning.plan",
}


def __getattr__(name: str) -> object:
    """Import the public functions when they are first used, so that `import pipeline` stays quick."""
    if name in _HOMES:
        from importlib import import_module

        value: object = getattr(import_module(_HOMES[name]), name)
        return value
    msg = f"module 'pipeline' has no attribute {name!r}"
    raise AttributeError(msg)
