"""Made-up maps whose features have known shapes, in metres of one zone."""

import warnings

import numpy as np
import pyogrio.raw
import shapely
from pyproj import Transformer

from pipeline.conditions.frozen import freeze
from pipeline.conditions.maps import ZoneMaps
from pipeline.grid.grid import Grid, Window
from pipeline.superres.declared import Condition
from pipeline.superres.map_classes import map_classes

EPSG = 32632
LEFT, TOP = 600000.0, 5100000.0
GRID = Grid(EPSG, Window(-2040000, 240000, 24, 24))  # 2.5 m
CLASSES = Condition("map", "a map", classes=map_classes())


def to_degrees(shape):
    turn = Transformer.from_crs(EPSG, 4326, always_xy=True).transform
    return shapely.transform(shape, lambda xy: np.column_stack(turn(xy[:, 0], xy[:, 1])))


def osm_xml(path, ways):
    """Write ways, (shape, tags), as OpenStreetMap's XML. Outer rings of polygons become closed ways."""
    nodes, lines = [], []
    for number, (shape, tags) in enumerate(ways, 1):
        closed = shape.geom_type == "Polygon"
        xy = shapely.get_coordinates(to_degrees(shape.exterior if closed else shape))
        first = len(nodes) + 1
        points = xy[:-1] if closed else xy
        nodes += [f'<node id="{first + at}" version="1" lat="{lat:.9f}" lon="{lon:.9f}"/>' for at, (lon, lat) in
                  enumerate(points)]  # fmt: skip
        refs = [*range(first, first + len(points)), *([first] if closed else [])]
        inner = [f'<nd ref="{ref}"/>' for ref in refs] + [f'<tag k="{k}" v="{v}"/>' for k, v in tags.items()]
        lines.append(f'<way id="{number}" version="1">{"".join(inner)}</way>')
    path.write_text("\n".join(['<?xml version="1.0"?>', '<osm version="0.6">', *nodes, *lines, "</osm>"]))
    return path


def vector(path, rows, crs=f"EPSG:{EPSG}", driver="GPKG", layer=None, degrees=False):
    """Write features, (shape, attributes). All have the attributes of the first."""
    shapes = [to_degrees(shape) if degrees else shape for shape, _ in rows]
    fields = list(rows[0][1])
    values = [np.array([attributes[name] for _, attributes in rows], dtype=object) for name in fields]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        pyogrio.raw.write(
            path, shapely.to_wkb(np.array(shapes, dtype=object)), values, fields=fields, geometry_type="Unknown",
            crs="EPSG:4326" if degrees else crs, driver=driver, layer=layer,
        )  # fmt: skip
    return path


def zone_maps(path, declared=CLASSES):
    return ZoneMaps({declared.name: (declared, freeze(declared, str(path)))}, GRID)


def window(gsd_m, size_m):
    """The square of `size_m` whose upper left corner is (LEFT, TOP)."""
    px = round(size_m / gsd_m)
    return Window(-round(TOP / gsd_m), round(LEFT / gsd_m), px, px)


def turned_box(left, top, width, height, angle):
    """A rectangle, placed relative to (LEFT, TOP) and turned, so that no edge runs along pixels."""
    from shapely.affinity import rotate

    return rotate(shapely.box(LEFT + left, TOP - top - height, LEFT + left + width, TOP - top), angle)
