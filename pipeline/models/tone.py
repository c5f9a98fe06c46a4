"""Map between reflectance and images from 0 to 1, for networks of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from pipeline.models.bundle import BundleError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

Curve = Literal["root", "linear"]


@dataclass(frozen=True)
class Tone:
    """image = (rho / white) ** (1 / 2) with the curve "root", rho / white with "linear"."""

    kind: Curve
    white: float  # reflectance of 1

    @classmethod
    def of(cls, normalisation: Mapping[str, Any]) -> Tone:
        """Return the tone of a bundle. Raises BundleError for another normalisation."""
        white = normalisation.get("white")
        for kind in get_args(Curve):
            if normalisation.get("kind") == kind and isinstance(white, int | float) and white > 0:
                return cls(kind, float(white))
        raise BundleError(f"weights with normalisation {dict(normalisation)}", f"{' or '.join(get_args(Curve))}")

    @property
    def described(self) -> dict[str, Any]:
        """Entry of a bundle."""
        return {"kind": self.kind, "white": self.white}

    def to_image(self, reflectance: Tensor) -> Tensor:
        """Return the image of reflectance, clipped to 0..1."""
        share = (reflectance / self.white).clamp(0.0, 1.0)
        return share.sqrt() if self.kind == "root" else share

    def to_reflectance(self, image: Tensor) -> Tensor:
        """Return the reflectance of an image, clipped to 0..white."""
        share = image.clamp(0.0, 1.0)
        return self.white * (share.square() if self.kind == "root" else share)


OURS = Tone("root", 0.5)
RELEASED = Tone("linear", 0.3)  # of Sentinel-2's true-colour images, in 8 bits
