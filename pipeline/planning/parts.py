"""Parts of a frozen plan for job arrays.

Part J of N is contiguous in the plan's order and follows from the plan alone, without coordination between jobs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.planning.plan import Plan
    from pipeline.planning.units import Unit


MAX_PARTS = 100_000  # of an Indexed Job; SLURM's own limit is MaxArraySize


@dataclass(frozen=True)
class Part:
    """Part `number` (from 1) of `of`, taken from every pass of a plan or only from the pass `of_pass` (from 1).

    >>> Part.parse("3/64").label
    '3-of-64'
    """

    number: int
    of: int
    of_pass: int | None = None

    @classmethod
    def parse(cls, text: str, of_pass: int | None = None, planned: int = 0) -> Part:
        """Parse "J/N" with 1 <= J <= N, or "J" if the plan is for `planned` parts. Raises UsageError otherwise."""
        found = re.fullmatch(r"(\d{1,6})(?:/(\d{1,6}))?", text)
        of = int(found[2] or planned) if found else 0
        if planned and found and (of != planned or not 1 <= int(found[1]) <= planned):
            raise UsageError(
                f"--shard-of {text}, but the plan is for {planned} parts",
                f"1/{planned} to {planned}/{planned}",
                "python -m pipeline.run --plan STORE --plan-only --parts N sets another number",
            )
        if not found or not 1 <= int(found[1]) <= of:
            raise UsageError(f"--shard-of {text}", "J/N with 1 <= J <= N, such as 3/64")
        return cls(int(found[1]), of, of_pass)

    @property
    def label(self) -> str:
        """Name of the part, safe in file names."""
        return f"{self.number}-of-{self.of}"

    def units(self, plan: Plan) -> list[Unit]:
        """Return the units of this part, in the plan's row order. The list may be empty.

        Raises UsageError if the plan has no pass `of_pass`.
        """
        passes = range(1, len(plan.passes) + 1)
        if self.of_pass is not None and self.of_pass not in passes:
            raise UsageError(f"--pass {self.of_pass}", f"1 to {len(passes)}: the plan's passes")
        chosen = passes if self.of_pass is None else [self.of_pass]
        return [unit for number in chosen for unit in self.cut(list(plan.units_of(number - 1)))]

    def cut(self, units: list[Unit]) -> list[Unit]:
        """Return this part's share of `units`, all units of one pass in plan order."""
        return units[len(units) * (self.number - 1) // self.of : len(units) * self.number // self.of]


def empty_parts(units: Sequence[int], of: int) -> int:
    """Return how many of `of` parts have no unit, where the passes of a plan have so many units.

    >>> empty_parts([3], 5), empty_parts([3, 5], 5)
    (2, 0)
    """
    return sum(all(count * (j - 1) // of == count * j // of for count in units) for j in range(1, of + 1))
