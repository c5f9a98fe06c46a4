"""Groups the files of a folder into scenes: by product XML, by the files that an item names, or by file-name prefix."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from pipeline.archive.local.metadata import LEVEL_1_XML, PRODUCT_XML, TILE_XML, items_in
from pipeline.archive.local.names import Names, product_name
from pipeline.archive.local.tree import RASTERS
from pipeline.bands import SCL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.archive.local.tree import Tree

_CLASSES = r"SCL|Scene[-_]?Classification(?:[-_]?(?:map|layer))?"
_BAND = re.compile(
    rf"(?:(?P<scene>.*?)[_.-])?(?P<band>B0?[1-9]|B1[012]|B8A|{_CLASSES})(?:[_.-](?:10|20|60)m)?", re.IGNORECASE
)
_MASKS = "MSK_"  # quality masks of a product; MSK_DETFOO_B02.jp2 is no B02
_RESOLUTION = re.compile(r"R?(?:10|20|60)\s?m", re.IGNORECASE)  # folders that divide the bands of one scene
_ANY_SCENE = re.compile(r"bands?|img(?:_data)?|images?|data|rasters?|tiffs?|cogs?|granule|\d{1,2}|[a-z]", re.IGNORECASE)
# Names of assets in Earth Search, by band (catalogs/earth-search.toml).
_COMMON = {
    "coastal": "B01", "blue": "B02", "green": "B03", "red": "B04", "rededge1": "B05", "rededge2": "B06",
    "rededge3": "B07", "nir": "B08", "nir08": "B8A", "nir09": "B09", "swir16": "B11", "swir22": "B12", "scl": SCL,
}  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """Files of any resolution that belong together, with their metadata. `id` is unique to its folder."""

    id: str
    place: Path
    names: Names
    paths: dict[str, list[Path]]
    product_xml: Path | None = None
    tile_xmls: list[Path] = field(default_factory=list)
    item: dict[str, Any] | None = None
    fault: str = ""  # why it cannot be used
    where: str = ""  # its path below the scanned folder, which distinguishes scenes of one id
    granule: str = ""  # granule, of a product with several


def band_of(stem: str) -> tuple[str, str] | None:
    """(prefix, band) of a file's name without suffix; None when it names no band.

    >>> band_of("T32TMS_20240617T101559_B8A_20m"), band_of("b2"), band_of("red")
    (('T32TMS_20240617T101559', 'B8A'), ('', 'B02'), None)
    """
    named = _BAND.fullmatch(stem)
    if named is None:
        return None
    band = named["band"].upper()
    if not re.fullmatch(r"B\d+|B8A", band):
        band = SCL
    elif band != "B8A":
        band = f"B{int(band[1:]):02d}"
    return named["scene"] or "", band


def candidates(tree: Tree) -> Iterator[Candidate]:
    """Scenes of a tree, in its order. Files that hold several bands, or none, are left to `others`."""
    products = [place for place, files in tree.folders.items() if any(PRODUCT_XML.fullmatch(f.name) for f in files)]
    outermost = [p for p in products if not any(p != other and p.is_relative_to(other) for other in products)]
    level_1 = [place for place, files in tree.folders.items() if any(LEVEL_1_XML.fullmatch(f.name) for f in files)]
    for place in tree.folders:
        if place in outermost:
            yield from _of_product(place, tree)
    rest = {
        place: files
        for place, files in tree.folders.items()
        if not any(place.is_relative_to(product) for product in outermost)
    }
    for candidate in _of_folders(rest, tree):
        below = any(candidate.place.is_relative_to(place) for place in level_1)
        yield replace(candidate, fault="its XML says Level-1C; expected Level-2A") if below else candidate


def rasters(files: list[Path]) -> list[Path]:
    """Files that may hold a band."""
    return [path for path in files if path.suffix.lower() in RASTERS and not path.name.startswith(_MASKS)]


def _of_product(place: Path, tree: Tree) -> Iterator[Candidate]:
    """One candidate per granule; products before December 2016 hold several."""
    files = tree.below(place)
    xml = next(path for path in tree.folders[place] if PRODUCT_XML.fullmatch(path.name))
    granules: dict[str, list[Path]] = defaultdict(list)
    loose: list[Path] = []
    for path in rasters(files):
        parts = path.relative_to(place).parts
        official = len(parts) > 2 and parts[0].upper() == "GRANULE" and "IMG_DATA" in parts
        (granules[parts[1]] if official else loose).append(path)
    strays = [path for path in loose if band_of(path.stem)]
    if granules and strays:
        tree.notes.append(f"{strays[0].parent} left out: it is no image of the product {place.name}")
    for granule, images in sorted(granules.items()) or [("", loose)]:
        paths, prefixes = _by_band(images)
        names = Names.of(prefixes[0] if prefixes else "", place / "GRANULE" / granule if granule else place, tree.top)
        about = [path for path in files if TILE_XML.fullmatch(path.name) and (not granule or granule in path.parts)]
        own = place.resolve().name.removesuffix(".SAFE")
        part = granule if len(granules) > 1 else ""
        where = _where(place, tree.top)
        yield Candidate(own, place, names, paths, xml, about, where=where, granule=part)


def _by_band(images: list[Path]) -> tuple[dict[str, list[Path]], list[str]]:
    """({band: files}, prefixes in their order)."""
    paths: dict[str, list[Path]] = defaultdict(list)
    prefixes = []
    for path in images:
        named = band_of(path.stem)
        if named:
            paths[named[1]].append(path)
            prefixes.append(named[0])
    return dict(paths), prefixes


def _of_folders(folders: dict[Path, list[Path]], tree: Tree) -> Iterator[Candidate]:
    """Groups of files without a product's XML: by item, else by prefix within one folder and its R10m, R20m, R60m."""
    groups: dict[tuple[Path, str], dict[str, list[Path]]] = {}
    known: dict[tuple[Path, str], Path] = {}
    for place, files in folders.items():
        for path in rasters(files):
            known[path.parent, path.name] = path
            named = band_of(path.stem)
            if named:
                root = place.parent if _RESOLUTION.fullmatch(place.name) else place
                known.setdefault((root, path.name), path)  # so that an item above R10m finds its files
                groups.setdefault((root, named[0]), {}).setdefault(named[1], []).append(path)
    taken: set[Path] = set()
    for place, files in folders.items():
        items = items_in([path for path in files if path.suffix.lower() in (".json", ".geojson")])
        here = [key for key in groups if key[0] == place]
        for item, claimed, fault in _claims(items, place, known):
            whole = groups[here[0]] if len(items) == 1 and len(here) == 1 else {}
            if whole and _describes(item, claimed, whole):
                claimed = {band: sorted({*whole.get(band, []), *claimed.get(band, [])}) for band in whole | claimed}
            if not claimed:
                continue
            used = [path for found in claimed.values() for path in found]
            taken |= set(used)
            prefix = (band_of(used[0].stem) or ("", ""))[0]
            names = Names.of(prefix, used[0].parent, tree.top)
            yield Candidate(
                str(item.get("id") or prefix), place, names, claimed, item=item, fault=fault,
                where=_where(place, tree.top),
            )  # fmt: skip
    for (root, prefix), bands in groups.items():
        left = {band: [path for path in found if path not in taken] for band, found in bands.items()}
        left = {band: found for band, found in left.items() if found}
        if left:
            names = Names.of(prefix, root, tree.top)
            where = "_".join(part for part in (_where(root, tree.top), prefix) if part)
            yield Candidate(_id(prefix, names, root, tree.top), root, names, left, where=where)


def _claims(
    items: list[dict[str, Any]], place: Path, known: dict[tuple[Path, str], Path]
) -> Iterator[tuple[dict[str, Any], dict[str, list[Path]], str]]:
    """(item, the files here that it names by band, a fault): a file that two items name cannot be used."""
    named = [(item, _named_files(item, place, known)) for item in items]
    first: dict[str, dict[str, Any]] = {}
    for item, files in named:
        twin = first.setdefault(str(item.get("id")), item)
        if twin is not item:
            continue  # the same item in another file
        mine = {path for found in files.values() for path in found}
        others = [
            other
            for other, theirs in named
            if other.get("id") != item.get("id") and any(path in mine for found in theirs.values() for path in found)
        ]
        fault = f"its files are named by item {others[0].get('id')} too" if others else ""
        yield item, files, fault


def _named_files(item: dict[str, Any], place: Path, known: dict[tuple[Path, str], Path]) -> dict[str, list[Path]]:
    """Files that an item names: by a path beside it, or by the last part of an address."""
    found: dict[str, list[Path]] = defaultdict(list)
    for key, asset in (item.get("assets") or {}).items():
        href = unquote(urlsplit(str(asset.get("href", ""))).path) if isinstance(asset, dict) else ""
        band = _band_of_asset(str(key), asset, href) if href else ""
        if not band:
            continue
        relative = Path(os.path.normpath(place / href))
        path = known.get((relative.parent, relative.name)) or known.get((place, Path(href).name))
        if path is not None:
            found[band].append(path)
    return dict(found)


def _band_of_asset(key: str, asset: dict[str, Any], href: str) -> str:
    """Band by the asset's key, the band it lists, or its file name; "" otherwise."""
    for listed in (asset.get("eo:bands"), asset.get("bands")):
        entries = listed if isinstance(listed, list) else []
        if len(entries) > 1:
            return ""  # a true-colour image
    if "jp2" in key.lower() and not href.lower().endswith(".jp2"):
        return ""
    name = re.sub(r"[-_]jp2$", "", key.lower())
    named = band_of(key) or band_of(Path(href).stem)
    return _COMMON.get(name) or (named[1] if named else "")


def _describes(item: dict[str, Any], claimed: dict[str, list[Path]], whole: dict[str, list[Path]]) -> bool:
    """True when a single item describes the single group beside it: it names some of its files, or no band files."""
    used = {path for found in whole.values() for path in found}
    if claimed:
        return any(path in used for found in claimed.values() for path in found)
    assets = (item.get("assets") or {}).items()
    return not any(
        isinstance(asset, dict) and _band_of_asset(str(key), asset, str(asset.get("href", ""))) for key, asset in assets
    )


def _id(prefix: str, names: Names, root: Path, top: Path) -> str:
    """Id of a group: its product name, its prefix, or the nearest folder with a telling name."""
    inside = root.relative_to(top).parts if root.is_relative_to(top) else ()
    telling = [part for part in (top.name, *inside) if not _ANY_SCENE.fullmatch(part)]
    leaf = inside[-1] if inside else top.name
    if product := product_name(names):
        return product
    if prefix:
        return prefix
    if not _ANY_SCENE.fullmatch(leaf):
        return leaf
    if leaf.isdigit() or len(leaf) == 1:
        return "_".join(inside)
    return telling[-1] if telling else f"{top.parent.name}_{leaf}"


def _where(place: Path, top: Path) -> str:
    return "_".join(place.relative_to(top).parts) if place.is_relative_to(top) else place.name
