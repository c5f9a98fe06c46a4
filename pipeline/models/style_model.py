"""Weights that draw styles: one distribution of the means of style features, one of their standard deviations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pipeline.models.bundle import Bundle, BundleError, load_into
from pipeline.models.diffusion_prior import BANDS
from pipeline.models.guidance_parts import STYLE_EPS, Style
from pipeline.models.style_flow import COUPLINGS_OF_CODE, DIM, HIDDEN, GaussianStyle, StyleDistribution, StyleFlow

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.models.bundle import LatticeSpec

SYSTEM = "sgdm-style"
FLOW, GAUSSIAN = "flow", "gaussian"
# Of the released flows. `log_std`: the second distribution is that of logarithms. `couplings` and `hidden`: of flows.
PUBLISHED: dict[str, Any] = {
    "model": FLOW,
    "dim": DIM,
    "couplings": COUPLINGS_OF_CODE,
    "hidden": list(HIDDEN),
    "log_std": False,
}


class StyleModel(nn.Module):
    """Distribution of styles of an architecture such as `PUBLISHED`; means and deviations are independent."""

    def __init__(self, architecture: Mapping[str, Any]) -> None:
        super().__init__()
        sizes = {**PUBLISHED, **architecture}
        if unknown := sorted(set(sizes) - set(PUBLISHED)):
            raise BundleError(f"style model with {', '.join(unknown)}", ", ".join(PUBLISHED))
        if sizes["model"] not in (FLOW, GAUSSIAN):
            raise BundleError(f"style model {sizes['model']!r}", f"{FLOW!r} or {GAUSSIAN!r}")
        self.dim, self.log_std = int(sizes["dim"]), bool(sizes["log_std"])
        self.mean, self.std = _distribution(sizes), _distribution(sizes)

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> StyleModel:
        """Load the distributions of a bundle on the CPU. Raises BundleError if the tensors do not fit."""
        if bundle.system != SYSTEM:
            raise BundleError(f"weights {bundle.path} are of kind {bundle.system}", SYSTEM)
        model = cls(bundle.architecture)
        load_into(model, bundle)
        return model.eval().requires_grad_(False)

    def draw(self, noise: Tensor) -> Style:
        """Return one style (B, C) for each of standard normal noise (B, 2, C): of the mean, then of the deviation."""
        mean, std = self.mean.draw(noise[:, 0]), self.std.draw(noise[:, 1])
        return Style(mean, std.exp() if self.log_std else std.clamp_min(STYLE_EPS))

    def vectors(self, style: Style) -> tuple[Tensor, Tensor]:
        """Return the vectors (B, C) of a style whose distributions these are."""
        return style.mean, style.std.log() if self.log_std else style.std

    def log_prob(self, style: Style) -> Tensor:
        """Return the logarithm of the density of the vectors of styles (B, C), (B,)."""
        mean, std = self.vectors(style)
        return self.mean.log_prob(mean) + self.std.log_prob(std)


def style_bundle(
    architecture: Mapping[str, Any],
    lattice: LatticeSpec,
    provenance: Mapping[str, Any] | None = None,
    licence: str = "",
) -> Bundle:
    """Return the metadata of a style model for `save_bundle`."""
    return Bundle(
        system=SYSTEM,
        architecture={**PUBLISHED, **architecture},
        in_bands=BANDS,
        out_bands=BANDS,
        scale=1,
        lattice=lattice,
        provenance=dict(provenance or {}),
        licence=licence,
    )


def _distribution(sizes: Mapping[str, Any]) -> StyleDistribution:
    if sizes["model"] == GAUSSIAN:
        return GaussianStyle(sizes["dim"])
    return StyleFlow(sizes["couplings"], sizes["dim"], tuple(sizes["hidden"]))
