"""Picture sheets of fusion: input, estimates and truth of a held-out scene in false colour, as PNG.

GSDs are eight times those of a run, from 160 m to 20 m guided by RGB, so that the truth is known. A few places per
source are shown, chosen by land cover (`land_cover.choose`), never by contrast.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from pipeline.bands import RGB
from training.data.tiles import BANDS, MIN_SIDE_PX
from training.quality import baselines, land_cover, wald
from training.quality.land_cover import PLACES
from training.quality.picture import SHOWN_PX, Panel, ends_of, path_of, sheet, stretched
from training.quality.tables import write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from training.data.sources import TrainingData
    from training.data.tiles import Tile
    from training.quality.wald import Fuser

FALSE_COLOUR = ("B11", "B8A", "B05")  # as red, green, blue
BASELINE = "ATPRK-like"
TILES_TRIED = 12  # maximum per source to choose from
COLUMNS = 3
SHOWN_60M = SHOWN_PX * 20 // 60  # side of the part shown, in px of 60 m
AROUND_60M = wald.EIGHT  # ground around it that the fusion sees too, where there is some


@dataclass(frozen=True)
class View:
    """A measured part of a tile, the window within it to show (slices of 20 m px), and why it was chosen."""

    tile: Tile
    scene: wald.Scene
    part: tuple[slice, slice]
    why: str


def shown_bands(held: tuple[str, ...]) -> tuple[str, ...]:
    """Return three of a scene's 20 m bands, those of FALSE_COLOUR first. If there are fewer, repeat the last."""
    ranked = [*(band for band in FALSE_COLOUR if band in held), *(band for band in held if band not in FALSE_COLOUR)]
    return tuple((ranked + ranked[-1:] * 2)[:3])


def chosen(tiles: Sequence[Tile], count: int = PLACES) -> list[View]:
    """Return at most `count` measured windows of 1920 m that differ in land cover, of the first `TILES_TRIED` tiles."""
    inside, covers = [], []
    for tile in tiles[:TILES_TRIED]:
        part = wald.largest_measured(tile.rho, tile.valid)
        if part is None or not set(BANDS[20]) & set(tile.present):
            continue
        infrared = "B08" in tile.present
        height, width = part[60].shape[1:]
        for window in land_cover.windows(height, width, SHOWN_60M, 1):
            if window[0].stop - window[0].start < SHOWN_60M or window[1].stop - window[1].start < SHOWN_60M:
                continue
            fine = tuple(slice(6 * along.start, 6 * along.stop) for along in window)
            ten = torch.from_numpy(part[10][(slice(None), *fine)])
            inside.append((tile, part, window))
            covers.append(land_cover.describe(ten if infrared else ten[:3], BANDS[10] if infrared else RGB))
    shown = land_cover.choose(covers, [tile.label for tile, _, _ in inside], count)
    return [_view(*inside[one.index], one.why) for one in shown]


def _view(tile: Tile, measured: Mapping[int, NDArray[np.float32]], window: tuple[slice, slice], why: str) -> View:
    """Return the view of a window (slices of 60 m px), with the ground around it."""
    around, part = [], []
    for along, length in zip(window, measured[60].shape[1:], strict=True):
        before = AROUND_60M if along.start >= AROUND_60M else 0
        after = AROUND_60M if along.stop + AROUND_60M <= length else 0
        around.append((along.start - before, along.stop + after))
        part.append(slice(3 * before, 3 * (before + along.stop - along.start)))
    (top, bottom), (left, right) = around
    rho = {
        gsd: torch.from_numpy(v[:, top * 60 // gsd : bottom * 60 // gsd, left * 60 // gsd : right * 60 // gsd].copy())
        for gsd, v in measured.items()
    }
    return View(tile, wald.Scene(rho, tile.present), (part[0], part[1]), why)


def whole_view(tile: Tile) -> View | None:
    """Return the view of all of the largest measured part of a tile; None if it is too small for a tile."""
    part = wald.largest_measured(tile.rho, tile.valid)
    if part is None or min(part[60].shape[1:]) < MIN_SIDE_PX:
        return None
    rho = {gsd: torch.from_numpy(values.copy()) for gsd, values in part.items()}
    return View(tile, wald.Scene(rho, tile.present), (slice(None), slice(None)), "all that was measured")


def samples(task: wald.Task, part: tuple[slice, slice], learned: str) -> dict[str, Tensor]:
    """Return guide, input, network's output and truth of a task in false colour, (3, h, w), for a sheet of samples.

    Each band goes from 0 (black) to 1 (white) by the truth; the guide by itself.
    """
    bands = [task.bands.index(band) for band in shown_bands(task.bands)]
    guide, truth = (image[(slice(None), *part)] for image in (task.guides[:3], task.truth[bands]))
    low = baselines.nearest(task.coarse[bands][None], task.scale)[0]
    ends = ends_of(truth, by_band=True)
    seen = {"input": low, "ours": task.learned[learned][bands], "truth": task.truth[bands]}
    return {
        "guide": stretched(guide, ends_of(guide, by_band=True)),
        **{label: stretched(image[(slice(None), *part)], ends) for label, image in seen.items()},
    }


def panels(name: str, task: wald.Task, part: tuple[slice, slice]) -> list[Panel]:
    """Return the panels of one sheet of 20 m x8 in `shown_bands`, cropped to `part`. `name` is that of the fusion."""
    bands = [task.bands.index(band) for band in shown_bands(task.bands)]
    coarse, truth, ours = task.coarse[bands], task.truth[bands], task.learned[name]

    def cut(image: Tensor) -> Tensor:
        return image[(slice(None), *part)]

    guide = cut(task.guides[:3])
    baseline = baselines.SHARPENERS[BASELINE](task.coarse, task.guides, task.scale)
    return [
        Panel("guide: RGB, 20 m", guide, ends_of(guide, by_band=True)),
        Panel("input, 160 m", cut(baselines.nearest(coarse[None], task.scale)[0])),
        Panel("bicubic", cut(baselines.bicubic(coarse[None], task.scale)[0])),
        Panel(BASELINE, cut(baseline[bands])),
        Panel(f"{name}, as stored", cut(wald.project(ours, task.coarse, task.scale)[bands])),
        Panel("truth, 20 m", cut(truth)),
    ]


@torch.inference_mode()
def write(
    name: str, fuser: Fuser, data: TrainingData, folder: Path, say: Callable[[str], None], count: int = PLACES
) -> list[Path]:
    """Write one PNG per place of held-out or watched scenes, at most `count` per source. Return the paths.

    Raises StorageError.
    """
    judged = [tile for tile in data.tiles("held-out") if tile.evaluated] or data.watched_tiles()
    written = []
    for source in dict.fromkeys(tile.source for tile in judged):
        views = chosen([tile for tile in judged if tile.source == source], count)
        for number, view in enumerate(views):
            (task,) = wald.eight_by_predict(fuser, view.scene, name)
            path = path_of(folder, name, source, view.tile.place, number)
            weights = f"{fuser.bundle.system} sha256 {fuser.bundle.digest[:12]}"
            settings = f"{task.name}, shown {' '.join(shown_bands(task.bands))}; {weights}"
            title = f"{view.tile.place}, chosen: {view.why}\n{settings}"
            image = sheet(panels(name, task, view.part), title, COLUMNS, by_band=True)
            write_whole(path, partial(image.save, format="PNG"))
            say(f"wrote {path}")
            written.append(path)
    if not written:
        say(f"{name}: no sheet, since no held-out or watched scene measures {wald.EIGHTH_LEAST_M} m with bands of 20 m")
    return written
