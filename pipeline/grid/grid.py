"""Grids and windows: pixel positions in metres and in absolute indices of a UTM zone.

Index frame: columns count east, rows count SOUTH, both from the zone's (0, 0) plus the grid's phase, in pixels of
a stated GSD. Pixel (row, col) of GSD g covers x from phase_x + g*col to + g and y from phase_y - g*row down to - g.
Rows are therefore negative in the northern hemisphere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

GSD_M = 2.5  # the index frame that lattice, noise and store share
BLOCK_M = 60.0  # coarsest native pixel; every official product starts at multiples of it
_SNAP_TOLERANCE = 1e-6  # of a pixel; file headers carry rounded decimals


def align_down(value: int, step: int) -> int:
    """Largest multiple of `step` that is <= `value`."""
    return (value // step) * step


def align_up(value: int, step: int) -> int:
    """Smallest multiple of `step` that is >= `value`."""
    return -((-value) // step) * step


@dataclass(frozen=True, order=True)
class Window:
    """A rectangle of whole pixels, absolute indices (rows south, columns east) of some GSD."""

    row: int
    col: int
    ny: int
    nx: int

    @property
    def row_end(self) -> int:
        """First row below the window."""
        return self.row + self.ny

    @property
    def col_end(self) -> int:
        """First column right of the window."""
        return self.col + self.nx

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx)."""
        return self.ny, self.nx

    def pad(self, px: int) -> Window:
        """The window grown by `px` on every side."""
        return Window(self.row - px, self.col - px, self.ny + 2 * px, self.nx + 2 * px)

    def intersect(self, other: Window) -> Window:
        """Common part; `ny` or `nx` is 0 when there is none."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        ny = max(0, min(self.row_end, other.row_end) - row)
        nx = max(0, min(self.col_end, other.col_end) - col)
        return Window(row, col, ny, nx)

    def union(self, other: Window) -> Window:
        """Smallest window that holds both."""
        row, col = min(self.row, other.row), min(self.col, other.col)
        return Window(row, col, max(self.row_end, other.row_end) - row, max(self.col_end, other.col_end) - col)

    @property
    def empty(self) -> bool:
        """True when the window holds no pixel."""
        return self.ny <= 0 or self.nx <= 0

    def slices(self, inside: Window) -> tuple[slice, slice]:
        """Array slices of this window within an array that covers `inside`. Raises ValueError when it sticks out."""
        y0, x0 = self.row - inside.row, self.col - inside.col
        if y0 < 0 or x0 < 0 or y0 + self.ny > inside.ny or x0 + self.nx > inside.nx:
            msg = f"{self} does not lie within {inside}"
            raise ValueError(msg)
        return slice(y0, y0 + self.ny), slice(x0, x0 + self.nx)

    def coarsen(self, factor: int) -> Window:
        """The same ground in pixels `factor` times larger. Raises ValueError unless the edges coincide."""
        parts = (self.row, self.col, self.ny, self.nx)
        if any(part % factor for part in parts):
            msg = f"{self} does not start and end at multiples of {factor} px"
            raise ValueError(msg)
        return Window(*(part // factor for part in parts))

    def refine(self, factor: int) -> Window:
        """The same ground in pixels `factor` times smaller."""
        return Window(self.row * factor, self.col * factor, self.ny * factor, self.nx * factor)

    def snap_out(self, step: int) -> Window:
        """Smallest window holding this one whose edges are multiples of `step`."""
        row, col = align_down(self.row, step), align_down(self.col, step)
        return Window(row, col, align_up(self.row_end, step) - row, align_up(self.col_end, step) - col)


@dataclass(frozen=True)
class Phase:
    """Offset of a product's pixel corners from the zone's (0, 0), modulo 60 m."""

    x_m: float = 0.0
    y_m: float = 0.0

    @classmethod
    def official(cls, epsg: int) -> Phase:
        """Phase of ESA's products: (0, 0) in the north; (0, 40) in the south.

        Tiles are laid out from the equator, and the southern false northing of 10 000 000 m is 40 m modulo 60 m.
        """
        return cls(0.0, 40.0) if epsg // 100 == 327 else cls()

    @classmethod
    def of(cls, origins: dict[int, tuple[float, float]], epsg: int) -> Phase:
        """Phase on which rasters {gsd_m: (left_m, top_m)} of one scene all nest. ValueError when there is none.

        The coarsest raster decides; where it is finer than 60 m several answers fit, and the official one is preferred.
        """
        official = cls.official(epsg)
        if all(
            _multiple(left - official.x_m, gsd) and _multiple(top - official.y_m, gsd)
            for gsd, (left, top) in origins.items()
        ):
            return official
        return cls(
            _axis_phase({gsd: origin[0] for gsd, origin in origins.items()}),
            _axis_phase({gsd: origin[1] for gsd, origin in origins.items()}),
        )


def _axis_phase(origin_m: dict[int, float]) -> float:
    coarsest = max(origin_m)
    base = origin_m[coarsest] % coarsest
    for step in range(int(BLOCK_M) // coarsest):
        phase = base + step * coarsest
        if all(_multiple(origin - phase, gsd) for gsd, origin in origin_m.items()):
            return _clean(phase % BLOCK_M)
    msg = f"rasters start at {origin_m} (gsd_m: origin_m), which share no common 60 m grid"
    raise ValueError(msg)


def _clean(phase_m: float) -> float:
    """Phases within a nanometre of 0 or 60 m are 0; the rest is rounded to a tenth of a micrometre."""
    rounded = round(phase_m, 7)
    return 0.0 if rounded in (0.0, BLOCK_M) else rounded


def _multiple(value_m: float, step_m: float) -> bool:
    return abs(value_m / step_m - round(value_m / step_m)) < 1e-4


@dataclass(frozen=True)
class Grid:
    """A raster of one UTM zone: `epsg`, phase, and the absolute window (in pixels of `gsd_m`) that it covers."""

    epsg: int
    window: Window
    gsd_m: float = GSD_M
    phase: Phase = Phase()

    @classmethod
    def covering(
        cls, epsg: int, bounds_m: tuple[float, float, float, float], phase: Phase | None = None, step_px: int = 24
    ) -> Grid:
        """2.5 m grid over (left, bottom, right, top) metres, snapped outward to multiples of `step_px` px."""
        phase = phase or Phase()
        left, bottom, right, top = bounds_m
        if not (left < right and bottom < top):
            msg = f"bounds {bounds_m} are empty; expected left < right and bottom < top, in metres"
            raise ValueError(msg)
        col = math.floor((left - phase.x_m) / GSD_M + _SNAP_TOLERANCE)
        col_end = math.ceil((right - phase.x_m) / GSD_M - _SNAP_TOLERANCE)
        row = math.floor((phase.y_m - top) / GSD_M + _SNAP_TOLERANCE)
        row_end = math.ceil((phase.y_m - bottom) / GSD_M - _SNAP_TOLERANCE)
        window = Window(row, col, row_end - row, col_end - col).snap_out(step_px)
        return cls(epsg, window, GSD_M, phase)

    @property
    def left_m(self) -> float:
        """Easting of the left edge."""
        return self.phase.x_m + self.window.col * self.gsd_m

    @property
    def top_m(self) -> float:
        """Northing of the top edge."""
        return self.phase.y_m - self.window.row * self.gsd_m

    @property
    def bounds_m(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) of the outer pixel edges."""
        ny, nx = self.window.shape
        return self.left_m, self.top_m - ny * self.gsd_m, self.left_m + nx * self.gsd_m, self.top_m

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx)."""
        return self.window.shape

    @property
    def transform(self) -> tuple[float, float, float, float, float, float]:
        """Affine coefficients (a, b, c, d, e, f) as rasterio and STAC `proj:transform` write them."""
        return self.gsd_m, 0.0, self.left_m, 0.0, -self.gsd_m, self.top_m

    def coarsen(self, factor: int) -> Grid:
        """The same ground at a GSD `factor` times larger."""
        return Grid(self.epsg, self.window.coarsen(factor), self.gsd_m * factor, self.phase)

    def refine(self, factor: int) -> Grid:
        """The same ground at a GSD `factor` times smaller."""
        return Grid(self.epsg, self.window.refine(factor), self.gsd_m / factor, self.phase)

    def at_gsd(self, gsd_m: float) -> Grid:
        """The same ground in pixels of `gsd_m`, which nests with this GSD."""
        if gsd_m < self.gsd_m:
            return self.refine(round(self.gsd_m / gsd_m))
        factor = round(gsd_m / self.gsd_m)
        return self if factor == 1 else self.coarsen(factor)

    def of(self, window: Window) -> Grid:
        """The grid of `window` (absolute, pixels of this GSD) in the same zone and phase."""
        return Grid(self.epsg, window, self.gsd_m, self.phase)
