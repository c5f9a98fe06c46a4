"""Checks that the local catalogue allows everything a plan opens. A store and its plan may be untrusted."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pipeline.archive.catalog import load_catalog
from pipeline.archive.read.access import Access
from pipeline.archive.stac.files import file_items
from pipeline.errors import UsageError
from pipeline.redaction import redact

if TYPE_CHECKING:
    from pipeline.archive.catalog import Catalog
    from pipeline.planning.plan import Plan

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+._-]+:")
_LENIENT = ("hosts", "roots", "connections")  # fields of Access that may differ from the local ones


def require_local_access(plan: Plan) -> None:
    """Raise UsageError unless the local definition of the catalogue allows everything that the plan opens.

    This covers hosts, signing, the source of tokens, and every file. With a catalogue of files, the plan may only open
    files in folders of files that the catalogue lists.
    """
    try:
        catalog = load_catalog(plan.config.catalog)
        local = catalog.access()
    except UsageError as error:
        raise UsageError(
            f"the plan is of the catalogue {plan.config.catalog[:200]!r}, which cannot be read here ({error.found})",
            "the catalogue, which says what may be opened",
            "put it where the plan expects it, or start a new store",
        ) from error
    strange = [field.name for field in fields(Access) if field.name not in _LENIENT]
    wrong = [name for name in strange if getattr(plan.access, name) != getattr(local, name)]
    hosts = [host for host in plan.access.hosts if host not in local.hosts]
    if wrong or hosts:
        found = [f"{name} {redact(str(getattr(plan.access, name)))[:200]!r}" for name in wrong]
        found += [f"host {redact(host)[:200]!r}" for host in hosts[:3]]
        raise UsageError(
            f"the plan requires {', '.join(found)}",
            f"what the catalogue {plan.config.catalog} allows on this machine",
            "if the plan is yours, mend the catalogue; if it is somebody else's, plan the area anew",
        )
    _require_files(plan, catalog, local)


def _require_files(plan: Plan, catalog: Catalog, local: Access) -> None:
    hrefs = sorted({href for scene in plan.scenes.values() for href in scene.hrefs.values()})
    paths = [href for href in hrefs if _is_path(href)]
    for href in hrefs:
        if catalog.kind != "file" or href not in paths:
            local.check(href)
    if catalog.kind != "file" or not paths:
        return
    known = _folders(Path(catalog.url))
    for href in paths:
        if _path(href).parent not in known:
            raise UsageError(
                f"the plan opens {href[:200]!r}",
                f"files in folders of those that {catalog.url} lists",
                "if the plan is yours, index the files anew; if it is somebody else's, plan the area anew",
            )


def _folders(source: Path) -> set[Path]:
    """Return the folders of all local files that a catalogue of files lists."""
    found = set()
    for item, base in file_items(source):
        assets = item.get("assets") if isinstance(item, dict) else None
        for asset in (assets if isinstance(assets, dict) else {}).values():
            href = str(asset.get("href", "")) if isinstance(asset, dict) else ""
            if href and _is_path(href):
                found.add(_path(href, base).parent)
    return found


def _is_path(href: str) -> bool:
    found = _ADDRESS.match(href)
    return found is None or found[0].lower() == "file:"


def _path(href: str, base: str = "") -> Path:
    path = unquote(urlsplit(href).path) if href[:5].lower() == "file:" else href
    return (Path(base) / path).resolve()
