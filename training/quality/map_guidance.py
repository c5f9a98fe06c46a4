"""What a map and a style do to images that they guide: errors with right and wrong maps, swapped maps, colours.

Three tables. The first has the error of draws with the image's own map, the map of another image, and none. The second
has what changes when the map is exchanged while the noise stays, inside the pixels whose class changes and outside.
The third has the colours of several styles, each drawn with several seeds, and whether the structure stays.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from training.quality import baselines
from training.quality.metrics import correlation, gradient_ratio, trimmed
from training.quality.pairs import BORDER_PX, centre, score
from training.quality.tables import Record, Section, known, mean, methods_table, number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from pipeline.models.bundle import Bundle
    from training.quality.pairs import Pair

OWN, OTHERS, WITHOUT, BICUBIC = "own map", "another's map", "no map", "bicubic"
STYLES, SEEDS = 4, 2  # sampled styles, and draws of each
LEAST_CHANGED = 0.01  # share of pixels inside, and outside, for a swap to be measured
SWAP_ASKED, COLOUR_ASKED, STRUCTURE_ASKED, GRADIENT_ASKED = 3.0, 3.0, 0.8, (0.6, 1.3)
ERRORS, SWAPS, COLOURS = "map guidance", "map swap", "styles"  # tables
DIGITS = {"L1": 5, "PSNR": 2, "gradient": 2}


class GuidedSystem(Protocol):
    """Weights that a map guides, with all that they need."""

    @property
    def bundle(self) -> Bundle:
        """The bundle that is judged."""
        ...

    @property
    def scale(self) -> int:
        """Pixels of the output per pixel of the input, along one axis."""
        ...

    @property
    def window_px(self) -> int:
        """Largest side of the images."""
        ...

    @property
    def multiple_px(self) -> int:
        """Sides of the images are multiples of this."""
        ...

    @property
    def styled(self) -> bool:
        """Whether styles can be sampled."""
        ...

    def map_of(self, pair: Pair) -> Tensor:
        """Return the map of a held-out image, one channel of 0 or 1 per class (1, classes, H, W)."""
        ...

    def draw(self, lr: Tensor, of_map: Tensor | None, style: int | None, seed: int) -> Tensor:
        """Return a draw (1, 3, H, W) in reflectance. Draws of one seed share their noise; `style` numbers styles."""
        ...


@dataclass(frozen=True)
class Guided:
    """Evaluation of weights that a map guides. load: given all bundles of the evaluation, which `beside` may be of."""

    load: Callable[[Bundle, Sequence[Bundle], torch.device], GuidedSystem]
    beside: tuple[str, ...] = ()


def guided_sections(
    name: str, system: GuidedSystem, pairs: Sequence[Pair], seed: int, say: Callable[[str], None]
) -> list[Section]:
    """Return the three tables on held-out images; without the last if no styles can be sampled."""
    cut = [centre(pair, system.window_px, system.multiple_px) for pair in pairs]
    images = [pair for pair in cut if pair is not None]
    maps = [system.map_of(pair) for pair in images]
    errors, swaps, colours = list[Record](), list[Record](), list[Record]()
    for place, (pair, own) in enumerate(zip(images, maps, strict=True)):
        say(f"{name}: image {place + 1} of {len(images)}")
        other = another(maps, place)
        draws = {
            OWN: system.draw(pair.lr, own, None, seed),
            OTHERS: system.draw(pair.lr, other, None, seed),
            WITHOUT: system.draw(pair.lr, None, None, seed),
        }
        errors += [_errors(pair, method, image) for method, image in draws.items()]
        errors.append(_errors(pair, BICUBIC, baselines.bicubic(pair.lr, pair.scale)))
        swaps += _swap(pair, own, other, (draws[OWN] - draws[OTHERS]).abs())
        if system.styled:
            colours.append(_colours(pair, system, own, seed))
    shape = f"x{system.scale} of {', '.join(system.bundle.in_bands)}"
    about = (name, system.bundle.system, system.bundle.digest, f"seed {seed}", shape)
    sections = [
        Section(f"{name}: draws with right and wrong maps", errors_text(errors), errors, *about),
        Section(f"{name}: exchanged maps", swaps_text(swaps), swaps, *about),
    ]
    if colours:
        sections.append(Section(f"{name}: sampled styles", colours_text(colours), colours, *about))
    else:
        say(f"{name}: no table of styles, for which weights of styles are needed too")
    return sections


def another(maps: Sequence[Tensor], place: int) -> Tensor:
    """Return the map of another image of the same size, from the other half of the list; upside down if none is."""
    alike = [number for number, one in enumerate(maps) if one.shape == maps[place].shape]
    if len(alike) == 1:
        return torch.flip(maps[place], (-2, -1))
    return maps[alike[(alike.index(place) + (len(alike) + 1) // 2) % len(alike)]]


def _errors(pair: Pair, method: str, image: Tensor) -> Record:
    x, truth = (trimmed(one, BORDER_PX)[0] for one in (image, pair.hr))
    values = {
        "L1": float((x - truth).abs().mean()),
        "PSNR": score(image, pair),
        "gradient": gradient_ratio(x, truth),
    }
    return Record(ERRORS, pair.source, pair.place, pair.index, method, values)


def _swap(pair: Pair, own: Tensor, other: Tensor, change: Tensor) -> list[Record]:
    """Return the mean change where the class of the map changes, and where it does not; none if all or nothing does."""
    differs = (own != other).any(1)[0]
    share = float(differs.float().mean())
    if not LEAST_CHANGED <= share <= 1 - LEAST_CHANGED:
        return []
    by_pixel = change.mean(1)[0]
    inside, outside = float(by_pixel[differs].mean()), float(by_pixel[~differs].mean())
    values = {"inside": inside, "outside": outside, "share": share}
    return [Record(SWAPS, pair.source, pair.place, pair.index, OTHERS, values)]


def _colours(pair: Pair, system: GuidedSystem, own: Tensor, seed: int) -> Record:
    """Return spreads of colours between and within styles, and the correlation of gradients between styles."""
    drawn = torch.stack(
        [torch.cat([system.draw(pair.lr, own, style, seed + k) for k in range(SEEDS)]) for style in range(STYLES)]
    )  # (styles, seeds, 3, H, W)
    means = drawn.mean((-2, -1))
    between, within = float(means.mean(1).std(0).mean()), float(means.std(1).mean())
    edges = gradients(drawn.mean(2))
    alike = [correlation(edges[a, k][None], edges[b, k][None]) for k in range(SEEDS) for a, b in _pairs_of(STYLES)]
    values = {"between": between, "within": within, "structure": mean(alike)}
    return Record(COLOURS, pair.source, pair.place, pair.index, "sampled styles", values)


def _pairs_of(count: int) -> list[tuple[int, int]]:
    return list(itertools.combinations(range(count), 2))


def gradients(grey: Tensor) -> Tensor:
    """Return the magnitude of gradients (..., H - 1, W - 1) of images (..., H, W)."""
    down = grey[..., 1:, :-1] - grey[..., :-1, :-1]
    across = grey[..., :-1, 1:] - grey[..., :-1, :-1]
    return torch.hypot(down, across)


def errors_text(records: Sequence[Record]) -> str:
    """Return the first table and what it says."""
    own, others = (mean(r.values["L1"] for r in records if r.method == method) for method in (OWN, OTHERS))
    sharp = {m: mean(r.values["gradient"] for r in records if r.method == m) for m in (OWN, WITHOUT)}
    images = {(r.set, r.image) for r in records}
    better = sum(_value(records, image, OWN) < _value(records, image, OTHERS) for image in images)
    low, high = GRADIENT_ASKED
    words = (
        f"Mean absolute error with the own map {number(own, 5)}, with another's {number(others, 5)}; the own map is "
        f"better on {better} of {len(images)} images. Gradient relative to the truth with the map "
        f"{number(sharp[OWN])}, without {number(sharp[WITHOUT])} (asked: {low:g} to {high:g})."
    )
    return f"{methods_table(records, DIGITS)}\n\n{words}"


def _value(records: Sequence[Record], image: tuple[str, int], method: str) -> float:
    found = next(r.values["L1"] for r in records if (r.set, r.image) == image and r.method == method)
    return math.nan if found is None else found


def swaps_text(records: Sequence[Record]) -> str:
    """Return what an exchanged map changes, inside and outside of the changed classes."""
    inside, outside = (mean(r.values[name] for r in records) for name in ("inside", "outside"))
    if inside is None or outside is None:
        return "No two maps differ in some pixels and agree in others."
    ratio = inside / max(outside, 1e-12)
    return (
        f"With the map of another image and the same noise, reflectance changes by {inside:.5f} where the class "
        f"changes and by {outside:.5f} elsewhere, {ratio:.2f} times as much (asked: at least {SWAP_ASKED:g}), in the "
        f"mean of {len(records)} images."
    )


def colours_text(records: Sequence[Record]) -> str:
    """Return how far colours of styles lie apart, and whether the structure stays."""
    between, within = (mean(r.values[name] for r in records) or 0.0 for name in ("between", "within"))
    structure = mean(known(r.values["structure"] for r in records))
    return (
        f"Channel means of {STYLES} styles differ by {between:.5f} (standard deviation), those of {SEEDS} draws of one "
        f"style by {within:.5f}: {between / max(within, 1e-12):.2f} times as much (asked: above {COLOUR_ASKED:g}). "
        f"Gradients of draws of two styles with the same noise correlate by {number(structure)} (asked: at least "
        f"{STRUCTURE_ASKED:g}), in the mean of {len(records)} images."
    )
