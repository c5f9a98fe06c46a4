"""Maps have to show the ground of a run."""

import numpy as np
import pyogrio.raw
import pytest
import shapely

from pipeline.aoi.aoi import aoi_from_bbox
from pipeline.conditions.frozen import freeze
from pipeline.errors import UsageError
from pipeline.grid.lattice import Lattice
from pipeline.planning.map_ground import require_ground
from pipeline.superres.declared import Condition, MapClass
from pipeline.superres.spec import Input, Stage

MAP = Condition("map", "a map", classes=(MapClass("any"),))
READER = Stage(
    "reader",
    reads=(Input("image", ("B04",), 10), Input("map", ("any",), 2.5, MAP.source)),
    gives=("B04",),
    gsd_m=2.5,
    lattice=Lattice(96, 48, 24, 12),
)


def frozen(folder, *boxes):
    path = folder / "map.gpkg"
    geometries = shapely.to_wkb(np.array([shapely.box(*box) for box in boxes]))
    pyogrio.raw.write(path, geometries, [], fields=[], geometry_type="Unknown", crs="EPSG:4326", driver="GPKG")
    return freeze(MAP, str(path))


def test_a_map_beside_the_area_is_refused(tmp_path):
    map_ = frozen(tmp_path, (10.0, 46.0, 10.1, 46.1))
    require_ground((MAP,), (map_,), (READER,), aoi_from_bbox(10.05, 46.05, 10.2, 46.2))
    with pytest.raises(UsageError, match=r"lies at 10\.0000, 46\.0000, 10\.1000, 46\.1000; expected ground of"):
        require_ground((MAP,), (map_,), (READER,), aoi_from_bbox(10.15, 46.05, 10.2, 46.2))


def test_maps_at_the_antimeridian(tmp_path):
    map_ = frozen(tmp_path, (179.9, -17.0, 180.0, -16.9), (-180.0, -17.0, -179.9, -16.9))
    for west, east in ((179.92, 179.95), (-179.95, -179.92)):
        require_ground((MAP,), (map_,), (READER,), aoi_from_bbox(west, -16.98, east, -16.95))


def test_a_map_that_no_stage_reads_is_refused(tmp_path):
    with pytest.raises(UsageError, match="which no stage reads with these options"):
        require_ground(
            (MAP,), (frozen(tmp_path, (10.0, 46.0, 10.1, 46.1)),), (), aoi_from_bbox(10.05, 46.05, 10.2, 46.2)
        )
