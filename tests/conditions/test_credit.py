"""Credits of maps: a file beside them, their metadata, or what their attributes tell."""

import json

import numpy as np
import pyogrio.raw
import pytest
import rasterio
import shapely

from pipeline.conditions.credit import OSM_CREDIT, OVERTURE_CREDIT, credit_of
from tests.conditions.made_up import turned_box, vector

HOUSE = turned_box(40, 50, 60, 35, 12)


@pytest.mark.parametrize(
    ("fields", "credit"),
    [
        (("class",), ""),
        (("osm_id", "fclass"), OSM_CREDIT),
        (("full_id", "OSM_type"), OSM_CREDIT),
        (("element", "id", "building"), OSM_CREDIT),
        (("id", "building"), ""),
        (("sources", "version", "subtype"), OVERTURE_CREDIT),
    ],
)
def test_attributes_tell_where_a_file_comes_from(tmp_path, fields, credit):
    path = vector(tmp_path / "town.gpkg", [(HOUSE, dict.fromkeys(fields, "a"))])
    assert credit_of(path, "vector") == credit


def test_metadata_and_a_file_beside_it_come_first(tmp_path):
    path = tmp_path / "town.gpkg"
    pyogrio.raw.write(
        path, shapely.to_wkb(np.array([HOUSE])), [np.array(["1"], dtype=object)], fields=["osm_id"], crs="EPSG:32632",
        driver="GPKG", geometry_type="Polygon", layer_metadata={"LICENSE": "CC BY 4.0", "attribution": "Town of Ex"},
    )  # fmt: skip
    assert credit_of(path, "vector") == "Town of Ex; CC BY 4.0"
    beside = tmp_path / "town.gpkg.license"
    beside.write_text("  Survey of Ex,\n  free of charge\n")
    assert credit_of(path, "vector") == "Survey of Ex, free of charge"
    beside.write_text("SPDX-FileCopyrightText: 2024 Ex\n\nSPDX-License-Identifier: CC-BY-4.0\n")
    assert credit_of(path, "vector") == "2024 Ex, CC-BY-4.0"
    beside.write_text("x" * 5000)
    assert len(credit_of(path, "vector")) < 400


def test_geojson_states_it_before_its_features(tmp_path):
    feature = {
        "type": "Feature", "properties": {"id": "1", "copyright": "of a feature"},
        "geometry": {"type": "Point", "coordinates": [10.0, 46.0]},
    }  # fmt: skip
    whole = {"type": "FeatureCollection", "copyright": 'the "ODbL"', "features": [feature]}
    path = tmp_path / "town.geojson"
    path.write_text(json.dumps(whole))
    assert credit_of(path, "vector") == 'the "ODbL"'
    del whole["copyright"]
    path.write_text(json.dumps(whole))
    assert credit_of(path, "vector") == ""


def test_rasters_state_it_in_their_tags(tmp_path):
    path = tmp_path / "ortho.tif"
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "width": 4, "height": 4, "crs": "EPSG:32632"}
    with rasterio.open(path, "w", transform=rasterio.Affine(1, 0, 6e5, 0, -1, 5e6), **profile) as file:
        file.write(np.ones((1, 4, 4), np.uint8))
        file.update_tags(TIFFTAG_COPYRIGHT="Survey of Ex")
    assert credit_of(path, "raster") == "Survey of Ex"
