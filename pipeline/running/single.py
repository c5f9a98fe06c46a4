"""`python -m pipeline.running.single STORE UNIT`: compute one unit alone, to see why it fails."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pipeline.errors import EXIT_OK, PipelineError, UsageError
from pipeline.parsers import CommandParser
from pipeline.planning.plan import load_plan
from pipeline.running.trust import require_local_access
from pipeline.running.unit import process
from pipeline.store.place import place_of

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Compute one unit of a store and print its status; returns the exit code."""
    parser = CommandParser("python -m pipeline.running.single", description=__doc__)
    parser.add_argument("store", help="folder or URL")
    parser.add_argument("unit", help="its id, such as z32631-r2-c0-t0")
    arguments = parser.parse_args(argv)
    try:
        place = place_of(arguments.store).absolute()
        plan = load_plan(arguments.store)
        unit = next((unit for unit in plan.units() if unit.id == arguments.unit), None)
        if unit is None:
            raise UsageError(f"{arguments.store} has no unit {arguments.unit}", "an id as pipeline.check lists them")
        require_local_access(plan)
        receipt = process(unit, str(place), plan.digest)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{unit.id}: {receipt.status}, {receipt.windows} windows, {sum(receipt.seconds.values()):.1f} s")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
