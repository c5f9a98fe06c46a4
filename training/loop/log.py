"""Log of a run: `log.csv` with one row per interval, and PNG sheets of sample images."""

from __future__ import annotations

import csv
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import UsageError
from pipeline.terminal import duration
from training.loop.savepoint import storing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from training.loop.task import Measured

LOG = "log.csv"
TENSORBOARD = "tensorboard"
SAMPLES = "samples"
LABEL_PX = 12  # height of the column labels
GAP_PX = 4
STRETCH = (0.01, 0.99)  # quantiles of the last image shown as black and white
WAITING, WAITING_STEPS = 0.5, 10  # share of an interval of at least so many steps that calls for advice
ADVICE = "training waits {:.0%} of its time for data: try more --workers, or tiled files (--check names striped ones)"
DISPLAY_GAMMA = 1 / 1.8  # reflectance is linear, screens are not


@dataclass(frozen=True)
class Row:
    """One interval.

    `share` of the budget; `left_s`: estimated seconds of training that remain; `waiting`: share of time spent waiting;
    `parts`: named parts of the loss; `measured`: validation results.
    """

    minutes: float
    share: float
    left_s: float
    stage: str
    step: int
    images: int
    images_per_s: float
    waiting: float
    learning_rate: float
    loss: float
    parts: Mapping[str, float]
    measured: Measured

    def line(self) -> str:
        """Return the row as a readable line."""
        parts = " ".join(f"{name}={value:.4g}" for name, value in self.parts.items())
        parts = f" ({parts})" if parts else ""
        left = f"{self.share:4.0%}, {duration(self.left_s)} left" if self.share < 1 else "100%"
        return (
            f"{self.minutes:6.1f} min, {left}  {self.stage:<8} step {self.step:6d}  {self.images:8d} images "
            f"{self.images_per_s:6.1f}/s, {self.waiting:3.0%} waiting  lr {self.learning_rate:.1e}  "
            f"loss {self.loss:.5f}{parts}  {self.measured.text}"
        )

    def cells(self) -> dict[str, str]:
        """Return the row by column: parts of the loss as `loss NAME`, validation results by their names."""
        plain = {name: getattr(self, name) for name in COLUMNS}
        values = {**plain, **{f"loss {name}": value for name, value in self.parts.items()}, **self.measured.values}
        return {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in values.items()}


COLUMNS = tuple(field.name for field in fields(Row) if field.name not in ("parts", "measured"))  # of every log


def begin(folder: Path, resumed_from: Path | None = None, step: int = 0) -> None:
    """Create `log.csv` in `folder`, empty or with the rows up to `step` of a resumed run. Raises StorageError."""
    rows = _read(resumed_from / LOG) if resumed_from else []
    with storing(folder / LOG):
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder, [row for row in rows if (row.get("step") or "").isdigit() and int(row["step"]) <= step])


def add(folder: Path, row: Row) -> None:
    """Append one row. A later stage may bring new columns, which stay empty in the rows before. StorageError."""
    cells = row.cells()
    with storing(folder / LOG):
        with (folder / LOG).open(newline="") as file:
            columns = next(csv.reader(file))
        if not cells.keys() <= set(columns):
            _write(folder, [*_read(folder / LOG), cells])
            return
        with (folder / LOG).open("a", newline="") as file:
            csv.DictWriter(file, columns).writerow(cells)


class Scalars:
    """Rows as TensorBoard scalars in `tensorboard/`. UsageError without the package."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            cure = 'pip install -e ".[tensorboard]"'
            raise UsageError("--tensorboard without TensorBoard", "the package tensorboard", cure) from None
        with storing(folder / TENSORBOARD):
            self._writer = SummaryWriter(folder / TENSORBOARD)

    def add(self, row: Row) -> None:
        """Write the numbers of a row at its step. Raises StorageError."""
        with storing(Path(self._writer.log_dir)):
            for name, text in row.cells().items():
                if name not in ("stage", "step"):
                    self._writer.add_scalar(name, float(text), row.step)
            self._writer.flush()


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _write(folder: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Replace the log in one move; columns in the order of `Row`, others as they come."""
    columns = dict.fromkeys((*COLUMNS, *(name for row in rows for name in row if name)))
    partial = folder / (LOG + ".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(folder / LOG)


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
