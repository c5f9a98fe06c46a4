"""Stores for the report page's tests: run once, then copied and changed."""

import atexit
import json
import shutil
import tempfile
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import zarr

from pipeline.store import sealed
from tests.archive.synthetic import make_archive, make_scene
from tests.running.conftest import LEFT, TOP, box, config_for, run, write_aoi

SIDE_M = 960
HOSTILE = "</script><script>document.title='seized'</script><img src=x onerror=alert(1)>"


def make_store(folder: Path, **changes) -> Path:
    """A store of 384 x 384 px, bicubic, one clear scene and one with clouds; a copy, so that it may be changed."""
    made = _made(tuple(sorted(changes.items())))
    return Path(shutil.copytree(made, folder / made.name))


@cache
def _made(changes: tuple[tuple[str, object], ...]) -> Path:
    """A store with these settings, in one unit unless they say otherwise, run once in this process."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    scenes = [
        make_scene(folder, scene_id="S2A_CLOUDY", seed=1, size_m=1800, cloud_fraction=0.2, offset_dn=-1000),
        make_scene(folder, scene_id="S2B_LATER", seed=1, size_m=1800, date="2024-06-22T10:20:31Z", cloud_pct=30.0),
    ]
    index = make_archive(folder, scenes)
    left, top = LEFT + 240, TOP - 240
    aoi = write_aoi(folder / "lake_shore.geojson", box(left + 1, top - SIDE_M + 1, left + SIDE_M - 1, top - 1))
    store = folder / "lake_shore.zarr"
    run(config_for(index, **{"unit_chunks": 4, **dict(changes)}), aoi, store)
    return store


def copied(store: Path, folder: Path) -> Path:
    """A copy that may be changed."""
    path = folder / "copy.zarr"
    shutil.copytree(store, path)
    return path


def attributes(store: Path, **changed) -> None:
    """Change attributes of the root group, where they stand."""
    path = store / "zarr.json"
    root = json.loads(path.read_text())
    root["attributes"].update(changed)
    path.write_text(json.dumps(root))


def without_attribute(store: Path, name: str) -> None:
    """Take an attribute of the root group away, as from a store of an older version."""
    path = store / "zarr.json"
    root = json.loads(path.read_text())
    root["attributes"].pop(name)
    path.write_text(json.dumps(root))


def plan(store: Path, **changed) -> None:
    """Change the plan as a file."""
    path = store / "_run" / "plan.json"
    content = {**json.loads(path.read_text()), **changed}
    content.pop("checksum", None)
    path.write_text(json.dumps(content))


def without(store: Path, *folders: str) -> Path:
    """Take groups away, as from a store made before there were any."""
    for name in folders:
        shutil.rmtree(store / name, ignore_errors=True)
    path = store / "zarr.json"
    root = json.loads(path.read_text())
    root.pop("consolidated_metadata", None)
    path.write_text(json.dumps(root))
    return store


def with_uncertainty(store: Path, members: int = 8) -> np.ndarray:
    """Add a spread that is 10 DN per band index plus the column; returns it."""
    without(store)
    group = zarr.open_group(store, mode="r+", use_consolidated=False)
    shape = group["reflectance"].shape
    spread = np.zeros(shape, np.uint16) + (10 * np.arange(shape[1], dtype=np.uint16))[None, :, None, None]
    spread += np.arange(shape[3], dtype=np.uint16)
    array = group.create_array(
        "uncertainty", shape=shape, chunks=(1, shape[1], 120, 120), dtype="uint16", fill_value=65535
    )
    array[:] = spread
    attributes(store, members=members)
    put_into_a_receipt(store, "uncertainty")
    return spread


def put_into_a_receipt(store: Path, name: str) -> None:
    """Let the first receipt name all chunks of an array, as if its unit had written them."""
    receipt = min((store / "_run" / "receipts").iterdir())
    content = sealed.load(receipt.read_bytes())
    for path in (store / name / "c").rglob("*"):
        if path.is_file():
            chunk = path.read_bytes()
            content["chunks"][path.relative_to(store).as_posix()] = [len(chunk), zlib.crc32(chunk)]
    receipt.write_bytes(sealed.dump(content))


def chunk_of(store: Path, name: str) -> Path:
    """One chunk file of an array."""
    return next(path for path in sorted((store / name / "c").rglob("*")) if path.is_file())
