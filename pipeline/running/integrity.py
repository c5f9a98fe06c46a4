"""Integrity of a store's small files, compared with the digests of its publication and with its plan."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.errors import IntegrityError
from pipeline.planning.plan import plan_file
from pipeline.running import software
from pipeline.running.expected import expected_files, groups_of
from pipeline.store import compare, published
from pipeline.store.compare import Difference, Node
from pipeline.store.keys import PLAN_KEY
from pipeline.store.published import Published, attributes_of, digest
from pipeline.store.stac_item import ITEM_KEY
from pipeline.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pipeline.planning.plan import Plan
    from pipeline.store.place import Place

_ROOT = "zarr.json"


@dataclass
class Look:
    """Result of the comparison of small files."""

    faults: dict[str, list[str]] = field(default_factory=dict)  # key -> faults
    notes: list[str] = field(default_factory=list)
    repairs: dict[str, bytes] = field(default_factory=dict)  # key -> replacement for a faulty file
    refused: dict[str, str] = field(default_factory=dict)  # key -> why it cannot be replaced


def look(
    plan: Plan, place: Place, record: Published | None, facts: Mapping[str, Any] | None, status: str, *, full: bool
) -> Look:
    """Compare small files with their digests, and those that differ with the files expected from the plan.

    `record` is the publication record, or None if it is missing or damaged. Without digests, `full` compares all small
    files with the plan: as published with `facts` and `status`, or as begun if `facts` is None.
    """
    sealed = record.files if record is not None else {}
    if not sealed and not full:
        return Look()
    found = read_many(place, sealed)
    keys = [key for key, stated in sealed.items() if (content := found[key]) is None or digest(content) != stated]
    if sealed and not keys:
        return Look()
    if record is not None:
        facts, status = record.facts, record.status
    expected = expected_files(plan, facts, status)
    if sealed:
        expected[PLAN_KEY] = plan_file(plan)
    if record is not None:
        expected |= {key: text.encode() for key, text in record.kept.items()}
    seen = compare_files(place, expected, keys or list(expected))
    for key in seen.faults:
        if why := _refusal(plan, key, expected.get(key), sealed.get(key)):
            seen.refused[key] = why
            seen.repairs.pop(key, None)
    return seen


def _refusal(plan: Plan, key: str, expected: bytes | None, stated: str | None) -> str:
    """Return why a file must not be replaced, or "". A replacement must be proven equal to the original."""
    if key == ITEM_KEY or (stated is not None and expected is not None and digest(expected) == stated):
        return ""
    if stated is not None:
        return f"made by version {plan.version}, and what this installation ({VERSION}) would write has another digest"
    if plan.version != VERSION:
        return f"made by version {plan.version}, which may have written it otherwise than this one ({VERSION})"
    return ""


def read_many(place: Place, keys: Iterable[str]) -> dict[str, bytes | None]:
    """Return {key: content}, with None for files that are missing or unreadable."""
    wanted = list(keys)

    def read(key: str) -> bytes | None:
        try:
            return place.read(key)
        except OSError:
            return None

    with ThreadPoolExecutor(place.hands) as pool:
        return dict(zip(wanted, pool.map(read, wanted), strict=True))


def compare_files(place: Place, expected: Mapping[str, bytes], keys: Iterable[str]) -> Look:
    """Compare the files `keys` of a store with their expected content."""
    seen = Look()
    found = read_many(place, keys)
    others = _others(place, expected, found.get(_ROOT))
    for key, content in found.items():
        faults, notes = _difference(key, expected, content, others)
        seen.notes += [f"{key} {note}" for note in notes]
        if faults:
            seen.faults[key] = faults
            if key in expected:
                seen.repairs[key] = _mended(key, expected[key], content)
    if _ROOT in seen.repairs:
        seen.repairs[_ROOT] = _consolidated(place, expected, seen.repairs[_ROOT], others)
    return seen


def _difference(key: str, expected: Mapping[str, bytes], found: bytes | None, others: Mapping[str, Node]) -> Difference:
    wanted = expected.get(key)
    if found is None:
        return Difference(["is missing or cannot be read"], [])
    if wanted is None:
        return Difference(["is not what was published"], [])
    if wanted == found:
        return Difference([], [])
    if not key.endswith(".json"):
        return Difference(["holds other values than the plan says"], [])
    try:
        node, here = compare.node_of(wanted), compare.node_of(found)
    except ValueError as error:
        return Difference([f"cannot be read ({error})"], [])
    if not key.endswith(_ROOT):
        same = node == here
        return Difference([], ["was written anew in another form"]) if same else Difference(["was changed"], [])
    faults, notes = compare.compare_nodes(node, here)
    if key == _ROOT or compare.CONSOLIDATED in here:
        prefix = key.removesuffix(_ROOT)
        nodes = compare.consolidated_nodes(compare.node_of(expected[_ROOT]))
        below = {path.removeprefix(prefix): one for path, one in nodes.items() if path.startswith(prefix)}
        more = compare.compare_consolidated(below, here, others, prefix)
        faults, notes = faults + more.faults, notes + more.notes
    return Difference(faults, notes if faults or notes else ["was written anew in another form"])


def _others(place: Place, expected: Mapping[str, bytes], root: bytes | None) -> dict[str, Node]:
    """Return {path: node} of existing groups and arrays that the root consolidates but the run did not write."""
    try:
        node = compare.node_of(root or b"")
        names = [str(path) for path in node[compare.CONSOLIDATED]["metadata"]]
    except (ValueError, KeyError, TypeError):
        return {}
    foreign = [path for path in names if f"{path}/{_ROOT}" not in expected and ".." not in path.split("/")]
    return nodes_at(place, foreign)


def nodes_at(place: Place, paths: Iterable[str]) -> dict[str, Node]:
    """Return {path: node} for the paths with readable Zarr metadata."""
    nodes = {}
    for key, content in read_many(place, [f"{path}/{_ROOT}" for path in paths]).items():
        try:
            nodes[key.removesuffix(f"/{_ROOT}")] = compare.node_of(content or b"")
        except ValueError:
            continue
    return nodes


def _mended(key: str, expected: bytes, found: bytes | None) -> bytes:
    """Return the expected content, with attributes that users added to a group or array."""
    if not key.endswith(_ROOT) or found is None:
        return expected
    try:
        here = compare.node_of(found)
    except ValueError:
        return expected
    wanted = compare.node_of(expected)
    merged = compare.with_added_attributes(wanted, here)
    return expected if merged is wanted else compare.encode(merged)


def _consolidated(place: Place, expected: Mapping[str, bytes], root: bytes, others: Mapping[str, Node]) -> bytes:
    """Return the root with consolidated metadata: the repaired nodes, with added attributes, and foreign nodes."""
    keys = [key for key in expected if key.endswith(f"/{_ROOT}")]
    found = read_many(place, keys)
    mended = {key: compare.node_of(_mended(key, expected[key], found[key])) for key in keys}
    nodes = {key.removesuffix(f"/{_ROOT}"): node for key, node in mended.items()}
    wanted = compare.node_of(root)
    whole = compare.consolidate(wanted, {**nodes, **others})
    return root if whole == wanted else compare.encode(whole)


def put(place: Place, contents: Mapping[str, bytes]) -> None:
    """Write small files, with the root's metadata last. Raises StorageError."""
    keys = [key for key in contents if key != _ROOT]
    with ThreadPoolExecutor(place.hands) as pool:
        list(pool.map(place.write, keys, [contents[key] for key in keys]))
    if _ROOT in contents:
        place.write(_ROOT, contents[_ROOT])


def publish(plan: Plan, place: Place, facts: Mapping[str, Any], status: str) -> None:
    """Publish the store with `status`: write groups, STAC item, root metadata, and last the record with all digests.

    Raises IntegrityError if other small files differ from the plan and another software version wrote them.
    """
    expected = expected_files(plan, facts, status)
    groups = {f"{group}/{_ROOT}".lstrip("/"): group for group in ("", *groups_of(plan))}
    seen = compare_files(place, expected, expected)
    wrong = [key for key in seen.faults if key not in groups and key != ITEM_KEY]
    if wrong and plan.version != VERSION:
        raise IntegrityError(
            f"{place.shown(wrong[0])} {seen.faults[wrong[0]][0]}",
            f"what version {plan.version} wrote when the run began; this is version {VERSION}",
            "finish the run with the version that began it, or start a new store",
        )
    put(place, seen.repairs)
    kept = _kept(plan, place)
    files = {**expected, **kept, PLAN_KEY: place.read(PLAN_KEY) or b""}
    record = Published(
        plan.digest,
        status,
        facts,
        {group: attributes_of(expected[key]) for key, group in groups.items()},
        {key: digest(content) for key, content in files.items()},
        {key: content.decode() for key, content in kept.items()},
    )
    place.write(published.KEY, published.dump(record))


def _kept(plan: Plan, place: Place) -> dict[str, bytes]:
    """Return the records of the software that computed units, after restoring those lost since the last publication."""
    before = published.find(place)
    known = dict(before.kept) if before is not None and before.plan_digest == plan.digest else {}
    there = software.contents(plan, place)
    put(place, {key: text.encode() for key, text in known.items() if key not in there})
    return {**{key: text.encode() for key, text in known.items()}, **there}


def is_published(plan: Plan, place: Place, facts: Mapping[str, Any], status: str, *, full: bool) -> bool:
    """Return True if the store is published with these facts and, with `full`, no small file differs."""
    record = published.find(place)
    if record is None or (record.plan_digest, record.status) != (plan.digest, status) or not record.files:
        return False
    if json.dumps(dict(record.facts), sort_keys=True) != json.dumps(dict(facts), sort_keys=True):
        return False
    try:
        if attributes_of(place.read(_ROOT)).get("status") != status:
            return False
    except (OSError, ValueError):
        return False
    return not full or not look(plan, place, record, None, "", full=True).faults
