"""Log of a run: `log.csv` with one row per interval, and PNG sheets of sample images."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from training.loop.savepoint import storing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

LOG = "log.csv"
SAMPLES = "samples"
LABEL_PX = 12  # height of the column labels
GAP_PX = 4
STRETCH = (0.01, 0.99)  # quantiles of the last image shown as black and white
DISPLAY_GAMMA = 1 / 1.8  # reflectance is linear, screens are not


@dataclass(frozen=True)
class Row:
    """One interval. `parts`: named parts of the loss, "x0=0.012 aux=0.034". `waiting`: share of time spent waiting."""

    minutes: float
    stage: str
    step: int
    images: int
    images_per_s: float
    waiting: float
    learning_rate: float
    loss: float
    parts: str
    validation: str

    def line(self) -> str:
        """Return the row as a readable line."""
        parts = f" ({self.parts})" if self.parts else ""
        return (
            f"{self.minutes:6.1f} min  {self.stage:<8} step {self.step:6d}  {self.images:8d} images "
            f"{self.images_per_s:6.1f}/s, {self.waiting:3.0%} waiting  lr {self.learning_rate:.1e}  "
            f"loss {self.loss:.5f}{parts}  {self.validation}"
        )


COLUMNS = tuple(field.name for field in fields(Row))


def begin(folder: Path, resumed_from: Path | None = None, step: int = 0) -> None:
    """Create `log.csv` in `folder`, empty or with the rows up to `step` of a resumed run. Raises StorageError."""
    old = resumed_from / LOG if resumed_from else None
    kept: list[dict[str, str]] = []
    if old is not None and old.is_file():
        with old.open(newline="") as file:
            kept = [
                row for row in csv.DictReader(file) if (row.get("step") or "").isdigit() and int(row["step"]) <= step
            ]
    partial = folder / (LOG + ".partial")
    with storing(folder / LOG):
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)
        partial.replace(folder / LOG)


def add(folder: Path, row: Row) -> None:
    """Append one row. Raises StorageError."""
    rounded = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in asdict(row).items()}
    with storing(folder / LOG), (folder / LOG).open("a", newline="") as file:
        csv.DictWriter(file, COLUMNS).writerow(rounded)


def sheet(rows: Sequence[Mapping[str, Tensor]]) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """Return images side by side (height, width, 3), with a row per place and a column per label.

    Images are reflectance (3, H, W), cropped to the smallest. Each row is stretched by its last image (the truth).
    """
    height, width = (min(image.shape[axis] for row in rows for image in row.values()) for axis in (1, 2))
    drawn = []
    for row in rows:
        images = [image[:, :height, :width].detach().float().cpu().numpy() for image in row.values()]
        low, high = np.quantile(images[-1], STRETCH)
        shown = [np.clip((image - low) / max(high - low, 1e-6), 0, 1) ** DISPLAY_GAMMA for image in images]
        padded = [np.pad(image, ((0, 0), (0, GAP_PX), (0, GAP_PX)), constant_values=1) for image in shown]
        drawn.append(np.concatenate(padded, axis=2))
    whole = np.concatenate(drawn, axis=1).transpose(1, 2, 0)
    return np.pad((whole * 255).round().astype(np.uint8), ((LABEL_PX, 0), (0, 0), (0, 0)), constant_values=255)


def write_samples(folder: Path, step: int, rows: Sequence[Mapping[str, Tensor]]) -> Path:
    """Write the labelled sheet as `samples/<step>.png`. Return its path. Raises StorageError."""
    from PIL import Image, ImageDraw

    pixels = sheet(rows)
    image = Image.fromarray(pixels)
    labels = list(rows[0])
    for column, label in enumerate(labels):
        ImageDraw.Draw(image).text((2 + column * (pixels.shape[1] // len(labels)), 0), label, fill=(0, 0, 0))
    path = folder / SAMPLES / f"{step:07d}.png"
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return path
