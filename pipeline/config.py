"""`RunConfig`: the settings of a run with their defaults, frozen and readable from TOML."""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from datetime import date
from typing import TYPE_CHECKING, Any

from pipeline.bands import BAND_NAMES, CIRRUS, NO_CIRRUS
from pipeline.errors import UsageError
from pipeline.superres.precision import FLOAT32, PRECISIONS
from pipeline.superres.systems import DEFAULT

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

COMPOSITES = ("mosaic", "median", "none", "monthly")
CONSISTENCIES = ("sensor", "box", "tent", "none")
ESTIMATES = ("mean", "sample")
CHUNK_BANDS = ("all", "1")
FUSION_ROLE = "fusion"  # role of the weights given with --fusion-weights
MTF_RANGE = (0.05, 0.6)  # 2 / pi would be the MTF of averaging over a pixel alone
MOST_IN_BATCH = 64
_MAX_TOML_BYTES = 1_000_000
_BLOCK_CHUNKS = 4  # of shards, and of units of plans with several passes
_EXAMPLES = {  # for settings whose default does not show the format
    **dict.fromkeys(("start", "end"), 'a date in quotes, such as "2024-06-01"'),
    "weights": 'a list of files such as ["sr.safetensors", "fusion=fusion.safetensors"]',
    "bands": 'a list such as ["B02", "B03", "B04"]',
    "mtf": 'a list such as ["B02=0.25"]',
    "options": 'a list such as ["steps=50"]',
    "conditions": 'a list such as ["map=roads.gpkg"]',
    "offset": "0 or -1000",
    "chunk_bands": '"all" or "1"',
}


@dataclass(frozen=True)
class RunConfig:
    """Settings that decide the pixels and the layout of a store. Equal settings and scenes give equal stores."""

    catalog: str = "earth-search"
    start: str = ""  # first day, ISO 8601; empty: 90 days before `end`
    end: str = ""  # last day; empty: today
    max_cloud: float = 60.0  # per cent, of the whole scene
    composite: str = "mosaic"
    bands: tuple[str, ...] = ()  # empty: all 12, which every scene must then have
    sr: str = DEFAULT
    weights: tuple[str, ...] = ()  # bundles, "ROLE=FILE" or "FILE" for the first role; default: those of `sr`
    options: tuple[str, ...] = ()  # settings of `sr`, "NAME=VALUE"
    conditions: tuple[str, ...] = ()  # maps that `sr` takes, "NAME=FILE"
    estimate: str = "mean"  # the best estimate, or "sample" for one draw
    members: int = 0  # number of draws to average, 0: chosen by the system; more than one adds `uncertainty`
    seed: int = 0
    consistency: str = "sensor"
    precision: str = FLOAT32  # in which networks compute
    mtf: tuple[str, ...] = ()  # MTF at Nyquist instead of the default: "0.25", or by band "B02=0.25"
    exclude: tuple[str, ...] = ()  # scene ids to leave out
    offset: int | None = None  # BOA_ADD_OFFSET to add to the archive's DN, overriding rules and audit
    clip: bool = False  # mask pixels outside the polygon
    chunk_px: int = 480  # 1.2 km; a multiple of 24
    unit_chunks: int = 0  # maximum number of chunks per unit along one axis; 0: chosen by cost
    shard: bool = False  # one Zarr shard per unit: fewer files, but GDAL needs version 3.13 to read them
    chunk_bands: str = "all"  # bands in a chunk: "all", or "1" so that one band is read without the others
    batch: int = 0  # windows that networks compute at once, 0: chosen by the device that plans; changes the last bits

    def __post_init__(self) -> None:
        known_words = (("composite", COMPOSITES), ("consistency", CONSISTENCIES), ("estimate", ESTIMATES),
                       ("chunk_bands", CHUNK_BANDS), ("precision", PRECISIONS))  # fmt: skip
        for name, known in known_words:
            if getattr(self, name) not in known:
                raise UsageError(f"{name} = {getattr(self, name)!r}", f"one of {', '.join(known)}")
        unknown = [str(band) for band in self.bands if band not in BAND_NAMES]
        if unknown:
            asked = re.sub(r"^B(\d)(?=A?$)", r"B0\1", unknown[0].upper())  # B2 is B02, and not B12
            near = [asked] if asked in BAND_NAMES else difflib.get_close_matches(asked, BAND_NAMES, 1)
            expected = f"some of {', '.join(BAND_NAMES)}"
            hint = f"did you mean {near[0]}?" if near else ""
            hint = NO_CIRRUS if asked == CIRRUS else hint
            raise UsageError(f"no such band: {', '.join(unknown)}", expected, hint)
        if self.chunk_px <= 0 or self.chunk_px % 24:
            raise UsageError(f"chunk_px = {self.chunk_px}", "a positive multiple of 24 (60 m)")
        if self.unit_chunks < 0:
            raise UsageError(f"unit_chunks = {self.unit_chunks}", "at least 1, or 0 to have it chosen")
        if not 0 <= self.members <= 1000:
            raise UsageError(f"members = {self.members}", "0 to 1000")
        if self.estimate == "sample" and self.members > 1:
            raise UsageError(f"estimate = sample with members = {self.members}", "one draw", "leave out one of the two")
        if not 0 <= self.batch <= MOST_IN_BATCH:
            raise UsageError(f"batch = {self.batch}", f"1 to {MOST_IN_BATCH}, or 0 to have it chosen")
        _ = self.mtf_by_band, self.option_values, self.condition_files
        if not 0 <= self.seed < 2**64:
            raise UsageError(f"seed = {self.seed}", "0 to 2**64 - 1")
        if self.offset not in (None, 0, -1000):
            raise UsageError(f"offset = {self.offset}", "0 or -1000", "leave it out to use the archive's rule")
        if not 0 <= self.max_cloud <= 100:
            raise UsageError(f"max_cloud = {self.max_cloud}", "0 to 100 per cent")

    @property
    def band_names(self) -> tuple[str, ...]:
        """Bands of the store, in instrument order."""
        chosen = self.bands or BAND_NAMES
        return tuple(name for name in BAND_NAMES if name in chosen)

    @property
    def block_chunks(self) -> int:
        """Chunks of a square unit along one axis, where cost does not decide."""
        return self.unit_chunks or _BLOCK_CHUNKS

    @property
    def shard_chunks(self) -> int:
        """Chunks of a shard along one axis; 0 without shards."""
        return self.block_chunks if self.shard else 0

    @property
    def option_values(self) -> dict[str, str]:
        """Given options of the system, as text."""
        return _by_name("option", self.options)

    @property
    def condition_files(self) -> dict[str, str]:
        """Files of maps by the name of the condition."""
        return _by_name("condition", self.conditions)

    @property
    def mtf_by_band(self) -> tuple[tuple[str, float], ...]:
        """Given (band, MTF at Nyquist). A value without a band applies to all other bands."""
        found: dict[str, float] = {}
        for text in sorted(self.mtf, key=lambda text: "=" in text):
            name, _, number = text.rpartition("=")
            try:
                value = float(number)
            except ValueError:
                value = 0.0
            if (name and name not in BAND_NAMES) or not MTF_RANGE[0] <= value <= MTF_RANGE[1]:
                low, high = MTF_RANGE
                raise UsageError(f"mtf = {text!r}", f"a value from {low:g} to {high:g}, or BAND=VALUE such as B02=0.25")
            found |= dict.fromkeys([name] if name else BAND_NAMES, value)
        return tuple(sorted(found.items()))

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary, readable by `from_mapping`."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_mapping(cls, values: dict[str, Any], source: str = "configuration") -> RunConfig:
        """Build from names and values. Raises UsageError for unknown names and wrong types.

        `weights` may be one file, and `fusion_weights` adds "fusion=FILE" to them.
        """
        known = {field.name for field in fields(cls)}
        values = _with_weights(values, source)
        require_known(values, known, source)
        default = cls()
        for name, value in values.items():
            _check_type(name, value, getattr(default, name), source)
        settled: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return replace(default, **settled)

    @classmethod
    def from_toml(cls, path: Path) -> RunConfig:
        """Read the settings from a TOML file that holds no others. Raises UsageError."""
        return cls.from_mapping(read_toml(path), str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file. Raises UsageError if it cannot be read or is large."""
    try:
        if path.stat().st_size > _MAX_TOML_BYTES:
            raise UsageError(f"{path} is larger than 1 MB", "a short TOML file")
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", "a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML ({error})", 'lines such as composite = "mosaic"') from error


def require_known(names: Iterable[str], known: Collection[str], source: str) -> None:
    """Raise UsageError for names that are not `known`, with the nearest known one."""
    unknown = sorted(set(names) - set(known))
    if not unknown:
        return
    near = [found[0] for name in unknown if (found := difflib.get_close_matches(name, sorted(known), 1))]
    cure = f"did you mean {', '.join(near)}?" if near else ""
    raise UsageError(f"{source} names {', '.join(unknown)}", f"only {', '.join(sorted(known))}", cure)


def _by_name(flag: str, given: tuple[str, ...]) -> dict[str, str]:
    """Parse texts "NAME=VALUE" to {name: value}. Raises UsageError for other texts and for duplicate names."""
    found: dict[str, str] = {}
    for text in given:
        name, _, value = str(text).partition("=")
        if not name or not value:
            raise UsageError(f"--{flag} {text}", "NAME=VALUE")
        if name in found:
            raise UsageError(f"--{flag} names {name} twice", "one value")
        found[name] = value
    return found


def _with_weights(values: dict[str, Any], source: str) -> dict[str, Any]:
    """Return `values` with all weights in one list."""
    values = dict(values)
    for name in ("weights", "fusion_weights"):
        if isinstance(values.get(name), str):
            values[name] = [values[name]] if values[name] else []
    fusion = values.pop("fusion_weights", [])
    _check_type("fusion_weights", fusion, (), source)
    if fusion:
        _check_type("weights", values.get("weights", []), (), source)
        values["weights"] = [*values.get("weights", []), *(f"{FUSION_ROLE}={file}" for file in fusion)]
    return values


def _check_type(name: str, value: object, default: object, source: str) -> None:
    kinds: dict[type, tuple[type, ...]] = {float: (int, float), tuple: (list, tuple), type(None): (int, type(None))}
    expected = kinds.get(type(default), (type(default),))
    if not isinstance(value, expected) or (isinstance(value, bool) and not isinstance(default, bool)):
        example = _EXAMPLES.get(name, f"a value like {default!r}")
        raise UsageError(f"{source}: {name} = {value if isinstance(value, date) else repr(value)}", example)


def differences(one: RunConfig, other: RunConfig) -> list[str]:
    """Return the settings that differ, as "name: a -> b"."""
    pairs = [(field.name, getattr(one, field.name), getattr(other, field.name)) for field in fields(one)]
    return [f"{name}: {a!r} -> {b!r}" for name, a, b in pairs if a != b]
