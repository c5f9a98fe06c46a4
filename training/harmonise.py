"""`python -m training.harmonise pairs.toml --out harmoniser.json`: fit eq. 2.1 of the OpenSR thesis on real pairs.

The training file names sources of role "pair", of which places to train on are used. The result makes coarse images of
sharp ones that have none: `training.train ... --recipe harmoniser=harmoniser.json`, for presets that take one.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from pipeline.bands import BAND_NAMES, BY_NAME
from pipeline.errors import PipelineError, UsageError
from pipeline.parsers import CommandParser
from pipeline.terminal import show

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from training.data.sources import TrainingData
    from training.degradation.harmonise import Harmoniser

SIDE_PX = 128  # coarse pixels: side of the part of a pair that is used, from its middle
MOST_PAIRS = 100


def parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m training.harmonise`."""
    from training.degradation.harmonise import GAMMAS

    p = CommandParser(prog="python -m training.harmonise", description=__doc__)
    p.add_argument("data", type=Path, help="training file with pairs")
    p.add_argument("--out", type=Path, required=True, help="JSON file to write")
    p.add_argument("--gamma", choices=GAMMAS, default="power", help="map of reflectance (default: %(default)s)")
    p.add_argument("--bands", default="B04,B03,B02,B08", help="comma-separated (default: %(default)s)")
    p.add_argument("--scale", type=int, default=4, help="of the pairs (default: %(default)s)")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Return the exit code."""
    args = parser().parse_args(arguments)
    try:
        found = fitted(args)
        write(args.out, found)
    except PipelineError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    show("\n".join(words(found)))
    show(f"wrote {args.out}")
    return 0


def fitted(args: argparse.Namespace) -> Harmoniser:
    """Fit on the pairs of a training file. Raises PipelineError."""
    from training.data.sources import load_data
    from training.degradation.harmonise import Gamma, Harmoniser

    bands = tuple(args.bands.split(","))
    if unknown := [band for band in bands if band not in BAND_NAMES]:
        raise UsageError(f"--bands {args.bands}: {unknown[0]}", f"names of {', '.join(BAND_NAMES)}")
    data = load_data(args.data, BY_NAME[bands[0]].gsd_m / args.scale, args.scale)
    pairs = list(parts(data, bands))
    if not pairs:
        raise UsageError(f"{args.data} has no pair of {', '.join(bands)} to train on", 'a source of role "pair"')
    kind: Gamma = next(one for one in get_args(Gamma) if one == args.gamma)
    found = Harmoniser.fit(pairs, bands, kind, args.scale)
    return replace(found, fitted_on={"data": data.file.name, "data_digest": data.file.digest, "pairs": len(pairs)})


def parts(data: TrainingData, bands: tuple[str, ...]) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Yield the middles of pairs to train on: sharp, registered but with its own radiometry, and coarse."""
    from training.data.pair_reader import PairReader

    images = [image.of(bands) for pairs in data.pairs.values() for image in pairs.images if not image.share("held-out")]
    readers = [image.reader for image in images if image is not None]
    for reader in readers[:MOST_PAIRS]:
        assert isinstance(reader, PairReader)
        s, (height, width) = reader.scale, reader.coarse.place.shape
        ny, nx = min(SIDE_PX, height), min(SIDE_PX, width)
        y, x = (height - ny) // 2, (width - nx) // 2
        yield reader.sharpened(s * y, s * x, s * ny, s * nx), reader.coarse.window(y, x, ny, nx)


def words(found: Harmoniser) -> list[str]:
    """Return one line for each band."""
    lines = []
    for one in found.fitted:
        maps = {"power": f"gamma {one.gain:.3f} x^{one.exponent:.3f}, ", "histogram": "gamma by histograms, "}
        lines.append(f"{one.band}: blur {one.eta_px:.2f} px, {maps.get(found.kind, '')}noise {one.epsilon:.4f}")
    return lines


def write(path: Path, found: Harmoniser) -> None:
    """Write the file. Raises StorageError."""
    from training.loop.savepoint import storing

    with storing(path):
        path.write_text(json.dumps(found.described(), indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
