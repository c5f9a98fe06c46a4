"""Picture sheets of fusion: input, estimates and truth of a held-out scene in false colour, as PNG.

GSDs are eight times those of a run, from 160 m to 20 m guided by RGB, so that the truth is known.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

import torch

from training.quality import baselines, wald
from training.quality.picture import SHOWN_PX, Panel, detailed_part, sheet
from training.quality.tables import write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor

    from training.data.sources import TrainingData
    from training.data.tiles import Tile
    from training.quality.wald import Fuser

FALSE_COLOUR = ("B11", "B8A", "B05")  # as red, green, blue
BASELINE = "ATPRK-like"
TILES_TRIED = 12  # maximum per source, until one is large enough
COLUMNS = 3
GUIDE_WHITE = 0.995  # quantile of the guide shown as white


def shown_bands(held: tuple[str, ...]) -> tuple[str, ...]:
    """Return three of a scene's 20 m bands, those of FALSE_COLOUR first. If there are fewer, repeat the last."""
    ranked = [*(band for band in FALSE_COLOUR if band in held), *(band for band in held if band not in FALSE_COLOUR)]
    return tuple((ranked + ranked[-1:] * 2)[:3])


def panels(name: str, task: wald.Task) -> list[Panel]:
    """Return the panels of one sheet of 20 m x8 in `shown_bands`, cropped to the most detailed part.

    `name` is that of the fusion.
    """
    chosen = [task.bands.index(band) for band in shown_bands(task.bands)]
    coarse, truth, ours = task.coarse[chosen], task.truth[chosen], task.learned[name]
    part = detailed_part(truth[None], SHOWN_PX, step=task.scale)

    def cut(image: Tensor) -> Tensor:
        return image[(slice(None), *part)]

    guide = cut(task.guides)
    baseline = baselines.SHARPENERS[BASELINE](task.coarse, task.guides, task.scale)
    return [
        Panel("guide: RGB, 20 m", guide, float(torch.quantile(guide, GUIDE_WHITE))),
        Panel("input, 160 m", cut(baselines.nearest(coarse[None], task.scale)[0])),
        Panel("bicubic", cut(baselines.bicubic(coarse[None], task.scale)[0])),
        Panel(BASELINE, cut(baseline[chosen])),
        Panel(f"{name}, as stored", cut(wald.project(ours, task.coarse, task.scale)[chosen])),
        Panel("truth, 20 m", cut(truth)),
    ]


@torch.inference_mode()
def write(name: str, fuser: Fuser, data: TrainingData, folder: Path, say: Callable[[str], None]) -> list[Path]:
    """Write one PNG per source with a held-out or watched scene. Return the paths. Raises StorageError."""
    judged = [tile for tile in data.tiles("held-out") if tile.evaluated] or data.watched_tiles()
    written = []
    for source in dict.fromkeys(tile.source for tile in judged):
        inside = [tile for tile in judged if tile.source == source][:TILES_TRIED]
        found = next(((tile, task) for tile in inside for task in _tasks(name, fuser, tile)), None)
        if found is None:
            continue
        tile, task = found
        stem = re.sub(r"[^\w.-]+", "_", f"{name}-{source}-{tile.place}")
        path = folder / f"{stem}.png"
        digest, bands = fuser.bundle.digest[:12], " ".join(shown_bands(task.bands))
        title = f"{tile.place}: {task.name}, shown {bands}; {fuser.bundle.system} sha256 {digest}"
        image = sheet(panels(name, task), title, COLUMNS)
        write_whole(path, partial(image.save, format="PNG"))
        say(f"wrote {path}")
        written.append(path)
    if not written:
        say(f"{name}: no sheet, since no held-out or watched scene measures {wald.EIGHTH_LEAST_M} m with bands of 20 m")
    return written


def _tasks(name: str, fuser: Fuser, tile: Tile) -> Iterator[wald.Task]:
    """Yield the 20 m x8 tasks of one tile, if it is large enough."""
    part = wald.largest_measured(tile.rho, tile.valid)
    if part is not None:
        scene = wald.Scene({gsd: torch.from_numpy(values.copy()) for gsd, values in part.items()}, tile.present)
        yield from wald.eight_by_predict(fuser, scene, name)
