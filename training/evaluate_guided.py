"""Evaluation of weights that a map guides: `python -m training.evaluate GUIDANCE PRIOR STYLES --on my_eval.toml`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from training import registry
from training.data.sources import load_data, shipped_data
from training.degradation.degrade import Degradation
from training.loop.distributed import device_of
from training.quality.map_guidance import guided_sections
from training.quality.names import listing, names_of
from training.quality.pairs import held_out_pairs
from training.quality.sampler import NATIVE_GSD_M

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from pipeline.models.bundle import Bundle
    from training.quality.map_guidance import Guided
    from training.quality.tables import Section


def asked(bundles: Sequence[Bundle]) -> bool:
    """Return whether any of the weights is guided by a map."""
    return any(_guided(bundle) is not None for bundle in bundles)


def sections(bundles: Sequence[Bundle], args: argparse.Namespace, say: Callable[[str], None]) -> list[Section]:
    """Return the tables of guided weights. Raises UsageError for other weights and options beside them."""
    for option in ("steps", "picture", "only"):
        if getattr(args, option):
            raise UsageError(f"weights that a map guides together with --{option}", "one of them")
    found, device = [], device_of(args.device)
    judged = [(bundle, guided) for bundle in bundles if (guided := _guided(bundle)) is not None]
    beside = {kind for _, guided in judged for kind in guided.beside}
    for bundle in bundles:
        if _guided(bundle) is None and bundle.system not in beside:
            raise UsageError(f"{bundle.path} beside weights that a map guides", f"only {', '.join(sorted(beside))}")
    kinds = [bundle.system for bundle in bundles]
    names = names_of(bundles, kinds)
    for bundle, guided in judged:
        system = guided.load(bundle, bundles, device)
        gsd_m = NATIVE_GSD_M / system.scale
        data = load_data(args.on, gsd_m, system.scale) if args.on else shipped_data(None, gsd_m, system.scale)
        how = Degradation(decimator=args.decimator).of_scale(system.scale)
        pairs = held_out_pairs(data.held_out_chips(bundle.in_bands), how, args.per_set, system.window_px)
        found += guided_sections(names[bundles.index(bundle)], system, pairs, args.seed, say)
    return [listing(names, kinds, bundles), *found]


def _guided(bundle: Bundle) -> Guided | None:
    task = registry.of_kind(bundle.system)
    return None if task is None else task.guided
