"""What a STAC item declares about its processing: product names, level, and processing baseline."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from pipeline.archive.radiometry import Undecided, canonical_baseline, expected_offset_dn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PRODUCT_KEYS = ("s2:product_uri", "sentinel:product_id", "eopf:product_id", "product_id", "identifier", "title")
_LEVEL_KEYS = ("processing:level", "s2:processing_level", "s2:product_type", "product:type", "productType")
# Product name of ESA: mission, level, datatake sensing start, baseline, relative orbit, tile, discriminator.
PRODUCT = re.compile(
    r"(?P<mission>S2[A-D])_MSI(?P<level>L1C|L2A)_(?P<sensed>\d{8}T\d{6})_(?:N(?P<baseline>\d{4})_)?R(?P<orbit>\d{3})"
    r"_T(?P<tile>\d{2}[A-Z]{3})_(?P<made>\d{8}T\d{6})"
)
# Baselines that are not also version numbers of Sen2Cor; a version written "02.14" is a baseline in any case.
_BASELINES = frozenset({"03.00", "03.01", "04.00", "05.00", "05.09", "05.10", "05.11", "05.12"})
_NAMED_BASELINE = re.compile(r"(?<![A-Za-z0-9])N(\d{2})\.?(\d{2})(?![A-Za-z0-9])")
# A word in a name or path that states a level: L1C, MSIL1C, S2MSI1C; "Level-1C" is normalised to L1C first.
_LEVEL_WORD = re.compile(r"(?:s(?:entinel)?2[a-d]?)?(?:(?:msi)?l|msi)([0-3][a-c])p?")
_LEVEL_FIELD = re.compile(r"(?:s2)?[-_ ]?(?:msi)?[-_ ]?(?:l|level)?[-_ ]?([0-3][a-c]?)p?")
_SENTINEL_2 = re.compile(r"s(?:entinel)?2[a-d]?")


@dataclass(frozen=True)
class Statement:
    """One statement of an item, and where it was found."""

    where: str
    value: str


def is_sentinel_2(properties: Mapping[str, Any]) -> bool:
    """False where platform or constellation name another satellite; "S2A" and "Sentinel-2 A" are Sentinel-2."""
    platform = properties.get("platform") or properties.get("constellation") or "sentinel-2"
    plain = re.sub(r"[^a-z0-9]", "", str(platform).lower())
    return _SENTINEL_2.fullmatch(plain) is not None


def product_names(item: Mapping[str, Any]) -> Iterator[Statement]:
    """Names in an item that may be product names, most reliable first."""
    properties = item["properties"]
    for key in _PRODUCT_KEYS:
        if isinstance(properties.get(key), str):
            yield Statement(key, properties[key])
    yield Statement("id", str(item.get("id")))
    if isinstance(properties.get("s2:granule_id"), str):
        yield Statement("s2:granule_id", properties["s2:granule_id"])


def product_of(item: Mapping[str, Any]) -> dict[str, str]:
    """Parts of ESA's product name, from wherever the archive keeps it; {} without one."""
    for name in product_names(item):
        found = PRODUCT.search(name.value)
        if found:
            return {key: value for key, value in found.groupdict().items() if value}
    return {}


def other_level(item: Mapping[str, Any], band_hrefs: Mapping[str, str]) -> str:
    """Why an item is not Level-2A, from fields, names and collection; "" if nothing contradicts it.

    File paths, and a band B10, count only where nothing states Level-2A: L2A items may lie below a folder "L1C".
    """
    stated = list(_levels(item))
    wrong = next((level for level in stated if level.value not in ("2", "2A")), None)
    if wrong is not None:
        return f"a Level-{wrong.value} product by its {wrong.where}; expected Level-2A"
    if any(level.value == "2A" for level in stated):
        return ""
    for band, href in band_hrefs.items():
        levels = _named_levels(unquote(href))
        if levels & {"1A", "1B", "1C"} and "2A" not in levels:
            return f"a Level-1C product by the address of {band}; expected Level-2A"
    return "a Level-1C product, as it has B10; expected Level-2A" if "B10" in item["assets"] else ""


def _levels(item: Mapping[str, Any]) -> Iterator[Statement]:
    """Levels such as "1C", "2A" or "2" that the item states, with the place of each."""
    properties = item["properties"]
    for key in _LEVEL_KEYS:
        found = _LEVEL_FIELD.fullmatch(str(properties.get(key) or "").strip().lower())
        if found:
            yield Statement(key, found[1].upper())
    names = [*product_names(item), Statement("collection", str(item.get("collection") or ""))]
    for name in names:
        levels = _named_levels(name.value)
        if len(levels) == 1:  # a title may mention both
            yield Statement(name.where, levels.pop())


def _named_levels(text: str) -> set[str]:
    """Levels, such as "1C", that words of a name or path state."""
    words = re.split(r"[^a-z0-9]+", re.sub(r"level[-_ ]?(?=[0-3])", "l", text.lower()))
    return {found[1].upper() for word in words if (found := _LEVEL_WORD.fullmatch(word))}


def baseline_of(item: Mapping[str, Any], band_hrefs: Mapping[str, str]) -> str:
    """Processing baseline as "05.11" from the first place that states it; "" when unknown, "99.99" kept as it is.

    Undecided, naming both places, where two of them lie on different sides of 04.00, from which the BOA offset applies.
    """
    stated = list(_baselines(item, band_hrefs))
    if not stated:
        return ""
    telling = [(place, dn) for place in stated if (dn := expected_offset_dn(place.value)) is not None]
    for place, dn in telling[1:]:
        if dn != telling[0][1]:
            one, other = telling[0][0], place
            raise Undecided(
                f"{one.where} states processing baseline {one.value} ({telling[0][1]} DN) and {other.where} "
                f"states {other.value} ({dn} DN)"
            )
    return (telling[0][0] if telling else stated[0]).value


def _baselines(item: Mapping[str, Any], band_hrefs: Mapping[str, str]) -> Iterator[Statement]:
    """Baselines by place. `processing:version` comes last: it may be that of Sen2Cor or of any program."""
    properties = item["properties"]
    own = canonical_baseline(properties.get("s2:processing_baseline"))
    found = [Statement("s2:processing_baseline", own)] if own else []
    names = [*product_names(item), *(Statement(f"the address of {b}", unquote(href)) for b, href in band_hrefs.items())]
    for name in names:
        found += [Statement(name.where, f"{m[1]}.{m[2]}") for m in _NAMED_BASELINE.finditer(name.value)]
    yield from found
    version = canonical_baseline(properties.get("processing:version"))
    padded = str(properties.get("processing:version")).strip().upper().removeprefix("N").startswith("0")
    usable = version in _BASELINES if not padded else version >= "02.01"
    if usable and not (found and version < "03.00"):  # with other statements present, 02.11 is a version of Sen2Cor
        yield Statement("processing:version", version)
