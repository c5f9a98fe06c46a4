"""Which weights a run uses: shipped, a file, or from the hub, identified by digest so that a plan can record them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.superres import hub, passes
from pipeline.superres.declared import Value, settled
from pipeline.superres.registry import spec_of
from pipeline.superres.spec import MEMBERS, draws, mean_draws, stochastic
from pipeline.superres.systems import DEFAULT, PLAIN

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pipeline.models.bundle import Bundle
    from pipeline.superres.spec import Memory, Stage, SystemSpec, Weights

SHIPPED = Path(__file__).resolve().parent.parent / "models" / "weights"
_SHIPPED = "shipped:"


@dataclass(frozen=True)
class File:
    """A weights file: its role in the system, where it is, and its sha256.

    Shipped weights are named "shipped:FILE", those of the hub by their address with its commit, so that a plan also
    runs on another machine.
    """

    role: str
    where: str
    sha256: str

    @property
    def shown(self) -> str:
        """Name in a published store: a path without its folder, so that local paths do not leak."""
        return self.where if _moves(self.where) else Path(self.where).name


@dataclass(frozen=True)
class Choice:
    """A system with its weights settled, as a plan records it; JSON-able.

    `stochastic` and `mean_draws` are those of its stages, so that a plan can be read without the system.
    """

    name: str
    weights: tuple[File, ...] = ()
    licence: str = ""
    credits: str = ""  # of the data that the weights were trained on
    generated_bands: tuple[str, ...] = ()
    stochastic: bool = False
    mean_draws: int = 0
    options: tuple[tuple[str, Value], ...] = ()  # all of the system's, by name
    notes: tuple[str, ...] = ()  # what a user should know of the weights
    synthetic: str = ""  # what the detail is, where it is not an estimate of the ground
    restyled: bool = False  # whether colours are other than those measured

    def of(self, role: str) -> File | None:
        """Return the weights file of a role, or None."""
        return next((file for file in self.weights if file.role == role), None)

    def draws(self, estimate: str, members: int) -> int:
        """Return how many draws an estimate averages; 0 if nothing is drawn. Raises as `spec.draws`."""
        return draws(estimate, members, stochastic=self.stochastic, mean_draws=self.mean_draws)


def choose(name: str, given: Sequence[str] = (), options: Mapping[str, Value] | None = None) -> Choice:
    """Settle the weights and options of `name`, reading only metadata. Raises UsageError for unknown or unfit ones.

    `given` are files or addresses, for the system's first role unless prefixed with "ROLE="; other roles take the
    shipped weights. Options may be text; those left out have their default.
    """
    spec = spec_of(name)
    settings = settled(spec.options, options or {}, name)
    taken = spec.weights_for(settings)
    wanted = _by_role(spec, taken, given)
    files, bundles = [], {}
    for weights in taken:
        where = _settled(wanted.get(weights.role, weights.named), weights)
        bundle = _described(where, weights, spec)
        files.append(File(weights.role, _absolute(where), bundle.digest))
        bundles[weights.role] = bundle
    stages = passes.stages_of(spec, bundles, settings)
    mapped = any(condition.classes for condition in spec.conditions_for(settings))
    return Choice(
        name=name,
        weights=tuple(files),
        licence=_joined(bundle.licence for bundle in bundles.values()),
        credits=_joined(str(bundle.provenance.get("credits", "")) for bundle in bundles.values()),
        notes=tuple(note for bundle in bundles.values() for note in _notes(bundle, mapped=mapped)),
        generated_bands=tuple(dict.fromkeys(band for stage in stages for band in stage.gives)),
        stochastic=stochastic(stages),
        mean_draws=mean_draws(stages),
        options=tuple(settings.items()),
        synthetic=spec.synthetic,
        restyled=spec.restyles(settings),
    )


@lru_cache(maxsize=8)
def stages_of(choice: Choice) -> tuple[Stage, ...]:
    """Return the stages of a choice, without loading its networks."""
    return passes.stages_of(spec_of(choice.name), bundles_of(choice), dict(choice.options))


@lru_cache(maxsize=8)
def memory_of(choice: Choice) -> Memory:
    """Return the memory that the networks of a choice need."""
    spec = spec_of(choice.name)
    return spec.memory if spec.memory_of is None else spec.memory_for(bundles_of(choice))


def bundles_of(choice: Choice) -> dict[str, Bundle]:
    """Return the metadata of the weights by role. Raises BundleError if a file is no longer the one that was chosen."""
    from pipeline.models.bundle import load_bundle

    return {file.role: load_bundle(locate(file.where), file.sha256) for file in choice.weights}


def locate(where: str) -> Path:
    """Return the local file of weights that a plan names. Missing files of the hub are fetched again."""
    if hub.is_address(where):
        return hub.located(where)
    return SHIPPED / where.removeprefix(_SHIPPED) if where.startswith(_SHIPPED) else Path(where)


def _by_role(spec: SystemSpec, taken: Sequence[Weights], given: Sequence[str]) -> dict[str, str]:
    """Return the weights files by role. Raises UsageError for more than the system takes."""
    roles = [weights.role for weights in taken]
    found: dict[str, str] = {}
    for text in given:
        role, _, where = text.partition("=")
        if roles and where and role not in roles and role.isidentifier() and not Path(text).exists():
            raise UsageError(
                f"--weights {text}: with these options --sr {spec.name} has no weights {role}",
                f"one of {', '.join(f'{one}=FILE' for one in roles)}",
            )
        if role not in roles or not where:
            role, where = (roles or [""])[0], text
        if not role:
            raise UsageError(f"--sr {spec.name} takes no weights", cure="drop --weights, or choose another --sr")
        if role in found:
            others = ", ".join(f"{role}=FILE" for role in roles[1:])
            raise UsageError(
                f"--weights names {found[role]} and {where} for {role}",
                f"one file, or {others} for the others" if others else "one file",
            )
        found[role] = where
    return found


def _settled(given: str, weights: Weights) -> str:
    """Return the weights meant: a hub address with its commit (which asks the hub), a path, or a shipped file."""
    if hub.is_address(given):
        return hub.settle(given)[0]
    if "://" in given:
        raise UsageError(f"weights {given} are no path", f"a path, or {hub.GRAMMAR}")
    return given or (_SHIPPED + weights.shipped if weights.shipped else "")


def _moves(where: str) -> bool:
    """Return whether the name means the same file on every machine."""
    return hub.is_address(where) or where.startswith(_SHIPPED)


def _absolute(where: str) -> str:
    """Return a path as absolute, since workers may run in another folder; other names stay as they are."""
    return where if _moves(where) else str(Path(where).resolve())


def _described(where: str, weights: Weights, spec: SystemSpec) -> Bundle:
    from pipeline.models.bundle import CONVERT, BundleError, load_bundle

    first = weights.role == spec.weights[0].role
    flag = "--weights" if first else f"--weights {weights.role}="
    if not where:
        raise UsageError(
            f"--sr {spec.name} needs weights",
            "a converted bundle (.safetensors)",
            f"make one with python -m training.convert and give it with {flag}{' ' if first else ''}FILE",
        )
    path = locate(where)
    if path.is_dir() and (advice := _converting(path, weights, flag)):
        raise UsageError(f"the {weights.role} {where} is a folder", "one file of weights", advice)
    try:
        bundle = load_bundle(path)
    except BundleError as error:
        expected, cure = error.expected or "a bundle written by this project", error.cure
        if CONVERT in cure and (advice := _converting(path, weights, flag)):
            cure = cure.replace(CONVERT, advice)
        raise UsageError(error.found, expected, cure or f"give another file with {flag}") from error
    if bundle.system not in weights.kinds:
        fitting = " or ".join(weights.kinds)
        raise UsageError(f"weights {where} are for {bundle.system!r}", fitting, f"give another with {flag}")
    if not weights.fit(bundle):
        found = f"weights {where} are for {', '.join(bundle.out_bands)}"
        raise UsageError(found, ", ".join(weights.bands), f"give another with {flag}")
    return bundle


def _converting(path: Path, weights: Weights, flag: str) -> str:
    """Return the commands that make weights of what lies at a path and take them; "" if none is known."""
    command = "" if weights.conversion is None else weights.conversion(path)
    made = shlex.quote(f"{path.resolve().stem}-{weights.role}.safetensors")
    return command and f"{command} --out {made}, then {flag}{'' if flag.endswith('=') else ' '}{made}"


def _notes(bundle: Bundle, *, mapped: bool) -> list[str]:
    """What to say of weights whose training ended early, or, if a map is read, that never saw some of its classes."""
    name, notes = Path(bundle.path).name, []
    if untrained := _listed(bundle.provenance.get("untrained")):
        notes.append(f"the weights {name} are unfinished: {' and '.join(untrained)} was not trained")
    shown = _listed(bundle.provenance.get("map_classes_shown"))
    unseen = [one for one in _listed(bundle.architecture.get("classes")) if one not in shown]
    if mapped and shown and unseen:
        notes.append(f"the weights {name} were trained on maps without {', '.join(unseen)}: these change nothing")
    return notes


def _listed(value: object) -> list[str]:
    """The words of a list in a bundle's metadata; none if it is something else."""
    return [str(one) for one in value] if isinstance(value, list) else []


def _joined(texts: Iterable[str]) -> str:
    """Those that say something, each once."""
    return "; ".join(dict.fromkeys(text for text in texts if text))


def from_older(system: Mapping[str, object]) -> Choice:
    """Return the choice of a plan up to format 3, which recorded a super-resolver and a fusion.

    Of the systems of that time, only the default one regressed, and only interpolation drew nothing.
    """
    spec = spec_of(str(system["name"]))
    roles = [("sr", "sr_weights", "sr_digest"), ("fusion", "fusion_weights", "fusion_digest")]
    files = (File(role, str(system[where]), str(system[digest])) for role, where, digest in roles)
    bands = system["generated_bands"]
    return Choice(
        name=spec.name,
        weights=tuple(file for file in files if file.where),
        licence=str(system["licence"]),
        generated_bands=tuple(map(str, bands)) if isinstance(bands, list | tuple) else (),
        stochastic=spec.name != PLAIN,
        mean_draws=0 if spec.name in (PLAIN, DEFAULT) else MEMBERS,
    )


def to_older(choice: Choice) -> dict[str, object]:
    """Return what a plan up to format 3 recorded; the inverse of `from_older`."""
    files = {role: choice.of(role) for role in ("sr", "fusion")}
    record: dict[str, object] = {"name": choice.name}
    for role, file in files.items():
        record |= {f"{role}_weights": file.where if file else "", f"{role}_digest": file.sha256 if file else ""}
    return {**record, "licence": choice.licence, "generated_bands": list(choice.generated_bands)}
