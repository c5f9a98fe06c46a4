"""One x2 level of CSP-WaveDiffUR: band A under the projection of eq. 9, details by M, then the inverse Haar transform.

After Shi, Han, Dancy and Han, "WaveDiffUR: a diffusion SDE-based solver for ultra magnification super-resolution in
remote sensing images"; equation and algorithm numbers are theirs.

A cascade repeats the level with the same weights, and its condition is computed anew each time.

What the diffusion generates under hard consistency
---------------------------------------------------
The paper diffuses band A alone. Where an input pixel is the mean of four output pixels, A is 2 * input exactly, and
nothing is left to draw: only V, H and D, three quarters of the coefficients, are unknown. The score network therefore
models all four bands together, as residuals of the estimates of T_theta and M, and eq. 9 acts on A only:

- `low_pass_px` 1 (default): phi is the identity. A is known at every step, at the noise of that step, and V, H and D
  are drawn given A, by the projection onto measurements of Chung et al. 2022, "Improving diffusion models for inverse
  problems using manifold constraints", which eq. 9 follows without its gradient step. The mean over each input pixel is
  the input, for any weights.
- `low_pass_px` N = 2, 4, 8: only the means over N x N px of the input are kept. What the sensor's blur has moved
  between input pixels within them is part of A, which T_theta estimates and the diffusion draws.
- 0: no projection.

A call without noise gives the estimates of T_theta and M with the same projection of A. Trained by squared errors they
are the conditional mean.

Choices where the paper is silent or contradicts itself
-------------------------------------------------------
1. The number of levels of a cascade is log2 of the scale, where the paper divides by the rate.
2. tau is in the domain of A on the input's grid: 2 * image + T_theta. Eq. 6 read literally (`tau="literal"`) upsamples
   the coarse bands of the input and throws its finest detail away; it serves comparisons only.
3. phi is the block mean, an orthogonal projector. Only then does eq. 9 give phi(A_0) = phi(tau).
4. The condition is computed at every level, as the text says, not once before the loop as in algorithm 2.
5. The score is unconditional where its condition is left out (in a share of the training), and else also reads the
   image, tau and M's residual: the text has both "unconditional" and "additional input".
6. The reference lies on the output's grid, where its Haar bands are those sought; the paper's is 1.5 times the input.
   M reads its details less those of the upsampled image, so that self-reference adds nothing. Where there is no
   reference (NaN), the upsampled image stands for it. Before that, its radiometry is matched in squares of 17 px, and
   those of other ground are left out (`pipeline.models.reference`); the paper's reference is the truth itself.
7. M reads, besides the coarse bands, those of the upsampled image and the image itself, folded to the coarse grid. Its
   result and what T_theta gives for the details (tau as a condition of the high frequencies, eq. 17) are added to the
   bands of the upsampled image; last convolutions start at zero, so that an untrained level is bicubic interpolation
   made consistent. T_theta has residual blocks of two convolutions before its dilated block: by CPU time, they learn
   several times faster than chains of five dilated convolutions, which M keeps.
8. V is outside the softmax of eq. 18. Queries are those of the image (T_theta) and of V and H (M).
9. r and sigma of eqs. 10 and 17 are two numbers, 0 by default, in the units of M's input and output. The noise is
   M(x + r z1) + sigma z2, which has the covariance of eq. 10 for a linear M. The spread of the residuals that the
   diffusion draws is estimated per pixel and band from M's features, as in `pipeline.models.lite`.
10. Attention is within squares of 8 px. Over all pixels, its cost would grow with the square of the area.
11. Widths: T_theta 540, M 160, score U-Net (64, 128, 192) with 2 blocks. They reproduce the counts that table 5
    implies (15.0, 4.3 and 9.8 M) to 5 %; the text has no others.
12. Sampling: 10 DDIM steps with eta 0. The paper trains with 1000 and does not say how many it samples with.
13. The networks are told whether a sensor has blurred the image, as it has at the first level of a cascade over
    measured bands. All other levels read means of what is sought. The paper has bicubic decimation throughout.
14. A backbone (eqs. 6 and 11) takes the place of all networks of a level: its output is made consistent by replacing
    the coefficients that its input determines. One of x4 is a step of two levels.
15. The diffusion preserves variance, with linear betas (`process` "vp"). With "ir-sde" it is the mean-reverting
    equation of the paper's reference 31, from the truth to the estimates; see `pipeline.models.wavelet_diffusion`.
16. Details take no pixel below zero: in blocks of 2 x 2 px where they would, their share is smaller. The mean, which A
    holds, stays; a block whose mean is negative stays as it is. The paper has no such limit, nor has `tau="literal"`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from pipeline.models.bundle import Bundle, BundleError, LatticeSpec, load_into
from pipeline.models.diffusion import MAX_STEPS, timesteps
from pipeline.models.layout import moved
from pipeline.models.wavelet import from_details, not_below_zero, padded_to_multiple, projected
from pipeline.models.wavelet_diffusion import alpha_bar_of, detail_sample, reverse_diffusion, towards
from pipeline.models.wavelet_network import NORMALISATION, SMALL, MeanEstimate, WaveletNetwork

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Noise = Callable[[int, int, int], Tensor]  # (draw, channels, px of the output per px) -> (B, channels, h, w)

SYSTEM = "wavediffur-sr"
SCALE = 2
MOST_SCALE = 128
BANDS = ("B04", "B03", "B02", "B08")
# In px of the output; at 5 m, windows of 2560 m, stride 1920 m, ramp 320 m, margin 160 m. Windows begin at multiples of
# 64 px, so that squares of attention nest in them, also at the score network's lowest stride.
LATTICE = LatticeSpec(window_px=512, stride_px=384, ramp_px=64, margin_px=32)
SAMPLER: dict[str, Any] = {"steps": 10, "eta": 0.0, "low_pass_px": 1, "tau": "exact", "r": 0.0, "sigma": 0.0}
LOW_PASS_PX = (0, 1, 2, 4, 8)
# What a sensor's blur has moved between pixels is restored within this many of them, 80 m at 10 m. Other levels read
# means, which they keep one by one.
MEASURED_LOW_PASS_PX = 8

# Draws of noise by number
_START, _COARSE_DETAILS, _DETAILS, _FIRST_STEP = 0, 1, 2, 3


@dataclass(frozen=True)
class LevelOptions:
    """How a level is computed; fields and defaults are those of `SAMPLER`. Raises ValueError for others than these.

    steps (1 to 50) and eta (0 to 1) are those of the reverse diffusion. low_pass_px is N of eq. 9 in px
    of the input, 0 for no projection. tau is "exact" or "literal". r and sigma are those of eq. 17.
    """

    steps: int = SAMPLER["steps"]
    eta: float = SAMPLER["eta"]
    low_pass_px: int = SAMPLER["low_pass_px"]
    tau: Literal["exact", "literal"] = "exact"
    r: float = SAMPLER["r"]
    sigma: float = SAMPLER["sigma"]

    def __post_init__(self) -> None:
        faults = []
        if not 1 <= self.steps <= MAX_STEPS or not 0 <= self.eta <= 1:
            faults.append(f"steps {self.steps} and eta {self.eta}; expected 1 to {MAX_STEPS}, and 0 to 1")
        if self.low_pass_px not in LOW_PASS_PX:
            faults.append(f"low_pass_px {self.low_pass_px}; expected one of {', '.join(map(str, LOW_PASS_PX))}")
        if self.tau not in ("exact", "literal"):
            faults.append(f"tau {self.tau!r}; expected 'exact' or 'literal'")
        if min(self.r, self.sigma) < 0:
            faults.append(f"r {self.r} and sigma {self.sigma}; expected at least 0")
        if faults:
            raise ValueError("; ".join(faults))


class WaveDiffUR:
    """A x2 level of the bundle's bands by `WaveletNetwork`, to be repeated."""

    def __init__(self, network: WaveletNetwork, bundle: Bundle) -> None:
        self.network = network.eval()
        self.bundle = bundle
        try:
            self.options = LevelOptions(**bundle.sampler)
        except (TypeError, ValueError) as error:
            found = f"weights {bundle.path} have sampler {bundle.sampler} ({error})"
            raise BundleError(found, f"settings {', '.join(SAMPLER)}") from error
        self.alpha_bar = alpha_bar_of(network.score.process)

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> WaveDiffUR:
        """Load the network of a bundle on the CPU. Raises BundleError if the tensors do not fit."""
        network = WaveletNetwork(**bundle.architecture, normalisation=bundle.normalisation, bands=len(bundle.in_bands))
        load_into(network, bundle)
        return cls(network.requires_grad_(False), bundle)

    def to(self, device: torch.device) -> WaveDiffUR:
        """Move the weights to `device` and return self."""
        moved(self.network, device)
        return self

    def level(
        self,
        image: Tensor,
        noise: Noise | None = None,
        reference: Tensor | None = None,
        options: LevelOptions | None = None,
        *,
        measured: bool = False,
    ) -> Tensor:
        """Return reflectance (B, C, 2H, 2W) of reflectance (B, C, H, W): a draw from `noise`, or the mean without.

        `reference` (B, C, 2H, 2W) is reflectance of the same bands on the output's grid, NaN where unknown.
        `noise(draw, channels, coarser)` returns standard normals (B, channels, 2H / coarser, 2W / coarser), independent
        for different draws. `measured` says that a sensor has blurred the image: the networks then undo the blur, and
        only means over `MEASURED_LOW_PASS_PX` of the image are kept. Else, with tau "exact" and low_pass_px 1, means of
        2 x 2 px are the input for any weights. Unless tau is "literal", details take no pixel below zero
        (`not_below_zero`). Raises ValueError for a draw of odd sides, and for a reference of another size.
        """
        options, (height, width) = options or self.options, image.shape[-2:]
        options = replace(options, low_pass_px=MEASURED_LOW_PASS_PX) if measured else options
        _check(image, noise, reference)
        estimate = self.network.estimate(
            padded_to_multiple(image, 2),
            None if reference is None else padded_to_multiple(reference, 4),
            measured=measured,
            literal=options.tau == "literal",
        )
        low, details = estimate.low, estimate.details
        if noise is not None:
            low, details = self._draw(estimate, noise, options)
            details = details + self._detail_noise(image, reference, noise, options, measured)
        low = projected(low, estimate.target, options.low_pass_px)
        fine = from_details(low, details)
        fine = fine if options.tau == "literal" else not_below_zero(fine, low / 2)
        return fine[..., : 2 * height, : 2 * width]

    def _draw(self, estimate: MeanEstimate, noise: Noise, options: LevelOptions) -> tuple[Tensor, Tensor]:
        """Return A and V, H, D drawn by reverse diffusion of their standardised residuals (eqs. 8 and 9)."""
        channels, score = self.network.bands, self.network.score
        tau = (estimate.target - estimate.low) / estimate.spread[:, :channels]
        towards_tau = towards(tau, options.low_pass_px, lambda k: noise(_FIRST_STEP + 2 * k, channels, 2))

        def epsilon(x: Tensor, t: int) -> Tensor:
            eps: Tensor = score(x, torch.full((len(x),), t, device=x.device), estimate.condition)
            return eps

        def project(x: Tensor, k: int, alpha_bar: float) -> Tensor:
            return torch.cat((towards_tau(x[:, :channels], k, alpha_bar), x[:, channels:]), dim=1)

        state = reverse_diffusion(
            epsilon,
            noise(_START, 4 * channels, 2),
            timesteps(options.steps, len(self.alpha_bar), "published"),
            self.alpha_bar,
            options.eta,
            lambda k: noise(_FIRST_STEP + 2 * k + 1, 4 * channels, 2),
            project,
            optimal=score.process == "ir-sde",
        )
        return estimate.bands(state)

    def _detail_noise(
        self, image: Tensor, reference: Tensor | None, noise: Noise, options: LevelOptions, measured: bool
    ) -> Tensor | float:
        """Return what the noise of eq. 17 adds to V, H, D (B, 3C, H, W) in reflectance, 0 if r and sigma are 0."""
        if options.r == options.sigma == 0:
            return 0.0
        network, details = self.network, 3 * self.network.bands
        _, _, inputs = network.inputs(image, reference, measured=measured)
        z1, z2 = noise(_COARSE_DETAILS, details, 4), noise(_DETAILS, details, 2)

        def restore(lr: Tensor) -> Tensor:
            return network.cshr.details(network.features(replace(inputs, lr=lr)))

        drawn = detail_sample(restore, inputs.lr, options.r, z1, options.sigma, z2)
        return network.unit(image).repeat(1, 3, 1, 1) * (drawn - restore(inputs.lr))


def wavediffur_bundle(
    architecture: Mapping[str, Any] = SMALL,
    bands: tuple[str, ...] = BANDS,
    provenance: Mapping[str, Any] | None = None,
    licence: str = "",
    sampler: Mapping[str, Any] | None = None,
) -> Bundle:
    """Return this system's bundle for `save_bundle`."""
    return Bundle(
        system=SYSTEM,
        architecture=dict(architecture),
        in_bands=bands,
        out_bands=bands,
        scale=SCALE,
        lattice=LATTICE,
        normalisation=dict(NORMALISATION),
        sampler={**SAMPLER, **(sampler or {})},
        provenance=dict(provenance or {}),
        licence=licence,
    )


def levels_of(scale: int) -> int:
    """Return how many levels of x2 give `scale`. Raises ValueError unless it is a power of 2 from 2 to 128."""
    if not 2 <= scale <= MOST_SCALE or scale & (scale - 1):
        msg = f"scale {scale}; expected 2, 4, 8, 16, 32, 64 or {MOST_SCALE}"
        raise ValueError(msg)
    return scale.bit_length() - 1


def _check(image: Tensor, noise: Noise | None, reference: Tensor | None) -> None:
    height, width = image.shape[-2:]
    if noise is not None and (height % 2 or width % 2):
        msg = f"a draw of {height} x {width} px; expected even sides"
        raise ValueError(msg)
    expected = (*image.shape[:2], 2 * height, 2 * width)
    if reference is not None and tuple(reference.shape) != expected:
        msg = f"a reference of shape {tuple(reference.shape)}; expected {expected}, the output's"
        raise ValueError(msg)
