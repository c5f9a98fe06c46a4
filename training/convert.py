"""`python -m training.convert --from KIND last.ckpt --out mine.safetensors`: released weights become a bundle.

The checkpoint comes from a system's authors, or from another training with their code. Every tensor is checked by name
and shape against the networks before anything is written; code in the file is never run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import EXIT_OK, PipelineError, StorageError, UsageError
from pipeline.parsers import CommandParser
from pipeline.version import VERSION
from training import registry
from training.checkpoint import CheckpointError, read_checkpoint
from training.conversion import Choices

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from pipeline.models.bundle import Bundle
    from training.checkpoint import Checkpoint
    from training.conversion import Conversion, Flag

_SUFFIX = ".safetensors"
_NAMED = 3  # tensors listed per fault in a message


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of `python -m training.convert`."""
    found = registry.conversions()
    p = CommandParser(prog="python -m training.convert", description=__doc__)
    p.add_argument(
        "checkpoint", type=Path, help="Lightning checkpoint, state dict saved by torch, safetensors, or a folder"
    )
    p.add_argument("--from", dest="kind", required=True, choices=sorted(found), help="what it holds")
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="bundle to write (.safetensors)")
    p.add_argument("--overwrite", action="store_true", help="replace an existing file")
    p.add_argument("--licence", default="", metavar="TEXT", help="of the weights; goes into every store made with them")
    p.add_argument("--name", default="", metavar="TEXT", help="what these weights are called, for the provenance")
    p.add_argument(
        "--ignore", action="append", default=[], metavar="PREFIX", help="leave out tensors of this prefix (repeatable)"
    )
    other = p.add_argument_group("what tensors do not show")
    for flag in flags(found):
        kinds = ", ".join(name for name, of in found.items() if flag in of.flags)
        text = f"{flag.help} (--from {kinds})"
        if flag.path:
            other.add_argument(flag.name, dest=flag.key, type=Path, default=None, metavar="PATH", help=text)
        elif flag.counts:
            other.add_argument(flag.name, dest=flag.key, type=int, default=0, metavar="N", help=text)
        else:
            other.add_argument(flag.name, dest=flag.key, action="store_true", help=text)
    return p


def flags(found: Mapping[str, Conversion]) -> list[Flag]:
    """Return the flags of all conversions without duplicates."""
    return list(dict.fromkeys(flag for conversion in found.values() for flag in conversion.flags))


def convert(path: Path, conversion: Conversion, choices: Choices) -> tuple[Bundle, dict[str, Tensor]]:
    """Convert what lies at `path`. Return the bundle and its tensors. Raises UsageError, mostly CheckpointError."""
    checkpoint = read_checkpoint(path) if conversion.read is None else conversion.read(path, choices)
    left_out = (*conversion.ignored, *choices.ignore)
    kept = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith(left_out)}
    try:
        made = conversion.make(kept, choices)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.found}", error.expected, error.cure) from error
    tensors = _fitting(path, conversion.name, made.tensors, made.expected)
    provenance = {**_provenance(checkpoint, conversion, choices), **made.remarks}
    return made.bundle(provenance, choices.licence or conversion.licence), made.settle(tensors)


def _fitting(path: Path, kind: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous copies of the tensors in the network's dtypes. Raises CheckpointError if any do not fit."""
    import torch

    def fits(found: Tensor, like: Tensor) -> bool:
        plain = found.layout is torch.strided and found.device.type == "cpu" and not found.is_quantized
        return plain and found.shape == like.shape and found.is_floating_point() == like.is_floating_point()

    faults = {
        "missing": [name for name in expected if name not in tensors],
        "unknown": [name for name in tensors if name not in expected],
        "wrong": [
            f"{name} ({_type(tensors[name])} instead of {_type(like)})"
            for name, like in expected.items()
            if name in tensors and not fits(tensors[name], like)
        ],
    }
    if any(faults.values()):
        cure = (
            "an unknown part that inference does not need is left out with --ignore PREFIX" if faults["unknown"] else ""
        )
        raise CheckpointError(
            f"{path} does not fit {kind}: "
            + ", ".join(_counted(what, names) for what, names in faults.items() if names),
            f"exactly the {len(expected)} tensors of the networks",
            cure,
        )
    settled = {name: tensors[name].detach().to(like.dtype, copy=True).contiguous() for name, like in expected.items()}
    broken = [name for name, tensor in settled.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise CheckpointError(f"{path} holds NaN or infinity in {_counted('', broken)}", "finite weights")
    return settled


def _type(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _counted(what: str, names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{what} {', '.join(names[:_NAMED])}{more}".strip()


def _provenance(checkpoint: Checkpoint, conversion: Conversion, choices: Choices) -> dict[str, Any]:
    return {
        "name": choices.name,
        "converted_from": checkpoint.path.name,
        "source_sha256": checkpoint.sha256,
        "source_kind": checkpoint.kind,
        "source_says": checkpoint.facts,
        "converter": f"sen2fine {VERSION} training.convert",
        "left_out": [*conversion.ignored, *choices.ignore],
        "paper": conversion.source,
    }


def write(bundle: Bundle, tensors: Mapping[str, Tensor], out: Path) -> str:
    """Write the bundle to `out` and return its sha256. Raises StorageError and leaves no partial file."""
    from safetensors import SafetensorError

    from pipeline.models.bundle import save_bundle

    try:
        return save_bundle(out, bundle, tensors)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise StorageError(
            f"cannot write {out}: {reason}", cure="free space or permissions, or another --out"
        ) from error


def _check_arguments(args: argparse.Namespace, conversion: Conversion) -> None:
    """Check the arguments before reading a large file. Raises UsageError."""
    out: Path = args.out
    if out.suffix != _SUFFIX:
        raise UsageError(f"--out {out}", f"a name ending in {_SUFFIX}")
    if out.exists() and not args.overwrite:
        raise UsageError(f"{out} exists", "a new name", "choose another --out, or give --overwrite")
    if out.exists() and args.checkpoint.exists() and out.samefile(args.checkpoint):
        raise UsageError(f"--out {out} is the checkpoint itself", "a new name", "choose another --out")
    found = registry.conversions()
    for flag in flags(found):
        given = getattr(args, flag.key)
        if flag.counts and given < 0:
            raise UsageError(f"{flag.name} {given}", "a positive number, or none for what was published")
        if given and flag not in conversion.flags:
            kinds = " or ".join(f"--from {name}" for name, of in found.items() if flag in of.flags)
            raise UsageError(f"{flag.name} says nothing about {conversion.holds}", f"it with {kinds}", "drop it")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Return the exit code."""
    args = parser().parse_args(argv)
    conversion = registry.conversions()[args.kind]
    try:
        _check_arguments(args, conversion)
        options = {flag.key: getattr(args, flag.key) for flag in conversion.flags}
        choices = Choices(args.licence, args.name, tuple(args.ignore), options)
        bundle, tensors = convert(args.checkpoint, conversion, choices)
        digest = write(bundle, tensors, args.out)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    values = sum(tensor.numel() for tensor in tensors.values())
    print(f"{len(tensors)} tensors, {values / 1e6:.2f} M values, {bundle.architecture}")
    print(f"wrote {args.out} sha256 {digest}")
    spaced = conversion.use if conversion.use.endswith("=") else f"{conversion.use} "
    print(f"use it: python -m pipeline.run {spaced}{args.out}")
    if not bundle.licence:
        print("no licence recorded; give the authors' with --licence", file=sys.stderr)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
