"""The training file: a TOML file with the sources of a training run. Its source keys are the fields of `Source`.

Errors are one-line UsageErrors that name the file and the source. See `training/example.toml` for an annotated example.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import os
import re
import tomllib
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.bands import BAND_NAMES, CANONICAL_OFFSET_DN, RGB
from pipeline.errors import UsageError
from training.data.rasters import GAMMA_BANDS, default_data

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

DATA_VARIABLE = "SEN2FINE_DATA"  # the only environment variable with a default
OUTPUT_GSD_M = 2.5  # of most networks
TARGET_RANGE = (0.76, 1.28)  # of the default `target_gsd_m`, relative to the GSD of the network's output
SENTINEL2_GSD_M = 10.0
MAX_TOML_BYTES = 1_000_000
Role = Literal["hr", "sentinel2", "pair", "triplets"]
_CHOICES: dict[str, tuple[str, ...]] = {
    "role": ("hr", "sentinel2", "pair", "triplets"),
    "values": ("8-bit", "reflectance"),
    "split": ("by-place", "train", "held-out"),
}
_WHERE = ("path", "zarr", "catalog")  # exactly one of them per source
_ONLY_WITH = {
    **dict.fromkeys(("collection", "aoi", "period", "max_cloud", "asset"), "catalog"),
    "variable": "zarr",
    "dates": "path",
}
_OF_PAIRS = ("coarse", "coarse_bands", "coarse_scale", "coarse_offset", "date", "most_days", "registered")
_PATTERN = re.compile(r"[*?\[]")


def target_gsd_m(output_m: float) -> tuple[float, float]:
    """Return the default range of the GSD of training patches, for a network whose output has `output_m`."""
    low, high = (round(factor * output_m, 3) for factor in TARGET_RANGE)
    return low, high


@dataclass(frozen=True)
class Source:
    """One set of images: location, value encoding and use. Field names are the TOML keys."""

    name: str
    # "hr": sharp images as SR targets; "pair": sharp images and coarse ones of the same ground; "triplets": these with
    # maps, a store of training.triplets; "sentinel2": L2A scenes, for fusion and as 10 m images for SR
    role: Role
    path: str = ""  # folder, file or glob; absolute after parsing
    zarr: str = ""  # a Zarr store
    variable: str = ""  # of the store
    catalog: str = ""  # known name, TOML, or address of a STAC API; or a STAC file
    collection: str = ""  # default: the catalogue's own
    aoi: str = ""  # GeoJSON file
    period: str = ""  # "2020-01/2021-12"
    max_cloud: float = 100.0  # percent, Sentinel-2 scenes only
    asset: str = "image"  # of the items
    bands: tuple[tuple[str, int | str], ...] = ()  # (B04 | B03 | B02 | ..., 1-based raster band or its name)
    dates: int = 1  # number of dates stacked in one file
    gsd_m: float | None = None  # None: from the georeferencing
    target_gsd_m: tuple[float, float] = target_gsd_m(OUTPUT_GSD_M)  # drawn uniformly per patch
    evaluate_gsd_m: float = OUTPUT_GSD_M
    values: Literal["8-bit", "reflectance"] = "8-bit"
    scale: float = 1.0  # reflectance = stored * scale + offset
    offset: float = 0.0
    offset_dn: int | None = None  # BOA offset if the Sentinel-2 files do not state it: 0 or -1000
    place: str = ""  # regex; its first group names the place
    family: str = ""  # shared by sources with common places
    split: Literal["by-place", "train", "held-out"] = "by-place"
    weight: float = 1.0  # sampling weight, relative to its size
    images_per_place: int = 0  # maximum evaluated per named place; 0: all
    evaluated: bool = True  # False for GSDs far from 2.5 m, used for training only
    watched: bool = False  # scenes used to tune and validate fusion, not to train it
    coarse: str = ""  # of pairs: glob of the coarse images beside each sharp one, with {stem} and {1} of its name
    coarse_bands: tuple[tuple[str, int | str], ...] = ()  # default: as `bands`
    coarse_scale: float = 1e-4  # reflectance of coarse images = stored * coarse_scale + coarse_offset
    coarse_offset: float = 0.0
    date: str = ""  # regex for the names of both images: its first group is the day, such as 20210704
    most_days: int = 0  # between both images of a pair; 0: any
    registered: bool = True  # False leaves the shift between both images
    target_stated: bool = field(default=False, metadata={"internal": True})  # whether the file gave `target_gsd_m`
    label: str = field(default="", metadata={"internal": True})  # file and source, the start of messages

    @property
    def where(self) -> str:
        """Path, store or catalogue."""
        return self.path or self.zarr or self.catalog

    @property
    def offers(self) -> tuple[str, ...]:
        """Bands of its images, RGB first; RGB if the file does not list bands."""
        return ordered(dict(self.bands)) if self.bands else RGB

    def fault(self, found: str, expected: str = "", cure: str = "") -> UsageError:
        """Return a UsageError about this source."""
        return UsageError(f"{self.label or self.name}: {found}", expected, cure)


@dataclass(frozen=True)
class TrainingFile:
    """A parsed training file. `digest`: SHA-256 of its bytes."""

    path: Path
    name: str
    licence: str
    digest: str
    sources: tuple[Source, ...]
    output_gsd_m: float = OUTPUT_GSD_M  # of the network that it is read for


def read_training_file(path: Path, root: Path | None = None, gsd_m: float = OUTPUT_GSD_M) -> TrainingFile:
    """Parse and check a training file. `root`, if given, replaces ${SEN2FINE_DATA}. Raises UsageError.

    `gsd_m` is the GSD of the network's output, from which the defaults of `target_gsd_m` and `evaluate_gsd_m` follow.
    """
    raw = _read(path)
    try:
        content = tomllib.loads(raw.decode("utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not TOML ({error})", "a training file as in training/example.toml") from None
    top = {"name": str, "licence": str, "source": list}
    for key, value in content.items():
        if key not in top:
            raise UsageError(f"{path}: unknown key {key!r}", f"{', '.join(top)}", _nearest(key, list(top)))
        if not isinstance(value, top[key]):
            raise UsageError(
                f"{path}: {key} = {value!r:.60}", "[[source]] tables" if key == "source" else "a text in quotes"
            )
    tables = content.get("source", [])
    if not tables or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{path} names no source", "at least one [[source]]")
    sources = tuple(_source(path, index, table, root, gsd_m) for index, table in enumerate(tables, 1))
    names = [source.name for source in sources]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UsageError(f"{path}: two sources are called {twice[0]!r}", "a name of its own for each")
    digest = hashlib.sha256(raw).hexdigest()
    return TrainingFile(path, content.get("name", path.stem), content.get("licence", ""), digest, sources, gsd_m)


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise UsageError(f"{path} is no file", "a training file", "start from training/example.toml")
    raw = path.read_bytes()
    if len(raw) > MAX_TOML_BYTES:
        raise UsageError(f"{path} is larger than {MAX_TOML_BYTES // 10**6} MB", "a training file")
    return raw


def _nearest(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, 1, 0.5)
    return f"did you mean {near[0]!r}?" if near else ""


def _source(path: Path, index: int, table: dict[str, Any], root: Path | None, gsd_m: float) -> Source:
    """Parse one table as a `Source`. Raises UsageError that names the file and the source."""
    label = f"{path}: source {table.get('name', index)!r}"
    known = [entry.name for entry in fields(Source) if not entry.metadata.get("internal")]
    for key in table:
        if key not in known:
            raise UsageError(f"{label}: unknown key {key!r}", f"one of {', '.join(known)}", _nearest(key, known))
    for entry in fields(Source):
        if entry.default is MISSING and entry.name not in table:
            raise UsageError(f"{label}: no {entry.name}", f'{entry.name} = "..."')
    values: dict[str, Any] = {key: _checked(label, key, value) for key, value in table.items()}
    _check_where(label, values)
    for key in (*_WHERE, "aoi"):
        if key in values:
            values[key] = _located(label, key, values[key], path.parent, root)
    for key in ("place", "date"):
        _check_regex(label, key, values.get(key, ""))
    return _with_scales(label, values, gsd_m)


_NUMBERS = ("gsd_m", "evaluate_gsd_m", "scale", "offset", "weight", "max_cloud", "coarse_scale", "coarse_offset")
_POSITIVE = ("gsd_m", "evaluate_gsd_m", "scale", "weight", "coarse_scale")


def _checked(label: str, key: str, value: object) -> object:
    """Return the value of one key in the type of its field. Raises UsageError if it does not fit."""
    wrong = f"{label}: {key} = {value!r:.60}"
    if key in ("bands", "coarse_bands"):
        return _bands(label, value, key)
    if key == "target_gsd_m":
        return _range(wrong, value)
    if key in ("evaluated", "watched", "registered"):
        if not isinstance(value, bool):
            raise UsageError(wrong, "true or false")
        return value
    if key in _NUMBERS:
        number = _number(value)
        if number is None or (key in _POSITIVE and number <= 0):
            raise UsageError(wrong, "a number above 0" if key in _POSITIVE else "a number")
        return number
    if key in ("dates", "images_per_place", "most_days"):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(wrong, "a whole number of at least 1")
        return value
    if key == "offset_dn":
        if value not in (0, CANONICAL_OFFSET_DN) or isinstance(value, bool):
            raise UsageError(wrong, f"0 or {CANONICAL_OFFSET_DN}")
        return value
    if not isinstance(value, str) or not value.strip():
        raise UsageError(wrong, "a text in quotes")
    if key in _CHOICES and value not in _CHOICES[key]:
        raise UsageError(wrong, f"one of {', '.join(_CHOICES[key])}", _nearest(value, _CHOICES[key]))
    return value


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _range(wrong: str, value: object) -> tuple[float, float]:
    """Parse one GSD or a range (low, high)."""
    ends = [_number(end) for end in (value if isinstance(value, list) else [value, value])]
    if len(ends) == 2 and ends[0] is not None and ends[1] is not None and 0 < ends[0] <= ends[1]:
        return ends[0], ends[1]
    raise UsageError(wrong, f"metres, or a range of them such as {list(target_gsd_m(OUTPUT_GSD_M))}")


def _bands(label: str, value: object, key: str) -> tuple[tuple[str, int | str], ...]:
    example = 'a table such as { B04 = 1, B03 = 2, B02 = 3 }, or a list such as ["B02", "B03", "B04", "B08"]'
    if isinstance(value, list) and value and len({*map(str, value)}) == len(value):
        value = {str(band): number for number, band in enumerate(value, 1)}
    if not isinstance(value, dict) or not value:
        raise UsageError(f"{label}: {key} = {value!r:.60}", example)
    for band, where in value.items():
        if band not in BAND_NAMES:
            raise UsageError(f"{label}: {key} names {band!r}", f"some of {', '.join(BAND_NAMES)}")
        if isinstance(where, bool) or not isinstance(where, int | str) or where in (0, ""):
            raise UsageError(
                f"{label}: {key}.{band} = {where!r:.40}", f"a band's number from 1 on, or its name: {example}"
            )
    return tuple(value.items())


def _check_where(label: str, values: dict[str, Any]) -> None:
    """Raise UsageError unless there is exactly one location and every key applies to it."""
    given = [key for key in _WHERE if key in values]
    if len(given) != 1:
        raise UsageError(f"{label}: {' and '.join(given) or 'none'} of {', '.join(_WHERE)}", "exactly one of them")
    for key in values:
        if _ONLY_WITH.get(key, given[0]) != given[0]:
            raise UsageError(f"{label}: {key} without {_ONLY_WITH[key]}", f"{key} only beside {_ONLY_WITH[key]}")
    if given == ["catalog"] and "aoi" not in values:
        raise UsageError(f"{label}: catalog without aoi", 'aoi = "area.geojson"')
    triplets = values["role"] == "triplets"
    if triplets and given != ["zarr"]:
        raise UsageError(f"{label}: role triplets with {given[0]}", 'zarr = "triplets.zarr"')
    if given == ["zarr"] and "variable" not in values and not triplets:
        raise UsageError(f"{label}: zarr without variable", 'variable = "reflectance", or what the store calls it')
    _check_pairs(label, values)
    if values["role"] in ("hr", "pair") and values.get("values", "8-bit") == "8-bit":
        lacking = [band for band in dict(values.get("bands", ())) if band not in GAMMA_BANDS]
        if lacking:
            raise UsageError(
                f"{label}: bands {', '.join(lacking)} with 8-bit values",
                f"some of {', '.join(GAMMA_BANDS)}, which alone are brought from brightness to reflectance",
                'values = "reflectance" with its scale',
            )


def _check_pairs(label: str, values: dict[str, Any]) -> None:
    """Raise UsageError unless pairs have files and coarse images, and nothing else has keys of pairs."""
    if values["role"] == "pair":
        if "coarse" not in values:
            raise UsageError(f"{label}: role pair without coarse", 'coarse = "lr*.tif", beside each image of path')
        if "path" not in values:
            raise UsageError(f"{label}: role pair without path", "the sharp images as files")
        for key in ("dates", "target_gsd_m", "evaluate_gsd_m"):
            if key in values:
                raise UsageError(f"{label}: {key} does not apply to pairs", "the grid of the coarse images is theirs")
        return
    for key in _OF_PAIRS:
        if key in values:
            raise UsageError(f"{label}: {key} with role {values['role']}", 'role = "pair"')


def _located(label: str, key: str, text: str, folder: Path, root: Path | None) -> str:
    """Return the absolute path with environment variables expanded. Raises UsageError if nothing exists there."""
    expanded = _expanded(label, key, text, root)
    if key == "catalog" and (not (folder / expanded).exists() or "://" in expanded):
        return expanded  # a name or an address; `load_catalog` checks it
    whole = Path(os.path.abspath(folder / expanded))
    if key == "path" and _PATTERN.search(expanded):
        fixed = glob_root(whole)
        if not fixed.is_dir():
            raise UsageError(f"{label}: {key} = {text!r}: no folder {fixed}", "an existing folder")
        if next(fixed.glob(str(whole.relative_to(fixed))), None) is None:
            raise UsageError(f"{label}: {key} = {text!r} matches no file in {fixed}", "a glob that matches images")
    elif not whole.exists():
        raise UsageError(f"{label}: {key} = {text!r}: {whole} does not exist", "an existing folder, file or glob")
    return str(whole)


def ordered(names: Collection[str]) -> tuple[str, ...]:
    """Return the Sentinel-2 bands among `names`: red, green and blue first, then the order of `BAND_NAMES`."""
    return tuple(band for band in dict.fromkeys((*RGB, *BAND_NAMES)) if band in names)


def glob_root(pattern: Path) -> Path:
    """Return the folder of a glob before its first wildcard."""
    fixed = [part for part in pattern.parts]
    for index, part in enumerate(fixed):
        if _PATTERN.search(part):
            return Path(*fixed[:index])
    return pattern


def _expanded(label: str, key: str, text: str, root: Path | None) -> str:
    """Return `text` with ${NAME} replaced from the environment. Raises UsageError if a variable is not set."""

    def value(found: re.Match[str]) -> str:
        if found[1] == DATA_VARIABLE:
            return str(root or default_data())
        if found[1] not in os.environ:
            raise UsageError(f"{label}: {key} = {text!r}: {found[1]} is not set", f"an environment variable {found[1]}")
        return os.environ[found[1]]

    return os.path.expanduser(re.sub(r"\$\{(\w+)\}", value, text))


def _check_regex(label: str, key: str, text: str) -> None:
    """Raise UsageError unless the text is empty, or a regular expression with a group."""
    example = {"place": r'"(\\w+)_2020"', "date": r'"(\\d{8})"'}[key]
    try:
        groups = re.compile(text).groups
    except re.error as error:
        raise UsageError(
            f"{label}: {key} = {text!r} is not a regular expression ({error})", f"such as {example}"
        ) from None
    if text and not groups:
        what = {"place": "place", "date": "day"}[key]
        raise UsageError(f"{label}: {key} = {text!r} has no group", f"a group that names the {what}, such as {example}")


def _with_scales(label: str, values: dict[str, Any], output_m: float) -> Source:
    """Return the source with consistent GSDs, derived from those stated. Raises UsageError on conflicts."""
    stated = "target_gsd_m" in values
    values["target_stated"], values["label"] = stated, label
    if values["role"] == "sentinel2":
        if stated or "evaluate_gsd_m" in values or "values" in values:
            found = "target_gsd_m, evaluate_gsd_m and values do not apply to role sentinel2"
            raise UsageError(f"{label}: {found}", "them for role hr only")
        values["target_gsd_m"], values["evaluate_gsd_m"] = (SENTINEL2_GSD_M, SENTINEL2_GSD_M), SENTINEL2_GSD_M
    low, high = values.setdefault("target_gsd_m", target_gsd_m(output_m))
    gsd_m = values.get("gsd_m")
    if stated and gsd_m is not None and gsd_m > low * 1.01:
        raise UsageError(
            f"{label}: images of {gsd_m:g} m for target_gsd_m = [{low:g}, {high:g}]",
            f"images at least as fine as {low:g} m",
            f"target_gsd_m = [{gsd_m:g}, {max(high, gsd_m):g}], or leave the source out",
        )
    values.setdefault("evaluate_gsd_m", min(max(output_m, low), high))
    if values["role"] != "sentinel2" and values.get("values", "8-bit") == "8-bit" and {"scale", "offset"} & set(values):
        raise UsageError(f"{label}: scale and offset with 8-bit values", 'values = "reflectance"')
    return Source(**values)
