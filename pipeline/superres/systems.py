"""The super-resolution systems by name: what each implements, and how one is loaded.

In: a name and weights bundles. Out: a `System` ready to run. Imports models, grid and hub; no I/O but the bundles.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from pipeline.errors import UsageError
from pipeline.grid.lattice import Lattice
from pipeline.superres import hub

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from torch import Tensor

    from pipeline.models.bundle import Bundle, NoiseSource

SceneState = dict[str, list[float]]


class SuperResolver(Protocol):
    """RGB (or more) from 10 m to 2.5 m. What every diffusion, cascade or plain network here implements."""

    bundle: Bundle

    @property
    def in_bands(self) -> tuple[str, ...]:
        """Bands it wants, in its channel order."""
        ...

    @property
    def out_bands(self) -> tuple[str, ...]:
        """Bands it gives, in its channel order."""
        ...

    scale: int
    stochastic: bool
    needs_state: bool  # whether `predict` wants what `scene_state` returned

    def to(self, device: torch.device) -> SuperResolver:
        """Move the weights and return self."""
        ...

    def scene_state(self, windows: Tensor) -> SceneState:
        """What the network needs to know of a whole scene, from fixed windows (K, c, 64, 64) of reflectance."""
        ...

    def predict(
        self,
        lr: Tensor,
        conditions: Mapping[str, Tensor],
        valid: Tensor,
        noise: NoiseSource,
        state: SceneState | None,
    ) -> Tensor:
        """Reflectance (b, c_out, 4h, 4w) from reflectance (b, c_in, h, w); `valid` (b, 1, h, w) bool."""
        ...


@runtime_checkable
class Regressor(Protocol):
    """A super-resolver that gives the conditional mean without draws."""

    def mean(self, lr: Tensor) -> Tensor:
        """Reflectance (b, c_out, 4h, 4w) from reflectance (b, c_in, h, w)."""
        ...


class Fuser(Protocol):
    """The other bands at 2.5 m, guided by the super-resolved RGB."""

    bundle: Bundle
    out_bands: tuple[str, ...]

    def to(self, device: torch.device) -> Fuser:
        """Move the weights and return self."""
        ...

    def predict(self, rgb_sr: Tensor, ms: Mapping[int, Tensor], present: tuple[str, ...]) -> Tensor:
        """Reflectance (b, len(out_bands), 4h, 4w) from RGB (b, 3, 4h, 4w) and native rasters by GSD in metres.

        `ms[10]` is (b, 4, h, w) of B04 B03 B02 B08, `ms[20]` (b, 6, h/2, w/2), `ms[60]` (b, 2, h/6, w/6); bands that
        the product lacks are zeros and not among `present`.
        """
        ...


# Channel order of the native rasters that a Fuser is given.
FUSION_INPUTS: dict[int, tuple[str, ...]] = {
    10: ("B04", "B03", "B02", "B08"),
    20: ("B05", "B06", "B07", "B8A", "B11", "B12"),
    60: ("B01", "B09"),
}
MEMBERS = 4  # draws that are averaged where a system has no regression and nothing else is asked for
DEFAULT_LATTICE = Lattice(480, 384, 48, 24)
_SHIPPED = "shipped:"
WEIGHTS = Path(__file__).resolve().parent.parent / "models" / "weights"


@dataclass(frozen=True)
class Spec:
    """A known system: default weights (file names beside the package, or None where the user must bring them)."""

    name: str
    summary: str
    sr_system: str | None  # `Bundle.system` that its super-resolver bundle must carry
    fusion_systems: tuple[str, ...]
    sr_weights: str | None
    fusion_weights: str | None
    regresses: bool = False  # whether its super-resolver gives the conditional mean without draws


SYSTEMS: dict[str, Spec] = {
    "lite": Spec(
        "lite",
        "our small diffusion network and fusion net, for CPU and GPU",
        "lite-sr",
        ("lite-fusion",),
        "lite-sr.safetensors",
        "lite-fusion.safetensors",
        regresses=True,
    ),
    "difffusr": Spec(
        "difffusr",
        "DiffFuSR's networks (arXiv 2506.11764), weights converted from the authors' release",
        "difffusr-sr",
        ("difffusr-fusion", "lite-fusion"),
        None,
        "lite-fusion.safetensors",
    ),
    "bicubic": Spec(
        "bicubic", "interpolation and projection: the honest baseline, invents nothing", None, (), None, None
    ),
}


PLUGINS = "sen2fine.systems"  # group of entry points
_KNOWN = tuple(spec.sr_system for spec in SYSTEMS.values() if spec.sr_system)
_BUILDERS: dict[str, Callable[[Bundle], SuperResolver]] = {}  # by `Bundle.system`, of systems that `register` added


def register(spec: Spec, resolver: Callable[[Bundle], SuperResolver]) -> None:
    """Make a system of one's own known in this process as `--sr NAME`; `resolver` builds it from its bundle.

    Commands and workers are processes of their own: a package that names the module which calls this as an entry point
    of the group `sen2fine.systems` is found by all of them. UsageError for a name that is taken, or one without bundle.
    """
    if spec.sr_system is None:
        raise UsageError(f"system {spec.name} names no kind of bundle", "the `system` that its bundle is saved with")
    taken = spec.sr_system in _KNOWN or SYSTEMS.get(spec.name, spec) != spec
    if taken:
        raise UsageError(f"system {spec.name} ({spec.sr_system}) is there already", "a name of its own")
    SYSTEMS[spec.name] = spec
    _BUILDERS[spec.sr_system] = resolver


@lru_cache(maxsize=1)
def _installed() -> None:
    """Import, once, the modules with which installed packages register systems."""
    for entry in entry_points(group=PLUGINS):
        entry.load()


@dataclass(frozen=True)
class Choice:
    """A system with its weights settled: where they are and their sha256, which is what a plan records. JSON-able.

    Weights that ship with the package are named "shipped:FILE", those of the hub by their address with its commit, so
    that a plan made here runs on another machine.
    """

    name: str
    sr_weights: str = ""
    sr_digest: str = ""
    fusion_weights: str = ""
    fusion_digest: str = ""
    licence: str = ""
    generated_bands: tuple[str, ...] = ()


@dataclass(frozen=True)
class System:
    """A loaded system. `resolver` and `fuser` are None for bicubic."""

    name: str
    lattice: Lattice
    resolver: SuperResolver | None
    fuser: Fuser | None
    device: torch.device


def draws(name: str, estimate: str, members: int) -> int:
    """How many draws of a system an estimate takes: those asked for; else as few as give it, 0 being a regression.

    An average of draws without a regression takes `MEMBERS`. UsageError where several are asked for of one sample.
    """
    if estimate == "sample":
        if members > 1:
            raise UsageError(
                f"estimate = sample with members = {members}", "one draw", "leave --members out, or --estimate sample"
            )
        return 1
    if members:
        return members
    spec = SYSTEMS[name]
    return 0 if spec.sr_system is None or spec.regresses else MEMBERS


def choose(name: str, sr_weights: str = "", fusion_weights: str = "") -> Choice:
    """Settle which weights `name` runs with, reading only their descriptions. UsageError on unknown or unfit ones."""
    if name not in SYSTEMS:
        _installed()
    spec = SYSTEMS.get(name)
    if spec is None:
        raise UsageError(f"--sr {name} is not known", f"one of {', '.join(SYSTEMS)}")
    if spec.sr_system is None:
        if sr_weights or fusion_weights:
            raise UsageError(f"--sr {name} takes no weights", cure="drop --weights, or choose --sr lite or difffusr")
        return Choice(name)
    sr_weights = _settled(sr_weights, spec.sr_weights)
    sr = _described(sr_weights, (spec.sr_system,), name, "--weights")
    fusion_weights = _settled(fusion_weights, spec.fusion_weights)
    fusion = _described(fusion_weights, spec.fusion_systems, name, "--fusion-weights")
    licence = "; ".join(dict.fromkeys(text for text in (sr.licence, fusion.licence) if text))
    bands = tuple(dict.fromkeys((*sr.out_bands, *fusion.out_bands)))
    where = _absolute(sr_weights), _absolute(fusion_weights)
    return Choice(name, where[0], sr.digest, where[1], fusion.digest, licence, bands)


def _settled(given: str, shipped: str | None) -> str:
    """The weights meant: an address of the hub with its commit (the hub is asked here), a path, or a shipped file."""
    if hub.is_address(given):
        return hub.settle(given)[0]
    if "://" in given:
        raise UsageError(f"weights {given} are no path", f"a path, or {hub.GRAMMAR}")
    return given or (_SHIPPED + shipped if shipped else "")


def _absolute(weights: str) -> str:
    """Paths as workers need them, who may run in another folder; other names as they are."""
    return weights if hub.is_address(weights) or weights.startswith(_SHIPPED) else str(Path(weights).resolve())


def shown(weights: str) -> str:
    """Weights as a published store names them: a path without its folder, which is nobody's business."""
    return weights if hub.is_address(weights) or weights.startswith(_SHIPPED) else Path(weights).name


def locate(weights: str) -> Path:
    """The file of weights that a plan names, on this machine; those of the hub are fetched again where they lack."""
    if hub.is_address(weights):
        return hub.located(weights)
    return WEIGHTS / weights.removeprefix(_SHIPPED) if weights.startswith(_SHIPPED) else Path(weights)


def _described(path: str, systems: tuple[str, ...], name: str, flag: str) -> Bundle:
    from pipeline.models.bundle import BundleError, load_bundle

    if not path:
        raise UsageError(
            f"--sr {name} needs weights",
            "a converted bundle (.safetensors)",
            f"make one with python -m training.convert and give it with {flag} FILE",
        )
    try:
        bundle = load_bundle(locate(path))
    except BundleError as error:
        expected, cure = error.expected or "a bundle written by this project", error.cure
        raise UsageError(error.found, expected, cure or f"give another file with {flag}") from error
    if bundle.system not in systems:
        raise UsageError(f"weights {path} are for {bundle.system!r}", " or ".join(systems), f"give another with {flag}")
    return bundle


@lru_cache(maxsize=2)
def load(choice: Choice, device_name: str) -> System:
    """Load `choice` once per process and keep it. UsageError when the files are no longer those the plan recorded."""
    import torch

    device = torch.device(device_name)
    if not choice.sr_weights:
        return System(choice.name, DEFAULT_LATTICE, None, None, device)
    from pipeline.models.bundle import BundleError, load_bundle

    try:
        sr_bundle = load_bundle(locate(choice.sr_weights), choice.sr_digest)
        fusion_bundle = load_bundle(locate(choice.fusion_weights), choice.fusion_digest)
        resolver = _resolver(sr_bundle).to(device)
        fuser = _fuser(fusion_bundle).to(device)
    except BundleError as error:
        raise UsageError(
            error.found,
            "weights that fit, the same as when the plan was made",
            "restore them (delete a file of the hub's cache, it is fetched anew), or start a new store",
        ) from error
    return System(choice.name, _lattice(sr_bundle), resolver, fuser, device)


def lattice_of(choice: Choice) -> Lattice:
    """Lattice of a choice without loading its networks."""
    if not choice.sr_weights:
        return DEFAULT_LATTICE
    from pipeline.models.bundle import load_bundle

    return _lattice(load_bundle(locate(choice.sr_weights)))


def _lattice(bundle: Bundle) -> Lattice:
    spec = bundle.lattice
    return Lattice(spec.window_px, spec.stride_px, spec.ramp_px, spec.margin_px)


def _resolver(bundle: Bundle) -> SuperResolver:
    if bundle.system not in _KNOWN and bundle.system not in _BUILDERS:
        _installed()
    if bundle.system in _BUILDERS:
        return _BUILDERS[bundle.system](bundle)
    if bundle.system == "lite-sr":
        from pipeline.models.lite import LiteSuperResolver

        return LiteSuperResolver.from_bundle(bundle)
    from pipeline.models.difffusr import DiffFuSR

    return DiffFuSR.from_bundle(bundle)


def _fuser(bundle: Bundle) -> Fuser:
    if bundle.system == "lite-fusion":
        from pipeline.models.lite_fusion import LiteFusion

        return LiteFusion.from_bundle(bundle)
    from pipeline.models.difffusr_fusion import DiffFuSRFusion

    return DiffFuSRFusion.from_bundle(bundle)
