"""`check` and `view`: finished stores, verified and as a page."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import TYPE_CHECKING

from pipeline import check as check_command
from pipeline.errors import UsageError
from pipeline.process import guest
from pipeline.store.place import place_of
from pipeline.store.receipts import VERIFY_LEVELS
from pipeline.view import written

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.check import StoreReport


def check(
    store: str | os.PathLike[str], *, verify: str = "size", repair: bool = False, workers: int = 1
) -> StoreReport:
    """Verify a store and return what was found: `.ok`, `.exit_code`, `.found`, and a text when it is shown.

    `verify` is "none", "size" or "full", which reads every byte. `repair` computes damaged, missing and quarantined
    units again first. Raises UsageError if `store` is not a store of this pipeline.
    """
    if verify not in VERIFY_LEVELS:
        raise UsageError(f"verify = {verify!r}", f"one of {', '.join(VERIFY_LEVELS)}")
    with guest():
        if repair:
            check_command.repair(place_of(os.fspath(store)).absolute(), verify, workers)
        return check_command.examine(place_of(os.fspath(store)), verify)


def view(
    store: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    time: str | None = None,
    zone: str | None = None,
    at: Sequence[float] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a store's report page, one HTML file that needs no network, and return its path.

    `out` is by default the store's name with the suffix .html, beside it. `time` and `zone` choose what is shown, `at`
    (longitude, latitude) the place of a large store that is shown at 2.5 m. A file that is no report page is only
    replaced with `overwrite`. Raises UsageError.
    """
    asked = Namespace(
        store=os.fspath(store),
        out=None if out is None else os.fspath(out),
        time=time,
        zone=zone,
        at=None if at is None else [float(degrees) for degrees in at],
        overwrite=overwrite,
    )
    with guest():
        return written(asked)[1]
