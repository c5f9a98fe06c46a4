"""Catalogues: what is known of each archive, from a built-in name, a TOML file, or a STAC address or file."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from pipeline.archive.catalog_address import read_address, same_place
from pipeline.archive.radiometry import OFFSET_RULES
from pipeline.archive.read.access import Access
from pipeline.archive.read.host_policy import ANY_PUBLIC_HOST
from pipeline.archive.read.signing import SIGNINGS
from pipeline.bands import BAND_NAMES, BY_NAME, CANONICAL_OFFSET_DN
from pipeline.errors import UsageError
from pipeline.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterable

SAMPLE = "sample"
MAX_TOML_BYTES = 1_000_000
# Names under which archives keep a band, tried in this order where the archive is not described: B02, blue, B02_10m.
GENERIC_ALIASES: dict[str, tuple[str, ...]] = {
    name: (name, common, f"{name}_{BY_NAME[name].gsd_m}m")
    for name, common in zip(
        BAND_NAMES,
        (
            *("coastal", "blue", "green", "red", "rededge1", "rededge2", "rededge3"),
            *("nir", "nir08", "nir09", "swir16", "swir22"),
        ),
        strict=True,
    )
}
GENERIC_SCL = ("SCL", "scl", "SCL_20m")


@dataclass(frozen=True)
class Limits:
    """Limits of an archive, and bounds on what it may return.

    `connections`: files read at a time from one host, by all processes of a run together (`rate_limit`).
    """

    page_items: int = 100
    max_pages: int = 500
    connections: int = 8

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if type(value) is not int or value < 1:
                raise UsageError(f"limits.{limit.name} = {redact(f'{value!r:.60}')}", "a whole number, at least 1")


@dataclass(frozen=True)
class RetryPolicy:
    """How long a search waits: seconds to connect, seconds of silence, tries per request, base of the backoff."""

    connect_s: float = 10.0
    read_s: float = 60.0
    tries: int = 6
    backoff_s: float = 1.0
    max_retry_after_s: float = 300.0


DEFAULT_DAYS = 90  # of an archive that holds all scenes, where no first day is given


@dataclass(frozen=True)
class Catalog:
    """One archive and collection. `kind`: "api" (url is a STAC API), "file" (url is a path) or "sample".

    `ids`: the only items to use; all where empty.
    """

    name: str
    kind: str
    url: str
    collection: str = ""
    aliases: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict(GENERIC_ALIASES), hash=False)
    scl: tuple[str, ...] = GENERIC_SCL
    offset_rule: str = "declared-or-baseline"
    signing: str = "none"
    hosts: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    limits: Limits = Limits()
    licence: str = ""
    credit: str = ""
    known_issues: tuple[str, ...] = ()
    offset_override: int | None = None
    ids: tuple[str, ...] = ()

    @property
    def default_days(self) -> int:
        """Days before its end that a search without a first day covers; 0 if it covers all dates."""
        return DEFAULT_DAYS if self.kind == "api" and not self.ids else 0

    def access(self) -> Access:
        """Access of workers to the files of this archive."""
        if self.kind != SAMPLE:
            return Access(self.signing, self.hosts, self.roots, connections=self.limits.connections)
        from pipeline.archive.local.scan import sample_scenes

        folders = {str(Path(href).parent) for scene in sample_scenes() for href in scene.hrefs.values()}
        return Access(roots=tuple(sorted(folders)))

    def with_offset(self, offset_dn: int) -> Catalog:
        """The same archive with the BOA offset of every scene set by the user (0 or -1000)."""
        if offset_dn not in (0, CANONICAL_OFFSET_DN):
            raise UsageError(f"offset {offset_dn}", f"0 or {CANONICAL_OFFSET_DN} DN")
        return replace(self, offset_override=offset_dn)


def known_catalogs() -> dict[str, Path]:
    """{name: TOML file} of the catalogues that come with the project, in a checkout or installed."""
    here = Path(__file__).resolve()
    folders = (here.parents[1] / "_catalogs", here.parents[2] / "catalogs")
    folder = next((folder for folder in folders if folder.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.toml"))} if folder else {}


def load_catalog(name_or_source: str) -> Catalog:
    """Catalogue by known name, TOML file, STAC API address, or STAC file or folder. UsageError lists what is known."""
    known = known_catalogs()
    if name_or_source == SAMPLE:
        credit = "BigEarthNet; contains modified Copernicus Sentinel data 2017"
        return Catalog(SAMPLE, SAMPLE, "", offset_rule="none", licence="CDLA-Permissive-1.0", credit=credit)
    if name_or_source in known:
        return _from_toml(known[name_or_source])
    if name_or_source.startswith("file://"):
        name_or_source = unquote(urlsplit(name_or_source).path)
    if "://" in name_or_source:
        return _from_address(name_or_source, [_from_toml(path) for path in known.values()])
    path = Path(name_or_source)
    if path.suffix == ".toml" and path.is_file():
        return _from_toml(path)
    if path.exists():
        from pipeline.archive.stac.files import file_roots, refuse_rasters

        refuse_rasters(path)
        return Catalog(path.name, "file", str(path), hosts=(ANY_PUBLIC_HOST,), roots=file_roots(path))
    names = [SAMPLE, *known]
    raise UsageError(
        f"catalogue {name_or_source!r} is neither known nor a file",
        f"one of {', '.join(names)}; a .toml; the address of a STAC API; a STAC catalogue or ItemCollection file",
        _hint(name_or_source, names),
    )


def _from_address(address: str, known: list[Catalog]) -> Catalog:
    """API or static catalogue at an address; rules of a known archive apply where API and collection are its own."""
    place = read_address(address)
    for catalog in known:
        if catalog.collection == place.collection and same_place(catalog.url, place.url):
            return replace(catalog, ids=place.ids)
    hosts = (place.host, ANY_PUBLIC_HOST) if place.loopback else (ANY_PUBLIC_HOST,)
    return Catalog(place.host, "api", place.url, place.collection, hosts=hosts, ids=place.ids)


_TOML_KEYS: dict[str, type] = {
    "name": str, "url": str, "collection": str, "signing": str, "hosts": list, "bands": dict, "scl": list,
    "offset_rule": str, "limits": dict, "licence": str, "credit": str, "known_issues": list,
}  # fmt: skip
_OPTIONAL = {"limits", "licence", "credit", "known_issues", "scl", "signing"}


def _from_toml(path: Path) -> Catalog:
    """Catalogue of a TOML file; UsageError names the first key that does not fit (all keys: catalogs/README.md)."""
    try:
        raw = path.read_bytes()[: MAX_TOML_BYTES + 1]
        if len(raw) > MAX_TOML_BYTES:
            raise UsageError(f"{path} is larger than {MAX_TOML_BYTES // 10**6} MB", "a catalogue file")
        content = tomllib.loads(raw.decode("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as TOML ({error})", "a catalogue as in catalogs/README.md") from None
    for key, value in content.items():
        if key not in _TOML_KEYS or not isinstance(value, _TOML_KEYS[key]):
            wanted = _TOML_KEYS.get(key)
            if wanted is None:  # the value is not shown, as it may be a header with a password
                raise UsageError(
                    f"{path}: {key} is not a field of a catalogue",
                    f"keys {', '.join(_TOML_KEYS)}",
                    _hint(key, _TOML_KEYS),
                )
            raise UsageError(f"{path}: {key} = {redact(f'{value!r:.60}')}", f"a {wanted.__name__}")
    absent = [key for key in _TOML_KEYS if key not in content and key not in _OPTIONAL]
    if absent:
        raise UsageError(f"{path}: {', '.join(absent)} missing", "a catalogue as in catalogs/README.md")
    return _built(path, content)


def _built(path: Path, content: dict[str, Any]) -> Catalog:
    """The catalogue of checked values."""
    for key, allowed in (("offset_rule", OFFSET_RULES), ("signing", SIGNINGS)):
        if content.get(key, "none") not in allowed:
            raise UsageError(f"{path}: {key} = {content[key]!r}", f"one of {', '.join(allowed)}")
    read_address(content["url"])
    for host in content["hosts"]:
        if not isinstance(host, str) or "@" in host or "?" in host:
            shown = "a name with user or query" if isinstance(host, str) else type(host).__name__
            raise UsageError(f"{path}: hosts holds {shown}", "plain names of hosts")
    bands = content.pop("bands")
    if set(bands) - set(BAND_NAMES) or not all(isinstance(keys, list) and keys for keys in bands.values()):
        raise UsageError(f"{path}: bands", f"lists of asset names for {', '.join(BAND_NAMES)}")
    limits = content.pop("limits", {})
    names = [limit.name for limit in fields(Limits)]
    if unknown := [key for key in limits if key not in names]:
        raise UsageError(
            f"{path}: limits.{unknown[0]} is unknown", f"keys {', '.join(names)}", _hint(unknown[0], names)
        )
    lists = {key: tuple(map(str, value)) for key, value in content.items() if isinstance(value, list)}
    aliases = {band: tuple(map(str, bands[band])) for band in BAND_NAMES if band in bands}
    return Catalog(**{**content, **lists, "kind": "api", "aliases": aliases, "limits": Limits(**limits)})


def _hint(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f"did you mean {near[0]!r}?" if near else ""
