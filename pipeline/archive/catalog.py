"""Archives: what is known of each, and one search that answers with scenes whatever the archive is.

In: a name, a TOML file, a STAC API address, or a STAC file; an AOI and a period. Out: `Catalog`, `SearchResult`.
"""

from __future__ import annotations

import difflib
import tomllib
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline.archive.access import ANY_PUBLIC_HOST, SIGNINGS, Access, redact
from pipeline.archive.radiometry import OFFSET_RULES
from pipeline.archive.versions import drop_superseded
from pipeline.bands import BAND_NAMES, BY_NAME, HOUSE_ADD_OFFSET_DN
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipeline.archive.aoi import Aoi
    from pipeline.archive.scene import Scene

SAMPLE = "sample"
MAX_TOML_BYTES = 1_000_000
_EXAMPLES = 3  # items named per reason in a summary
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
    """What an archive asks of its users, and where we stop believing it.

    `connections`: files read at a time from one host, by all processes of a run together (pipeline.archive.politeness).
    """

    page_items: int = 100
    max_pages: int = 500
    connections: int = 8


@dataclass(frozen=True)
class Patience:
    """How long a search waits: seconds to connect, seconds of silence, tries per request, base of the backoff."""

    connect_s: float = 10.0
    read_s: float = 60.0
    tries: int = 6
    backoff_s: float = 1.0
    max_retry_after_s: float = 300.0


@dataclass(frozen=True)
class Catalog:
    """One archive and collection. `kind`: "api" (url is a STAC API), "file" (url is a path) or "sample"."""

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

    def access(self) -> Access:
        """How workers may reach the files of this archive."""
        if self.kind != SAMPLE:
            return Access(self.signing, self.hosts, self.roots, connections=self.limits.connections)
        from pipeline.archive.local import sample_scenes

        folders = {str(Path(href).parent) for scene in sample_scenes() for href in scene.hrefs.values()}
        return Access(roots=tuple(sorted(folders)))

    def with_offset(self, offset_dn: int) -> Catalog:
        """The same archive with the BOA offset of every scene set by the user (0 or -1000)."""
        if offset_dn not in (0, HOUSE_ADD_OFFSET_DN):
            raise UsageError(f"offset {offset_dn}", f"0 or {HOUSE_ADD_OFFSET_DN} DN")
        return replace(self, offset_override=offset_dn)


@dataclass(frozen=True)
class SearchResult:
    """Scenes by time then id; `notes` for the log; `rejected` as (item id, reason)."""

    scenes: tuple[Scene, ...]
    notes: tuple[str, ...] = ()
    rejected: tuple[tuple[str, str], ...] = ()


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
    if "://" in name_or_source:
        return _from_address(name_or_source, [_from_toml(path) for path in known.values()])
    path = Path(name_or_source)
    if path.suffix == ".toml" and path.is_file():
        return _from_toml(path)
    if path.exists():
        from pipeline.archive.stac_files import file_roots

        return Catalog(path.name, "file", str(path), hosts=(ANY_PUBLIC_HOST,), roots=file_roots(path))
    names = [SAMPLE, *known]
    near = difflib.get_close_matches(name_or_source, names, 1)
    raise UsageError(
        f"catalogue {name_or_source!r} is neither known nor a file",
        f"one of {', '.join(names)}; a .toml; the address of a STAC API; a STAC catalogue or ItemCollection file",
        f"did you mean {near[0]!r}?" if near else "",
    )


def search(
    catalog: Catalog,
    aoi: Aoi,
    start: str | None,
    end: str | None,
    max_cloud: float | None,
    *,
    ids: Sequence[str] = (),
    bands: Sequence[str] = BAND_NAMES,
    patience: Patience | None = None,
) -> SearchResult:
    """Scenes that touch the AOI within [start, end] (ISO 8601 with Z) and up to `max_cloud` percent.

    Period, cloud and place are decided here whatever the archive answered; unknown cloud passes. `ids` keeps only
    these scenes. Raises Interrupted when the archive stays away, UpstreamError when it refuses or loses items.
    """
    notes: list[str] = []
    rejected: list[tuple[str, str]] = []
    if catalog.kind == SAMPLE:
        from pipeline.archive.local import sample_scenes

        scenes = list(sample_scenes())
    else:
        items = items_of(catalog, aoi, start, end, ids, patience or Patience(), notes)
        scenes = _parsed(items, catalog, bands, rejected)
    scenes = _wanted(scenes, aoi, (start, end), max_cloud, ids, notes)
    kept, superseded = drop_superseded(scenes)
    ordered = sorted(kept, key=lambda scene: (scene.datetime_utc, scene.id))
    return SearchResult(tuple(ordered), tuple(notes), tuple(rejected) + tuple(superseded))


def items_of(
    catalog: Catalog,
    aoi: Aoi,
    start: str | None,
    end: str | None,
    ids: Sequence[str],
    patience: Patience,
    notes: list[str],
) -> Iterable[tuple[dict[str, Any], str]]:
    """(item, base of its relative hrefs) from the network or from files."""
    if catalog.kind == "file":
        from pipeline.archive.stac_files import file_items

        return file_items(Path(catalog.url))
    from pipeline.archive.stac_api import api_items

    return ((item, "") for item in api_items(catalog, aoi, start, end, ids, patience, notes))


def _parsed(
    items: Iterable[tuple[dict[str, Any], str]],
    catalog: Catalog,
    bands: Sequence[str],
    rejected: list[tuple[str, str]],
) -> list[Scene]:
    """Scenes of the items; the others go to `rejected`. Identical copies count once."""
    from pipeline.archive.stac import RejectedItem, scene_from_item

    access = catalog.access()
    scenes: list[Scene] = []
    seen: dict[tuple[object, str], Scene] = {}
    for item, base in items:
        name = str(item.get("id", "?"))[:200] if isinstance(item, dict) else "?"
        try:
            scene = scene_from_item(item, catalog, access, base=base, bands=bands)
        except RejectedItem as error:
            rejected.append((name, redact(str(error))))
            continue
        twin = seen.setdefault((item.get("collection"), scene.id), scene)
        if twin is scene:
            scenes.append(scene)
        elif twin.hrefs != scene.hrefs:
            rejected.append((name, "another item has the same id and different files"))
    return scenes


def _wanted(
    scenes: list[Scene],
    aoi: Aoi,
    period: tuple[str | None, str | None],
    max_cloud: float | None,
    ids: Sequence[str],
    notes: list[str],
) -> list[Scene]:
    """Scenes of the place, period and cloud cover asked for; the notes count the others by reason."""
    from datetime import datetime

    from pipeline.archive.footprints import footprint_shape

    start, end = (datetime.fromisoformat(text) if text else None for text in period)
    left: Counter[str] = Counter()
    kept = []
    for scene in scenes:
        moment = datetime.fromisoformat(scene.datetime_utc)
        if ids and scene.id not in ids:
            left["not among the ids asked for"] += 1
        elif (start and moment < start) or (end and moment.replace(microsecond=0) > end):
            left["outside the period"] += 1
        elif not footprint_shape(scene.footprint).intersects(aoi.shape):
            left["outside the area"] += 1
        elif max_cloud is not None and scene.cloud_pct is not None and scene.cloud_pct > max_cloud:
            left[f"cloudier than {max_cloud:g} %"] += 1
        else:
            kept.append(scene)
    notes.extend(f"{_counted(count, 'scene')} left out: {reason}" for reason, count in sorted(left.items()))
    unknown = sum(scene.cloud_pct is None for scene in kept)
    if max_cloud is not None and unknown:
        notes.append(
            f"{_counted(unknown, 'scene')} kept although {'its' if unknown == 1 else 'their'} cloud cover is unknown"
        )
    absent = [name for name in ids if name not in {scene.id for scene in scenes}]
    if absent:
        notes.append(f"not found: {', '.join(absent[:10])}{' ...' if len(absent) > 10 else ''}")
    return kept


def summarised(rejected: Sequence[tuple[str, str]]) -> list[str]:
    """One line per reason for the log, most frequent first: "300 items left out: lacks B05 (S2A_x, S2A_y ...)"."""
    names: dict[str, list[str]] = {}
    for name, reason in rejected:
        names.setdefault(reason, []).append(name)
    lines = []
    for reason, found in sorted(names.items(), key=lambda entry: (-len(entry[1]), entry[0])):
        examples = ", ".join(found[:_EXAMPLES]) + (" ..." if len(found) > _EXAMPLES else "")
        lines.append(f"{_counted(len(found), 'item')} left out: {reason} ({examples})")
    return lines


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _from_address(address: str, known: list[Catalog]) -> Catalog:
    """API at an address; rules of a known archive apply where address and collection are its own."""
    root, _, rest = address.partition("/collections/")
    root = root.rstrip("/").removesuffix("/search")
    collection = rest.strip("/").split("/")[0] or "sentinel-2-l2a"
    parts = urlsplit(root)
    if "@" in parts.netloc or parts.query:
        raise UsageError(f"catalogue address {redact(address)!r} carries credentials", "a plain https address")
    loopback = parts.hostname in ("127.0.0.1", "::1", "localhost")
    if parts.scheme != "https" and not (parts.scheme == "http" and loopback):
        raise UsageError(f"catalogue address {address!r}", "an https address of a STAC API")
    for catalog in known:
        if (catalog.url.rstrip("/"), catalog.collection) == (root, collection):
            return catalog
    hosts = (parts.netloc, ANY_PUBLIC_HOST) if loopback else (ANY_PUBLIC_HOST,)
    return Catalog(parts.netloc, "api", root, collection, hosts=hosts)


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
            expected = f"a {wanted.__name__}" if wanted else f"keys {', '.join(_TOML_KEYS)}"
            raise UsageError(f"{path}: {key} = {value!r:.60}", expected)
    absent = [key for key in _TOML_KEYS if key not in content and key not in _OPTIONAL]
    if absent:
        raise UsageError(f"{path}: {', '.join(absent)} missing", "a catalogue as in catalogs/README.md")
    return _built(path, content)


def _built(path: Path, content: dict[str, Any]) -> Catalog:
    """Values checked against what the code knows."""
    for key, allowed in (("offset_rule", OFFSET_RULES), ("signing", SIGNINGS)):
        if content.get(key, "none") not in allowed:
            raise UsageError(f"{path}: {key} = {content[key]!r}", f"one of {', '.join(allowed)}")
    bands = content.pop("bands")
    if set(bands) - set(BAND_NAMES) or not all(isinstance(keys, list) and keys for keys in bands.values()):
        raise UsageError(f"{path}: bands", f"lists of asset names for {', '.join(BAND_NAMES)}")
    try:
        limits = Limits(**content.pop("limits", {}))
    except TypeError as error:
        raise UsageError(f"{path}: limits ({error})", "page_items, max_pages, connections") from None
    lists = {key: tuple(map(str, value)) for key, value in content.items() if isinstance(value, list)}
    aliases = {band: tuple(map(str, bands[band])) for band in BAND_NAMES if band in bands}
    return Catalog(**{**content, **lists, "kind": "api", "aliases": aliases, "limits": limits})
