"""Evaluation of weights that a cascade repeats: `python -m training.evaluate RUN --cascade 2,4,8,16,32`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.bands import SCALE_10M
from pipeline.errors import UsageError
from pipeline.superres.registry import known
from pipeline.superres.weights import SHIPPED
from training import registry
from training.data.sources import load_data, shipped_data
from training.loop.distributed import device_of
from training.quality.cascade_backbones import Named, backbone_sections
from training.quality.cascade_reference import reference_sections
from training.quality.cascade_report import Cascaded, cascade_sections
from training.quality.names import listing, names_of
from training.quality.sampler import NATIVE_GSD_M

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pipeline.models.bundle import Bundle
    from training.quality.cascade import Cascades
    from training.quality.tables import Section


def shipped_files() -> list[Path]:
    """Return the shipped weights that a cascade repeats."""
    kinds = {one.kind for one in registry.every().values() if one.cascades is not None}
    offered = {one.shipped for spec in known().values() for one in spec.weights if kinds & {*one.kinds} and one.shipped}
    return [SHIPPED / name for name in sorted(offered)]


def sections(bundles: Sequence[Bundle], args: argparse.Namespace, say: Callable[[str], None]) -> list[Section]:
    """Return the tables of weights that a cascade repeats. Raises UsageError for other weights, scales and options."""
    for option in ("steps", "picture", "only"):
        if getattr(args, option):
            raise UsageError(f"--cascade together with --{option}", "one of them")
    if args.reference and args.backbones:
        raise UsageError("--reference together with --backbones", "one of them")
    device, scales = device_of(args.device), sorted(args.cascade)
    cascades = [_cascades_of(bundle, scales).load(bundle, device) for bundle in bundles]
    kinds = [bundle.system for bundle in bundles]
    names = names_of(bundles, kinds)
    shape = NATIVE_GSD_M / SCALE_10M, SCALE_10M
    data = load_data(args.on, *shape) if args.on else shipped_data(None, *shape)
    if args.backbones:
        systems, declared = [Named.parsed(text) for text in args.backbones], _cascades_of(bundles[0], scales)
        rest = args.decimator, args.per_set, device, args.seed, say
        return backbone_sections(systems, declared, data, scales, *rest)
    found = [listing(names, kinds, bundles)]
    for name, bundle, cascade in zip(names, bundles, cascades, strict=True):
        weights = Cascaded(name, bundle, cascade, args.seed)
        shared = weights, data, scales, args.decimator, args.per_set, say
        found += reference_sections(*shared) if args.reference else cascade_sections(*shared, draws=bool(args.members))
    return found


def _cascades_of(bundle: Bundle, scales: Sequence[int]) -> Cascades:
    """Return how weights are repeated. Raises UsageError if they cannot be, or not to one of the scales."""
    task = registry.of_kind(bundle.system)
    if task is None or task.cascades is None:
        kinds = [one.kind for one in registry.every().values() if one.cascades is not None]
        what = f"--cascade: {bundle.path} holds {bundle.system}, which no cascade repeats"
        raise UsageError(what, f"weights of kind {', '.join(kinds)}")
    wrong = [scale for scale in scales if scale not in task.cascades.scales]
    if wrong:
        known = ", ".join(map(str, task.cascades.scales))
        raise UsageError(f"--cascade {','.join(map(str, wrong))}", f"scales among {known}")
    return task.cascades
