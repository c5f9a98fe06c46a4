"""Weights bundles: one safetensors file with the tensors and the metadata needed to use them.

Only safetensors files are opened, never pickles.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

FORMAT_VERSION = 1
_METADATA_KEY = "bundle"
CONVERT = (  # advice in errors on files of other formats
    "convert other formats to safetensors once: python -m training.convert --from difffusr FILE --out NAME.safetensors"
)


class BundleError(UsageError):
    """A weights file that cannot be used: missing, not safetensors, wrong digest, unknown or misshapen tensors."""


@dataclass(frozen=True)
class LatticeSpec:
    """Absolute lattice of model windows, in px of the network's output: window = stride + ramp + 2 * margin.

    `stride_px` and `margin_px + ramp_px / 2` are whole pixels of every raster that the network reads.
    """

    window_px: int
    stride_px: int
    ramp_px: int
    margin_px: int


@dataclass(frozen=True)
class Bundle:
    """Metadata of a weights file, JSON-able. `load_tensors` reads the tensors."""

    system: str  # kind of weights: "lite-sr", "lite-fusion", "difffusr-sr", "difffusr-fusion", "wavediffur-sr"
    architecture: dict[str, Any]  # keyword arguments of the network
    in_bands: tuple[str, ...]
    out_bands: tuple[str, ...]
    scale: int
    lattice: LatticeSpec
    normalisation: dict[str, Any] = field(default_factory=dict)
    sampler: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)  # data, steps, seed, code, measured numbers
    licence: str = ""
    format_version: int = FORMAT_VERSION
    digest: str = ""  # sha256 of the file; set on load
    path: str = ""  # set on load; not part of the file


def save_bundle(path: Path, bundle: Bundle, tensors: Mapping[str, Tensor], *, half: bool = False) -> str:
    """Write `bundle` and `tensors` to `path` (replaced atomically) and return the file's sha256.

    With `half`, float32 tensors are rounded to float16, for a file of half the size.
    """
    import torch
    from safetensors.torch import save_file

    described = {k: v for k, v in asdict(bundle).items() if k not in ("digest", "path")}
    metadata = {_METADATA_KEY: json.dumps(described, sort_keys=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode  # honours the user's umask; safetensors makes files that others cannot read
        kept = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
        if half:
            kept = {name: x.half() if x.dtype == torch.float32 else x for name, x in kept.items()}
        save_file(kept, partial, metadata)
        partial.chmod(mode)
        digest = _sha256(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return digest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_bundle(path: Path, expected_digest: str = "") -> Bundle:
    """Read the metadata of the file at `path`.

    Raises BundleError if the file is missing or no readable bundle, or if its sha256 is not `expected_digest`.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise BundleError(f"no weights at {path}", "a .safetensors file", _within(path))
    digest = _sha256(path)
    if expected_digest and digest != expected_digest:
        msg = f"weights {path} have sha256 {digest}; expected {expected_digest}"
        raise BundleError(msg)
    try:
        with safe_open(path, framework="pt") as weights:
            metadata = weights.metadata() or {}
    except (SafetensorError, OSError) as error:
        found = f"weights {path} are not a readable safetensors file ({error})"
        cure = CONVERT if _is_pickle(path) else f"copy or download it again, or {CONVERT}"
        raise BundleError(found, "a bundle of this project", cure) from error
    if _METADATA_KEY not in metadata:
        found = f"weights {path} have no bundle metadata"
        raise BundleError(found, f"metadata key {_METADATA_KEY!r}", CONVERT)
    try:
        return _parse(json.loads(metadata[_METADATA_KEY]), digest, path)
    except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
        msg = f"weights {path} have invalid bundle metadata ({error!r})"
        raise BundleError(msg) from error


def _within(folder: Path) -> str:
    """Return advice that names the weights files in `folder`, or "" if there are none."""
    inside = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return f"give {' or '.join(map(str, inside))}" if inside else ""


def _is_pickle(path: Path) -> bool:
    """Return whether the file starts like one saved by torch: a zip archive, or a pickle of protocol 2 or later."""
    with path.open("rb") as file:
        return file.read(4).startswith((b"PK\x03\x04", b"\x80"))


def _parse(described: dict[str, Any], digest: str, path: Path) -> Bundle:
    if described.get("format_version") != FORMAT_VERSION:
        msg = f"weights {path} have bundle format {described.get('format_version')}; expected {FORMAT_VERSION}"
        raise BundleError(msg)
    known = {**described, "lattice": LatticeSpec(**described["lattice"])}
    known["in_bands"], known["out_bands"] = tuple(known["in_bands"]), tuple(known["out_bands"])
    return Bundle(**known, digest=digest, path=str(path))


def load_tensors(bundle: Bundle) -> dict[str, Tensor]:
    """Return all tensors of the bundle's file, on the CPU, those of 16 bits as float32.

    Raises BundleError if one holds NaN or infinity.
    """
    import torch
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = load_file(bundle.path)
    broken = [name for name, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if broken:
        msg = f"weights {bundle.path} hold NaN or infinity in {', '.join(broken[:5])}"
        raise BundleError(msg)
    short = (torch.float16, torch.bfloat16)
    return {name: tensor.float() if tensor.dtype in short else tensor for name, tensor in tensors.items()}


def load_into(network: nn.Module, bundle: Bundle, prefix: str = "") -> None:
    """Fill `network` with the bundle's tensors under `prefix`.

    Raises BundleError if tensors are missing, unknown or of the wrong shape.
    """
    tensors = load_tensors(bundle)
    chosen = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    check_fit(chosen, network.state_dict(), f"weights {bundle.path} do not fit {bundle.system}")
    network.load_state_dict(chosen)


def check_fit(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], complaint: str) -> None:
    """Raise BundleError, which names them, for tensors that are missing, unknown or of another shape than expected."""
    missing, unknown = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    shapes = [
        f"{name} {list(found[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if missing or unknown or shapes:
        msg = (
            f"{complaint}: missing {missing[:3]}, unknown {unknown[:3]}, wrong shape {shapes[:3]} "
            f"({len(missing)}, {len(unknown)}, {len(shapes)} in all)"
        )
        raise BundleError(msg)
