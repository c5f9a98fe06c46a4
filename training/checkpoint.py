"""Safe reading of third-party checkpoints: Lightning, plain torch state dicts and safetensors.

Tensors are returned by name, on the CPU. Pickles are only opened with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
import zipfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

_STATE = "state_dict"  # where Lightning keeps the weights
_NUMBERS = ("epoch", "global_step", "pytorch-lightning_version")  # other entries kept from Lightning checkpoints
_EXPECTED = "a Lightning checkpoint, a state dict saved by torch, or a safetensors file"
_GLOBAL = re.compile(r"GLOBAL ([\w.]*\w) (?:was|whose)")  # class or function that torch refuses
_REASON = re.compile(r"WeightsUnpickler error:\s*([^\n]+)")  # skips torch's preceding advice, unsafe here
_SHOWN = 160  # maximum characters of a library's message


class CheckpointError(UsageError):
    """Raised if a checkpoint is unreadable, unsafe or does not match the expected network."""


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint file: tensors by name, and their origin."""

    path: Path
    kind: str  # "lightning", "state dict" or "safetensors"
    sha256: str
    tensors: dict[str, Tensor]
    facts: dict[str, str | int] = field(default_factory=dict)  # epoch, step and version, if present


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the file at `path`. Tensors of a zip archive stay memory-mapped. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"no file at {path}", _EXPECTED)
    try:
        with path.open("rb") as file:
            digest, head = hashlib.file_digest(file, "sha256").hexdigest(), _head(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}", _EXPECTED) from error
    if not head:
        raise CheckpointError(f"{path} is empty", _EXPECTED, "download or copy it again")
    if head[8:9] == b"{":
        return Checkpoint(path, "safetensors", digest, _safetensors(path))
    if head.isascii() and head.decode().isprintable():
        raise CheckpointError(
            f"{path} is text, beginning {head[:24].decode()!r}",
            _EXPECTED,
            "download the file itself; this may be a pointer to it or an error page",
        )
    content = _unpickled(path)
    return _described(path, content, digest)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(32)


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(path, framework="pt") as file:
            if "bundle" in (file.metadata() or {}):
                raise CheckpointError(f"{path} is a bundle already", "a checkpoint", "use it with --weights as it is")
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error
    return tensors


def _unpickled(path: Path) -> object:
    """Return what torch saved in `path`. Raises CheckpointError if it holds anything but tensors and plain values."""
    import torch

    archive = zipfile.is_zipfile(path)  # torch >= 1.6; older versions write a plain pickle
    if archive:
        _check_archive(path)
    try:
        if archive and (met := torch.serialization.get_unsafe_globals_in_checkpoint(path)):
            raise _unsafe(path, met)
        with warnings.catch_warnings(action="ignore"):  # about pickle protocols; an error follows anyway
            return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        if met := _GLOBAL.findall(str(error)):
            raise _unsafe(path, met) from error
        reason = _REASON.search(str(error))
        raise _damaged(path, reason[1] if reason else "torch refuses it") from error
    except Exception as error:  # a damaged pickle can raise any exception
        raise _damaged(path, error) from error


def _check_archive(path: Path) -> None:
    """Verify the checksum of every record. torch writes the checksums but does not verify them."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise _damaged(path, error) from error
    if broken is not None:
        raise _damaged(path, f"the checksum of its record {broken} is wrong")


def _described(path: Path, content: object, digest: str) -> Checkpoint:
    """Return the tensors and facts of unpickled content. Raises CheckpointError if there are no tensors."""
    import torch

    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}", _EXPECTED)
    kind, state = ("lightning", content[_STATE]) if _STATE in content else ("state dict", content)
    named: dict[object, object] = state if isinstance(state, dict) else {}
    tensors = {
        name: value for name, value in named.items() if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    if not tensors:
        keys = ", ".join(sorted(str(key)[:40] for key in content)[:8])
        raise CheckpointError(f"{path} holds {keys or 'nothing'}, and no tensors by name in it", _EXPECTED)
    facts = {key: content[key] for key in _NUMBERS if isinstance(content.get(key), str | int)}
    return Checkpoint(path, kind, digest, tensors, facts if kind == "lightning" else {})


def _unsafe(path: Path, met: list[str]) -> CheckpointError:
    """Return the error for a pickle that references other classes or functions; loading it would run their code."""
    resaved = "torch.save({'state_dict': torch.load(FILE, weights_only=False)['state_dict']}, 'plain.ckpt')"
    return CheckpointError(
        f"{path} holds more than tensors: {', '.join(sorted(met)[:5])}, which cannot be read without running its code",
        "tensors and plain values",
        f"if you trust the file, where its packages are installed: {resaved}, then convert plain.ckpt",
    )


def _damaged(path: Path, error: object) -> CheckpointError:
    """Return the error for an unreadable file, with the reader's message on one line."""
    words = " ".join(str(error).split())[:_SHOWN] or "it ends early"
    kind = f"{type(error).__name__}: " if isinstance(error, Exception) else ""
    return CheckpointError(
        f"{path} cannot be read ({kind}{words})",
        _EXPECTED,
        "download or copy it again: it is cut short, damaged, or nothing that torch.save writes",
    )
