"""`python -m training.evaluate RUN_OR_BUNDLE ... --on my_eval.toml --out table.md`: measure what was trained.

Super-resolution is measured on places held out by location and on real Sentinel-2 patches, as a run stores it; fusion
by Wald's protocol on scenes that no training sees; both together on native scenes seen by a coarser sensor. Each stands
beside the methods it has to beat, on the same pixels. Without arguments: the weights of the default system, on the
project's own data.
"""

from __future__ import annotations

import sys
from functools import cache, partial
from itertools import product
from typing import TYPE_CHECKING

from pipeline.bands import SCALE_10M
from pipeline.errors import PipelineError, UsageError
from training.evaluate_arguments import CSV, SUFFIX, parser

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from pipeline.models.bundle import Bundle
    from pipeline.superres.system import System
    from pipeline.superres.weights import Choice
    from training.data.sources import TrainingData
    from training.quality.tables import Section

EXIT_AT_ONCE = 130


def shipped_files(kinds: Collection[str] = ()) -> list[Path]:
    """Return the shipped weights of the default system, and those of `kinds` (`Bundle.system`)."""
    from pipeline.superres.registry import known
    from pipeline.superres.systems import DEFAULT
    from pipeline.superres.weights import SHIPPED

    wanted = {
        weights.shipped
        for name, spec in known().items()
        for weights in spec.weights
        if weights.shipped and (name == DEFAULT or {*kinds} & {*weights.kinds})
    }
    return [SHIPPED / name for name in sorted(wanted)]


def bundles_of(targets: Sequence[Path]) -> list[Bundle]:
    """Return the descriptions of all bundles among the files and run folders, by default of `shipped_files`.

    Raises UsageError if there is none.
    """
    from pipeline.models.bundle import load_bundle

    found: dict[Path, Bundle] = {}  # by file, so that each is measured once
    for target in targets or shipped_files():
        if not target.exists():
            raise UsageError(f"{target} does not exist", f"the folder of a run, or a {SUFFIX} file")
        files = sorted(target.glob(f"*{SUFFIX}")) if target.is_dir() else [target]
        if not files:
            raise UsageError(
                f"no weights in {target}", f"a run's folder with a {SUFFIX} file", "wait until it has ended"
            )
        found |= {file.resolve(): load_bundle(file) for file in files}
    return list(found.values())


def fusions() -> set[str]:
    """Return the bundle kinds that are no system's first weights: they process another network's output."""
    from pipeline.superres.registry import known
    from training import registry

    judged = {task.kind for task in registry.every().values() if task.judge is not None}
    return judged | {kind for spec in known().values() for weights in spec.weights[1:] for kind in weights.kinds}


def is_joined(bundle: Bundle) -> bool:
    """Return whether weights are of a kind that a system takes first, but of bands that only its later stages read."""
    from pipeline.superres.registry import known

    first = [weights for spec in known().values() for weights in spec.weights[:1] if bundle.system in weights.kinds]
    return bool(first) and not any(weights.fit(bundle) for weights in first)


def system_of(bundle: Bundle, device: str = "cpu") -> System:
    """Load the system whose super-resolver uses these weights. Raises UsageError for other kinds of bundle."""
    from pipeline.superres.registry import known
    from pipeline.superres.system import load
    from pipeline.superres.weights import choose

    kinds: list[str] = []
    for name, spec in known().items():
        for weights in spec.weights[:1]:
            if weights.fit(bundle):
                return load(choose(name, (bundle.path,)), device)
            kinds += weights.kinds
    raise UsageError(f"{bundle.path} holds {bundle.system}", f"one of {', '.join([*kinds, *sorted(fusions())])}")


def evaluate(args: argparse.Namespace, say: Callable[[str], None]) -> list[Section]:
    """Return all sections requested by the arguments. Raises PipelineError."""
    from training import evaluate_cascade, evaluate_guided
    from training.data.sources import load_data, shipped_data
    from training.loop.distributed import device_of
    from training.quality.comparison import comparison
    from training.quality.names import listing, names_of
    from training.quality.sampler import NATIVE_GSD_M

    if (args.reference or args.backbones) and not args.cascade:
        raise UsageError("--reference or --backbones without --cascade", "scales, such as --cascade 4")
    targets = args.targets or (evaluate_cascade.shipped_files() if args.cascade else [])
    bundles, after = bundles_of(targets), fusions()
    if args.shipped and targets:
        bundles = bundles_of([*targets, *shipped_files({bundle.system for bundle in bundles})])
    if args.cascade:
        return evaluate_cascade.sections(bundles, args, say)
    if evaluate_guided.asked(bundles):
        return evaluate_guided.sections(bundles, args, say)
    if args.steps and all(bundle.system in after for bundle in bundles):
        raise UsageError("--steps: a fusion has no sampling steps", "weights of a super-resolver")
    device = str(device_of(args.device))
    later = [bundle.system in after or is_joined(bundle) for bundle in bundles]
    systems = [None if late else system_of(bundle, device) for late, bundle in zip(later, bundles, strict=True)]

    @cache
    def data_of(scale: int) -> TrainingData:
        output_gsd_m = NATIVE_GSD_M / scale
        return load_data(args.on, output_gsd_m, scale) if args.on else shipped_data(None, output_gsd_m, scale)

    kinds = [b.system if system is None else system.name for b, system in zip(bundles, systems, strict=True)]
    names = names_of(bundles, kinds)
    sections: list[Section] = []
    for name, bundle, system in zip(names, bundles, systems, strict=True):
        if system is None and args.only in (None, "wald"):
            sections += _of_fusion(name, bundle, bundles, data_of(SCALE_10M), args, say)
        elif system is not None and args.only in (None, "images"):
            sections += _of_system(name, system, data_of, args, say)
        elif system is None and args.only == "images":
            say(f"{name} is judged by Wald's protocol: --only wald")
    sections = [listing(names, kinds, bundles), *comparison(sections), *sections]
    if not args.steps and args.only in (None, "scenes"):
        sections += _of_whole(names, bundles, data_of(SCALE_10M), args, say)
    return sections


def whole_choices(bundles: Sequence[Bundle]) -> list[Choice]:
    """Return every combination of super-resolver and matching fusion. Shipped weights fill in what is not given."""
    from pipeline.superres.registry import known
    from pipeline.superres.systems import DEFAULT
    from pipeline.superres.weights import choose

    after, shipped = fusions(), [tuple[str, ...]()]
    resolvers = [bundle for bundle in bundles if bundle.system not in after]
    choices = []
    for spec in known().values():
        first, rest = spec.weights[:1], spec.weights[1:]
        own = [(bundle.path,) for bundle in resolvers for one in first if one.fit(bundle)]
        given = [[f"{one.role}={bundle.path}" for bundle in bundles if one.fit(bundle)] for one in rest]
        others = [tuple(files) for files in product(*filter(None, given)) if files]
        if not resolvers and others and spec.name == DEFAULT:
            choices += [choose(spec.name, fusion) for fusion in others]
        choices += [choose(spec.name, (*sr, *fusion)) for sr in own for fusion in (others or shipped)]
    return choices


def _of_whole(
    names: Sequence[str],
    bundles: Sequence[Bundle],
    data: TrainingData,
    args: argparse.Namespace,
    say: Callable[[str], None],
) -> list[Section]:
    """Return the tables of whole systems."""
    from pipeline.superres.system import load
    from pipeline.superres.systems import PLAIN
    from pipeline.superres.weights import choose
    from training.loop.distributed import device_of
    from training.quality.names import names_of_whole
    from training.quality.whole import whole_sections

    choices, plain, device = whole_choices(bundles), load(choose(PLAIN), "cpu"), str(device_of(args.device))
    sections = []
    for name, choice in zip(names_of_whole(choices, names, bundles), choices, strict=True):
        system = load(choice, device)
        sections += whole_sections(f"{name}, all bands", system, plain, data, args.per_set, args.seed, say)
    return sections


def sheets_of(args: argparse.Namespace) -> int:
    """Return the maximum number of sheets per set."""
    from training.quality.land_cover import PLACES

    return min(args.per_set or PLACES, PLACES)


def _of_fusion(
    name: str,
    bundle: Bundle,
    others: Sequence[Bundle],
    data: TrainingData,
    args: argparse.Namespace,
    say: Callable[[str], None],
) -> list[Section]:
    """Return the tables of one fusion, and write its pictures if requested. It has no sampling steps to compare.

    `others`: all bundles of the evaluation, for fusions that follow one another.
    """
    from training import registry
    from training.quality import picture_fusion, wald
    from training.quality.report_fusion import fusion_sections

    task = registry.of_kind(bundle.system)
    if is_joined(bundle):
        say(f"{name} is judged with the fusion that reads its bands")
        return []
    if task is None or task.judge is None:
        raise UsageError(
            f"{bundle.path} holds {bundle.system}, which cannot be evaluated on its own",
            "weights that a system takes first, or of a task with a judge",
        )
    fuser = task.judge.loaded(bundle, others)
    if args.picture and isinstance(fuser, wald.Fuser):
        picture_fusion.write(name, fuser, data, args.picture, say, sheets_of(args))
    elif args.picture:
        say(f"{name}: no sheets, since these weights do not bring all bands to 2.5 m")
    if args.steps:
        return []
    return fusion_sections(name, fuser, task.judge, data, say, args.per_set)


def _of_system(
    name: str,
    system: System,
    data_of: Callable[[int], TrainingData],
    args: argparse.Namespace,
    say: Callable[[str], None],
) -> list[Section]:
    """Return the tables of one super-resolver, and write its pictures if requested. `data_of` a scale is the data."""
    from pipeline.superres.system import load
    from pipeline.superres.systems import PLAIN
    from pipeline.superres.weights import choose
    from training.degradation.degrade import Degradation
    from training.quality import picture, steps
    from training.quality.judge import Candidate
    from training.quality.pairs import held_out_pairs
    from training.quality.report import sr_sections

    try:
        candidate = Candidate(name, system, args.seed)
    except UsageError as error:
        if args.only == "images" or args.steps:
            raise
        say(f"{name} is not evaluated on held-out images: {error}")
        return []
    data, how = data_of(candidate.scale), Degradation(decimator=args.decimator).of_scale(candidate.scale)
    if args.picture:
        shown = held_out_pairs(data.held_out_chips(candidate.bands), how)
        picture.write(candidate, shown, data.all_tiles, args.picture, say, sheets_of(args))
    if args.steps:
        chips = data.held_out_chips(candidate.bands)
        pairs = held_out_pairs(chips, how, args.per_set or steps.PER_SET)
        return [steps.section(candidate, pairs, args.steps, how, say)]
    return sr_sections(candidate, load(choose(PLAIN), "cpu"), data, how, args.per_set, say, args.members)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Return the exit code."""
    args = parser(__doc__).parse_args(arguments)
    import torch

    from training.quality.tables import check_writable, csv_text, write_text

    torch.set_num_threads(args.threads)
    try:
        if args.out:
            check_writable(args.out)  # fail early: the evaluation takes minutes
        sections = evaluate(args, partial(print, file=sys.stderr, flush=True))
        report = "\n\n".join(f"### {section.title}\n\n{section.text}" for section in sections)
        print(report)
        if args.out:
            write_text(args.out, report + "\n")
            write_text(args.out.with_suffix(CSV), csv_text(sections))
    except PipelineError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped before the tables were complete", file=sys.stderr)
        return EXIT_AT_ONCE
    return 0


if __name__ == "__main__":
    sys.exit(main())
