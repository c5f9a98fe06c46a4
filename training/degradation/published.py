"""Where the released DiffFuSR code departs from what its paper says or what it seems to mean.

By default training does the sound thing; each departure is one switch, for those who want to repeat the release.
In: names of switches. Out: `AsPublished`. Imports the errors.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class AsPublished:
    """Switches, all off by default; `--as-published` turns on those it names, or all.

    Two published numbers are no switches because they are the default already: the contrastive weight 0.05 of the
    code (the paper's eq. 8 has 0.01), which a preset's `recipe` holds, and the unscaled noise level.
    """

    angle: bool = False  # kernels turn by 0 to 1 degree (a factor pi / 180 too many) instead of over the half circle
    anisotropic: bool = False  # every kernel has two widths, 0.2 to 4 px, instead of every second
    noise: bool = False  # noise of sd U(0, 25) / 255, up to 0.098 reflectance, instead of 5e-4 to 1e-2, log-uniform
    hr_8bit: bool = False  # harmonised reflectance is cut to steps of 1 / 255 before it is learned from
    lr_8bit: bool = False  # so is the coarse image, rounded
    squared: bool = False  # mean squared error of x0 (code) instead of the mean absolute error (paper, eq. 5)

    @classmethod
    def of(cls, names: Sequence[str]) -> AsPublished:
        """The named switches on. Raises UsageError for a name that is none."""
        unknown = [name for name in names if name not in SWITCHES]
        if unknown:
            raise UsageError(
                f"--as-published {unknown[0]} is not known", f"none (for all), or of {', '.join(SWITCHES)}"
            )
        return cls(**dict.fromkeys(names, True))


SWITCHES = tuple(field.name for field in fields(AsPublished))
