"""`python -m tests.archive.offset_audit`: the numbers behind the thresholds of pipeline/archive/offset_audit.py.

Every real scene of known offset, and random crops of it half as wide, are judged as they are and with 1000 DN added or
taken off. Needs the real imagery (SEN2FINE_DATA).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from pipeline.archive.offset_audit import AUDIT_BANDS, judge_offset
from tests.conftest import DATA

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Offset in the pixels, by the origin of each set.
_FOLDERS = {
    "argentina_pampas_32720": 0,
    "decimated_29RKH_all12": 0,
    "safe_T29UNU_R60m": -1000,
    "majortom_native/282D_485L_3_3": 0,
    "majortom_native/433D_629L_3_1": -1000,
    "majortom_native/609U_541L_3_0": 0,
    "isan_thailand_20200223_a": 0,
    "isan_thailand_20200223_b": 0,
    "bigearthnet_v2_T33UUP_75_43": 0,
}
CROPS = 60


def real_scenes(data: Path) -> dict[str, tuple[dict[str, np.ndarray], int]]:
    """{name: (stored DN by band, offset)}."""
    folders = {data / "s2_l2a" / name: offset_dn for name, offset_dn in _FOLDERS.items()}
    folders |= dict.fromkeys(sorted(path for path in (data / "s2_l2a/bigearthnet").iterdir() if path.is_dir()), 0)
    return {folder.name: (bands_of(folder), offset_dn) for folder, offset_dn in folders.items()}


def bands_of(folder: Path) -> dict[str, np.ndarray]:
    """Stored DN of the bands that the audit looks at, whole."""
    import rasterio

    found = {}
    for path in sorted([*folder.glob("*.tif"), *folder.glob("*.jp2")]):
        name = path.stem.removesuffix("_60m").split("_")[-1]
        name = f"B0{name[1]}" if len(name) == 2 else name
        if name in AUDIT_BANDS:
            with rasterio.open(path) as dataset:
                found[name] = dataset.read(1)
    return found


def crops(bands: dict[str, np.ndarray], count: int, rng: np.random.Generator) -> Iterator[dict[str, np.ndarray]]:
    """Random windows half a scene wide, cut from all bands at the same place."""
    cells_y, cells_x = (side // 6 for side in bands["B02"].shape)  # of six B02 pixels, whole in every band
    height, width = max(1, cells_y // 2), max(1, cells_x // 2)
    for _ in range(count):
        y, x = rng.integers(0, cells_y - height + 1), rng.integers(0, cells_x - width + 1)
        cut = {}
        for name, image in bands.items():
            n = 6 * image.shape[0] // bands["B02"].shape[0]
            cut[name] = image[y * n : (y + height) * n, x * n : (x + width) * n]
        yield cut


def shifted(bands: dict[str, np.ndarray], offset_dn: int) -> dict[str, np.ndarray]:
    """The scene as it would be with the offset taken off, or put in where there was none."""
    return {
        band: np.where(dn, np.maximum(dn.astype(int) - 1000, 1) if offset_dn else dn.astype(int) + 1000, 0)
        for band, dn in bands.items()
    }


def verdict(bands: dict[str, np.ndarray], truth_dn: int) -> str:
    """One of right, wrong, unknown."""
    found = judge_offset(bands).offset_dn
    return "unknown" if found is None else "right" if found == truth_dn else "wrong"


def main() -> int:
    """Print a line per scene and the sums; 1 when the truth was contradicted anywhere."""
    rng = np.random.default_rng(0)
    sums: dict[str, int] = {}
    for name, (bands, offset_dn) in real_scenes(DATA).items():
        whole, moved = verdict(bands, offset_dn), verdict(shifted(bands, offset_dn), -1000 - offset_dn)
        parts = [verdict(cut, offset_dn) for cut in crops(bands, CROPS, rng)]
        parts_moved = [verdict(shifted(cut, offset_dn), -1000 - offset_dn) for cut in crops(bands, CROPS, rng)]
        counted = {"scene": [whole], "shifted scene": [moved], "crop": parts, "shifted crop": parts_moved}
        for kind, found in counted.items():
            for word in found:
                sums[f"{kind} {word}"] = sums.get(f"{kind} {word}", 0) + 1
        valid = {band: dn[dn > 0] for band, dn in bands.items()}
        low = ", ".join(f"{b} {np.percentile(dn, 1):.0f} {np.percentile(dn, 5):.0f}" for b, dn in sorted(valid.items()))
        print(f"{name[:40]}: offset {offset_dn}, {whole}, shifted {moved}; 1st and 5th percentile {low}")
    print("; ".join(f"{kind}: {count}" for kind, count in sorted(sums.items())))
    return int(any("wrong" in kind for kind in sums))


if __name__ == "__main__":
    sys.exit(main())
