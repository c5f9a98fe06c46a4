"""Compare Zarr metadata with what a run writes: lost or changed metadata is a fault, added metadata is not.

Other programs may add attributes and arrays, reformat the JSON, or consolidate again. Only an added attribute that
changes how an array is decoded is a fault.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

CONSOLIDATED = "consolidated_metadata"
# Attributes that change how readers decode an array (CF conventions, xarray).
_DECODING = {
    "scale_factor", "add_offset", "_FillValue", "missing_value", "_Unsigned", "dtype", "units", "calendar",
    "valid_range", "valid_min", "valid_max", "flag_values", "flag_masks", "flag_meanings",
}  # fmt: skip
_SHOWN_CHARS = 60

Node = dict[str, Any]


class Difference(NamedTuple):
    """Faults of a file, and notes on harmless differences."""

    faults: list[str]
    notes: list[str]


def node_of(content: bytes) -> Node:
    """Parse a zarr.json into a dictionary. Raises ValueError if it is not Zarr metadata."""
    node = json.loads(content)
    if not isinstance(node, dict) or not isinstance(node.get("attributes", {}), dict):
        raise ValueError("no Zarr metadata")
    return node


def compare_nodes(expected: Node, found: Node) -> Difference:
    """Compare two nodes, ignoring their consolidated metadata."""
    faults: list[str] = []
    notes: list[str] = []
    fields = [name for name in {**expected, **found} if name not in ("attributes", CONSOLIDATED)]
    for name in fields:
        if expected.get(name) != found.get(name):
            faults.append(f"{name} is {_shown(found, name)}, expected {_shown(expected, name)}")
    wanted, there = expected.get("attributes", {}), found.get("attributes", {})
    for name, value in wanted.items():
        if name not in there:
            faults.append(f"attribute {name} is missing")
        elif there[name] != value:
            faults.append(f"attribute {name} is {_shown(there, name)}, expected {_shown(wanted, name)}")
    added = [name for name in there if name not in wanted]
    decoding = [name for name in added if name in _DECODING and expected.get("node_type") == "array"]
    faults += [f"attribute {name} was added, which changes how values are read" for name in decoding]
    if others := [name for name in added if name not in decoding]:
        notes.append(f"has further attributes: {', '.join(others)}")
    return Difference(faults, notes)


def compare_consolidated(expected: Node, found: Node, others: Mapping[str, Node], prefix: str = "") -> Difference:
    """Compare the consolidated metadata of the group at `prefix` with the nodes that the run wrote.

    `others` are further nodes of the store, {path: node}, that the run did not write.
    """
    try:
        nodes = dict(found[CONSOLIDATED]["metadata"])
    except (KeyError, TypeError, ValueError):
        return Difference([f"{CONSOLIDATED} is missing or cannot be read"], [])
    faults: list[str] = []
    for path, node in expected.items():
        if path not in nodes:
            faults.append(f"{CONSOLIDATED} lacks {path}")
        elif not isinstance(nodes[path], dict) or not isinstance(nodes[path].get("attributes", {}), dict):
            faults.append(f"{CONSOLIDATED} of {path} cannot be read")
        else:
            faults += [f"{CONSOLIDATED} of {path}: {what}" for what in compare_nodes(node, nodes[path]).faults]
    for path in nodes:
        if path not in expected and f"{prefix}{path}" not in others:
            faults.append(f"{CONSOLIDATED} names {path}, which is not there")
    return Difference(faults, [])


def consolidated_nodes(root: Node) -> dict[str, Node]:
    """Return {path: node} of a root that a run wrote."""
    nodes: dict[str, Node] = root[CONSOLIDATED]["metadata"]
    return nodes


def with_added_attributes(expected: Node, found: Node | None) -> Node:
    """Return `expected` with the attributes that other programs added.

    Names one bit away from a lost attribute, and attributes that change how an array is decoded, are dropped.
    """
    wanted = expected.get("attributes", {})
    there = {} if found is None else found.get("attributes", {})
    lost = [name for name in wanted if name not in there]
    added = {
        name: value
        for name, value in there.items()
        if name not in wanted
        and not any(_one_bit_apart(name, other) for other in lost)
        and not (name in _DECODING and expected.get("node_type") == "array")
    }
    return {**expected, "attributes": {**wanted, **added}} if added else expected


def consolidate(root: Node, nodes: Mapping[str, Node]) -> Node:
    """Return a root that consolidates `nodes` {path: node} in zarr's order: by depth, then by name."""
    entries = {}
    for path in sorted(nodes, key=lambda path: (path.count("/"), path)):
        node = {name: value for name, value in nodes[path].items() if name != CONSOLIDATED}
        if node.get("node_type") == "group":
            kind = node.pop("node_type")
            node |= {CONSOLIDATED: {**root[CONSOLIDATED], "metadata": {}}, "node_type": kind}
        entries[path] = node
    return {**root, CONSOLIDATED: {**root[CONSOLIDATED], "metadata": entries}}


def encode(node: Node) -> bytes:
    """Encode a node as zarr does."""
    return json.dumps(node, indent=2).encode()


def _one_bit_apart(one: str, other: str) -> bool:
    """Return whether two names differ in exactly one bit."""
    pairs = zip(one.encode(), other.encode(), strict=False)
    return len(one.encode()) == len(other.encode()) and sum((a ^ b).bit_count() for a, b in pairs) == 1


def _shown(node: Mapping[str, Any], name: str) -> str:
    if name not in node:
        return "missing"
    text = json.dumps(node[name])
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."
