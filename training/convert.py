"""`python -m training.convert --from difffusr last.ckpt --out difffusr.safetensors`: released weights become a bundle.

In: a checkpoint of DiffFuSR's authors, or of another training with their code. Out: a bundle for `--weights`. Every
tensor is checked by name and shape against the networks before anything is written. Imports torch and pipeline.models.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import EXIT_OK, PipelineError, StorageError, UsageError
from pipeline.version import VERSION
from training.checkpoint import CheckpointError, read_checkpoint
from training.difffusr_shapes import difffusr_architecture, fusion_architecture, has_second_norms, is_second_norm

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from pipeline.models.bundle import Bundle
    from training.checkpoint import Checkpoint

SUPER_RESOLUTION, FUSION = "difffusr", "difffusr-fusion"
# Parts of a released checkpoint that inference does not use: the U-Net without averaging, the contrastive training's
# key encoder and queue, the tables of the noise schedule.
IGNORED = {SUPER_RESOLUTION: ("model.", "E.encoder_k.", "E.queue", "diffusion."), FUSION: ()}
_SUFFIX = ".safetensors"
_NAMED = 3  # tensors of each fault that a message names


@dataclass(frozen=True)
class Choices:
    """What the file does not say of itself."""

    kind: str
    licence: str = ""
    name: str = ""
    denoise_last: bool = False
    groups: int = 0  # 0: as published
    block2_norm: bool = False
    ignore: tuple[str, ...] = ()


def parser() -> argparse.ArgumentParser:
    """Command line of `python -m training.convert`."""
    p = argparse.ArgumentParser(prog="python -m training.convert", description=__doc__)
    p.add_argument("checkpoint", type=Path, help="Lightning checkpoint, state dict saved by torch, or safetensors")
    p.add_argument("--from", dest="kind", required=True, choices=(SUPER_RESOLUTION, FUSION), help="what it holds")
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="bundle to write (.safetensors)")
    p.add_argument("--overwrite", action="store_true", help="replace an existing file")
    p.add_argument("--licence", default="", metavar="TEXT", help="of the weights; goes into every store made with them")
    p.add_argument("--name", default="", metavar="TEXT", help="what these weights are called, for the provenance")
    p.add_argument(
        "--denoise-last",
        action="store_true",
        help="use the sampler's last evaluation; as published it is thrown away, which leaves noise of standard "
        "deviation 0.0032 reflectance (32 DN) in the output",
    )
    other = p.add_argument_group("other trainings (not visible in the tensors)")
    other.add_argument("--groups", type=int, default=0, metavar="N", help="groups of the normalisations (32)")
    other.add_argument("--block2-norm", action="store_true", help="trained with the second norm of each block in use")
    other.add_argument(
        "--ignore", action="append", default=[], metavar="PREFIX", help="leave out tensors of this prefix (repeatable)"
    )
    return p


def convert(path: Path, choices: Choices) -> tuple[Bundle, dict[str, Tensor]]:
    """The bundle and its tensors that the checkpoint at `path` makes. Raises CheckpointError; writes nothing."""
    checkpoint = read_checkpoint(path)
    left_out = (*IGNORED[choices.kind], *choices.ignore)
    kept = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith(left_out)}
    _check_kind(path, choices.kind, kept)
    shapes = {name: tuple(tensor.shape) for name, tensor in kept.items()}
    try:
        architecture = _architecture(choices, shapes)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.found}", error.expected, error.cure) from error
    expected = _networks(choices.kind, architecture).state_dict()
    if choices.kind == SUPER_RESOLUTION and not has_second_norms(shapes):
        kept |= {name: _identity(name, like) for name, like in expected.items() if is_second_norm(name)}
    tensors = _fitting(path, choices.kind, kept, expected)
    return _bundle(checkpoint, choices, architecture, has_second_norms(shapes)), tensors


def _check_kind(path: Path, kind: str, tensors: Mapping[str, Tensor]) -> None:
    """Say it plainly where the file holds the other kind of networks, or none that is averaged."""
    fusion, averaged = (any(name.startswith(p) for name in tensors) for p in ("rrdb_block_", "ema."))
    if kind == FUSION and not fusion:
        cure = f"--from {SUPER_RESOLUTION}" if averaged else ""
        raise CheckpointError(f"{path} holds no fusion networks", "tensors rrdb_block_*_fusion.*", cure)
    if kind == SUPER_RESOLUTION and not averaged:
        found = "the fusion networks" if fusion else "no averaged U-Net"
        raise CheckpointError(f"{path} holds {found}", "tensors ema.*", f"--from {FUSION}" if fusion else "")


def _architecture(choices: Choices, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Keyword arguments of the networks: read off the shapes, else chosen, else as published."""
    from pipeline.models import difffusr, difffusr_fusion

    if choices.kind == FUSION:
        return {**difffusr_fusion.ARCHITECTURE, **fusion_architecture(shapes)}
    architecture = {**difffusr.ARCHITECTURE, **difffusr_architecture(shapes), "block2_norm": choices.block2_norm}
    architecture["groups"] = choices.groups or architecture["groups"]
    if choices.block2_norm and not has_second_norms(shapes):
        raise CheckpointError("it stores no second norms (block2.block.0)", "them, for --block2-norm", "drop the flag")
    if architecture["base"] % architecture["groups"]:
        raise CheckpointError(
            f"{architecture['base']} channels do not divide into {architecture['groups']} groups",
            "the number of normalisation groups of the training",
            "give it with --groups",
        )
    multiple = architecture["fold"] * 2 ** (len(architecture["mults"]) - 1)
    if difffusr.LATTICE.window_px % multiple:
        raise CheckpointError(
            f"the U-Net wants windows of multiples of {multiple} px", f"a divisor of {difffusr.LATTICE.window_px} px"
        )
    return architecture


def _networks(kind: str, architecture: Mapping[str, Any]) -> nn.Module:
    """The networks without values: names, shapes and types only."""
    import torch

    from pipeline.models.difffusr import Networks
    from pipeline.models.difffusr_fusion import FusionNetworks

    with torch.device("meta"):
        return FusionNetworks(**architecture) if kind == FUSION else Networks(**architecture)


def _identity(name: str, like: Tensor) -> Tensor:
    """Weight or bias of a norm that changes nothing but the statistics."""
    import torch

    return torch.full(like.shape, 1.0 if name.endswith("weight") else 0.0)


def _fitting(path: Path, kind: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in the networks' own types, in memory of their own. CheckpointError names those that do not fit."""
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


def _bundle(checkpoint: Checkpoint, choices: Choices, architecture: dict[str, Any], second_norms: bool) -> Bundle:
    from pipeline.models.difffusr import SAMPLER, difffusr_bundle
    from pipeline.models.difffusr_fusion import difffusr_fusion_bundle

    provenance: dict[str, Any] = {
        "name": choices.name,
        "converted_from": checkpoint.path.name,
        "source_sha256": checkpoint.sha256,
        "source_kind": checkpoint.kind,
        "source_says": checkpoint.facts,
        "converter": f"sen2fine {VERSION} training.convert",
        "left_out": [*IGNORED[choices.kind], *choices.ignore],
        "paper": "arXiv 2506.11764",
    }
    if choices.kind == FUSION:
        return difffusr_fusion_bundle(architecture, provenance, choices.licence)
    if not second_norms:
        provenance["second_norms"] = "absent from the source and not used; stored as ones and zeros"
    sampler = {**SAMPLER, "denoise_last": choices.denoise_last}
    return difffusr_bundle(architecture, provenance, choices.licence, sampler)


def write(bundle: Bundle, tensors: Mapping[str, Tensor], out: Path) -> str:
    """Write the bundle to `out` and return its sha256. Raises StorageError; nothing is left behind then."""
    from safetensors import SafetensorError

    from pipeline.models.bundle import save_bundle

    try:
        return save_bundle(out, bundle, tensors)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise StorageError(
            f"cannot write {out}: {reason}", cure="free space or permissions, or another --out"
        ) from error


def _check_arguments(args: argparse.Namespace) -> None:
    """What is wrong with the arguments is said before a large file is read."""
    out: Path = args.out
    if out.suffix != _SUFFIX:
        raise UsageError(f"--out {out}", f"a name ending in {_SUFFIX}")
    if out.exists() and not args.overwrite:
        raise UsageError(f"{out} exists", "a new name", "choose another --out, or give --overwrite")
    if out.exists() and args.checkpoint.exists() and out.samefile(args.checkpoint):
        raise UsageError(f"--out {out} is the checkpoint itself", "a new name", "choose another --out")
    if args.groups < 0:
        raise UsageError(f"--groups {args.groups}", "a positive number, or none for 32")
    given = [flag for flag in ("denoise_last", "groups", "block2_norm") if getattr(args, flag)]
    if args.kind == FUSION and given:
        flag = "--" + given[0].replace("_", "-")
        raise UsageError(f"{flag} says nothing about fusion networks", f"it with --from {SUPER_RESOLUTION}", "drop it")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        _check_arguments(args)
        choices = Choices(
            args.kind, args.licence, args.name, args.denoise_last, args.groups, args.block2_norm, tuple(args.ignore)
        )
        bundle, tensors = convert(args.checkpoint, choices)
        digest = write(bundle, tensors, args.out)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    values = sum(tensor.numel() for tensor in tensors.values())
    flag = "--fusion-weights" if args.kind == FUSION else "--weights"
    print(f"{len(tensors)} tensors, {values / 1e6:.2f} M values, {bundle.architecture}")
    print(f"wrote {args.out} sha256 {digest}")
    print(f"use it: python -m pipeline.run --sr difffusr {flag} {args.out}")
    if not args.licence:
        print("no licence recorded; give the authors' with --licence", file=sys.stderr)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
