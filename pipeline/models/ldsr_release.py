"""What the released latent diffusion code (opensr-model 1.0) does around the networks, for comparison with it.

The pipeline keeps radiometry by its own contract, takes nodata from masks, and has no need of square windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.models.latent import STRIDE, interpolated
from pipeline.models.latent_sampler import ddim, timesteps

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pipeline.models.latent import LatentNetwork

SIDE_PX = 128  # of the coarse image; smaller ones are padded by reflection
SMALLEST_PX = 44  # padding by reflection takes fewer pixels than there are
MEMBERS = 15  # draws of the released uncertainty


@dataclass(frozen=True)
class Normalisation:
    """Scaling of reflectance in releases before 1.0: `gains` per band (`ldsr_published.GAINS`).

    as_released: condition on the interpolation of gain * reflectance, which is neither clamped nor shifted. The release
    scales its input in place and discards what it normalised. Otherwise the condition is in network range, as are
    images in training.
    """

    gains: Sequence[float]
    as_released: bool = True

    def to_network(self, reflectance: Tensor) -> Tensor:
        """Return images (B, C, h, w) in network range [-1, 1]. Values outside [0, 1 / gain] are clamped."""
        return self.scaled(reflectance).clamp(0, 1) * 2 - 1

    def to_reflectance(self, image: Tensor) -> Tensor:
        """Return reflectance, clamped to [0, 1], of images in network range."""
        return ((image + 1) / 2 / self._gains(image)).clamp(0, 1)

    def scaled(self, reflectance: Tensor) -> Tensor:
        """Return gain * reflectance."""
        return reflectance * self._gains(reflectance)

    def condition(self, coarse: Tensor) -> Tensor:
        """Return what the condition is interpolated and encoded from, of coarse reflectance."""
        return self.scaled(coarse) if self.as_released else self.to_network(coarse)

    def _gains(self, like: Tensor) -> Tensor:
        return torch.as_tensor(self.gains, dtype=like.dtype, device=like.device)[:, None, None]


def match_histograms(image: Tensor, reference: Tensor) -> Tensor:
    """Return `image` (B, C, H, W) with the cumulative distribution of `reference` (B, C, h, w) in each image and band.

    Equal to `match_histograms` of scikit-image with its channels apart.
    """
    matched = [
        _match(band.cpu().numpy(), to.cpu().numpy())
        for band, to in zip(image.flatten(0, 1), reference.flatten(0, 1), strict=True)
    ]
    return torch.from_numpy(np.stack(matched)).reshape(image.shape).to(image)


def _match(band: NDArray[np.float32], to: NDArray[np.float32]) -> NDArray[np.float64]:
    _, at, counts = np.unique(band, return_inverse=True, return_counts=True)
    values, to_counts = np.unique(to, return_counts=True)
    found: NDArray[np.float64] = np.interp(counts.cumsum() / band.size, to_counts.cumsum() / to.size, values)
    return found[at].reshape(band.shape)


def uncertainty(members: Tensor) -> Tensor:
    """Return two standard deviations (n - 1) of the members (N, B, C, H, W), averaged over bands, (B, H, W).

    The release takes `MEMBERS` draws with eta = 0, so that they differ in the start and in the sampled condition.
    """
    return (2 * members.std(0)).mean(1)


@torch.inference_mode()
def super_resolve(
    network: LatentNetwork,
    coarse: Tensor,
    noise: Callable[[int], Tensor],
    steps: int = 100,
    eta: float = 1.0,
    temperature: float = 1.0,
    matching: bool = True,
    normalisation: Normalisation | None = None,
) -> Tensor:
    """Return reflectance (B, C, 4h, 4w) of coarse reflectance (B, C, h, w), as the release does.

    `noise(k)` returns the k-th draw, of the latent's shape: of the condition (k = 0), of the start (1), of each step.
    Where the coarse image is exactly 0 in a band, so is the result. Raises ValueError for sides that the release does
    not take: at least 44 px, and equal where one is above 128.
    """
    padded, (left, top) = _padded(coarse)
    fine = interpolated(padded if normalisation is None else normalisation.condition(padded))
    epsilon = network.noise(network.unet.prepare(network.encode(fine, noise(0))))

    def drawn(step: int) -> Tensor:
        return noise(step + 2)

    latent = ddim(epsilon, noise(1), network.alpha_bar(), timesteps(steps), eta, drawn, temperature)
    image = network.decode(latent)
    if normalisation is not None:
        image = normalisation.to_reflectance(image)
    image = finished(image, padded, matching)
    h, w = (STRIDE * side for side in coarse.shape[-2:])
    return image[..., STRIDE * top : STRIDE * top + h, STRIDE * left : STRIDE * left + w]


def finished(image: Tensor, coarse: Tensor, matching: bool = True) -> Tensor:
    """Return a decoded image with histograms of the coarse one, nothing negative, and 0 where the coarse one is 0."""
    image = (match_histograms(image, coarse) if matching else image).clamp(min=0)
    empty = functional.interpolate((coarse == 0).to(image.dtype), scale_factor=STRIDE, mode="nearest")
    return image * (1 - empty)


def _padded(coarse: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Return the image padded to `SIDE_PX`, and what was added at its left and top. Raises ValueError."""
    h, w = coarse.shape[-2:]
    more_y, more_x = max(0, SIDE_PX - h), max(0, SIDE_PX - w)
    if min(h, w) < SMALLEST_PX or h + more_y != w + more_x:
        msg = f"image of {h} x {w} px; expected sides of {SMALLEST_PX} to {SIDE_PX} px, or a larger square"
        raise ValueError(msg)
    left, top = more_x // 2, more_y // 2
    return functional.pad(coarse, (left, more_x - left, top, more_y - top), mode="reflect"), (left, top)
