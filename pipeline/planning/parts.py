"""Parts of a frozen plan for job arrays: part J of N, contiguous in the plan's order, known without asking anyone.

In: "3/64" and a plan. Out: the units of that part. Imports plan and errors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.planning.plan import Plan
    from pipeline.planning.units import Unit


@dataclass(frozen=True)
class Part:
    """Part `number` (from 1) of `of`: of every pass of a plan, or of the pass `of_pass` (from 1) alone.

    >>> Part.parse("3/64").label
    '3-of-64'
    """

    number: int
    of: int
    of_pass: int | None = None

    @classmethod
    def parse(cls, text: str, of_pass: int | None = None) -> Part:
        """From "J/N" with 1 <= J <= N. UsageError otherwise."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UsageError(f"--shard-of {text}", "J/N with 1 <= J <= N, such as 3/64")
        return cls(int(found[1]), int(found[2]), of_pass)

    @property
    def label(self) -> str:
        """Name that is safe in file names."""
        return f"{self.number}-of-{self.of}"

    def units(self, plan: Plan) -> list[Unit]:
        """Units of this part: neighbours on the ground as far as the plan's row order has them; may be none.

        UsageError where the plan has no such pass.
        """
        passes = range(1, len(plan.passes) + 1)
        if self.of_pass is not None and self.of_pass not in passes:
            raise UsageError(f"--pass {self.of_pass}", f"1 to {len(passes)}: the plan's passes")
        chosen = passes if self.of_pass is None else [self.of_pass]
        return [unit for number in chosen for unit in self.cut(list(plan.units_of(number - 1)))]

    def cut(self, units: list[Unit]) -> list[Unit]:
        """Of all units of a pass, in their order, those of this part."""
        return units[len(units) * (self.number - 1) // self.of : len(units) * self.number // self.of]
