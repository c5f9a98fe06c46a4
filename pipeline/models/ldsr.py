"""OpenSR's latent diffusion super-resolution (LDSR): reflectance x4 by an autoencoder and a denoiser of its latents.

The coarse image is interpolated, encoded and given to the denoiser beside the noisy latent (OpenSR thesis, section
3.1.4). Windows must be whole and lie on the absolute lattice: the published networks normalise and attend over them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.models.bundle import BundleError, load_into
from pipeline.models.latent import STRIDE, interpolated
from pipeline.models.latent_sampler import ddim, forward, timesteps
from pipeline.models.layout import moved
from pipeline.models.phase_pattern import without_phase_pattern
from pipeline.models.resampling import upsample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from torch import Tensor

    from pipeline.models.bundle import Bundle
    from pipeline.models.latent import LatentNetwork

    Drawn = Callable[[int], Tensor]  # standard normal noise (B, L, h, w) of a step, by its number

SYSTEM = "ldsr"
AUTOENCODER = "ldsr-autoencoder"  # kind of weights that hold the autoencoder alone
BANDS = ("B04", "B03", "B02", "B08")
SCALE = STRIDE
# Of our networks: n = (sqrt(clip(rho, 0, max) + floor) - centre) / spread resolves dark water and does not saturate.
SQRT: dict[str, Any] = {
    "kind": "sqrt",
    "reflectance_max": 1.6,
    "input_floor": 0.01,
    "input_centre": 0.35,
    "input_spread": 0.15,
}
FIRST_NOISE, CONDITION_NOISE = 0, 1  # numbers of draws; step k of the sampler draws number k + 2


@dataclass(frozen=True)
class Sampling:
    """How latents are drawn: number of DDIM steps, eta, and factor on the noise of steps.

    `start`: share of the schedule at which it starts; below 1 from the noisy latent of the coarse image.
    """

    steps: int
    eta: float = 0.0
    temperature: float = 1.0
    start: float = 1.0

    def grid(self, total: int) -> list[int]:
        """Return the timesteps, ascending. Raises ValueError unless the steps divide `total`."""
        whole = timesteps(self.steps, total)
        return whole[: max(1, round(self.start * len(whole)))]


class LDSR:
    """Super-resolution of the bundle's bands by latent diffusion."""

    def __init__(self, network: LatentNetwork, bundle: Bundle, sound: bool = False) -> None:
        self.network, self.bundle = network.eval(), bundle
        self.normalisation = normalisation_of(bundle, sound)
        self.alpha_bar = network.alpha_bar()
        of = bundle.sampler
        self.sampling = Sampling(int(of["steps"]), float(of.get("eta", 0.0)), float(of.get("temperature", 1.0)))

    @classmethod
    def from_bundle(cls, bundle: Bundle, sound: bool = False) -> LDSR:
        """Load the networks of a bundle on the CPU. Raises BundleError if the tensors do not fit.

        `sound`: encode conditions of releases before 1.0 as their training images, which the release does not.
        """
        network = network_of(bundle.architecture, len(bundle.in_bands))
        load_into(network, bundle)
        return cls(network.requires_grad_(False), bundle, sound)

    def to(self, device: torch.device) -> LDSR:
        """Move the weights to `device` and return self."""
        moved(self.network, device)
        return self

    @property
    def latents(self) -> int:
        """Channels of a latent."""
        return len(self.network.get_buffer("latent_spread"))

    def condition(self, lr: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the condition of a coarse image (B, C, h, w), by the mean of its latent, or a sample with `noise`."""
        of = self.normalisation
        return self.network.condition(of.condition(interpolated(lr)), of.condition(lr), noise)

    def mean(self, lr: Tensor) -> Tensor:
        """Return the estimate without diffusion, (B, C, h, w) -> (B, C, 4h, 4w), of networks that have one."""
        unet = self.network.unet
        return self._settled(self.decoded(unet.centre(unet.prepare(self.condition(lr))), lr), lr)

    def sample(self, lr: Tensor, drawn: Drawn, sampling: Sampling | None = None) -> Tensor:
        """Draw one sample of reflectance (B, C, 4h, 4w) from (B, C, h, w).

        `drawn(k)` returns noise (B, L, h, w): 0 at the start, 1 for the condition, k + 2 for step k. Networks that
        regress start from their noisy mean, which the noise of a short schedule does not hide, and need no other noise
        at eta 0.
        """
        how, unet = sampling or self.sampling, self.network.unet
        condition = self.condition(lr, None if unet.regresses else drawn(CONDITION_NOISE))
        prepared = unet.prepare(condition)
        grid = how.grid(len(self.alpha_bar))
        x = drawn(FIRST_NOISE)
        if how.start < 1 or unet.regresses:
            x = forward(unet.centre(prepared), float(self.alpha_bar[grid[-1]]), x)
        later = (lambda step: drawn(step + 2)) if how.eta else None
        last = 1.0 if unet.regresses else None
        z = ddim(self.network.noise(prepared), x, self.alpha_bar, grid, how.eta, later, how.temperature, last)
        return self._settled(self.decoded(z, lr), lr)

    def decoded(self, latent: Tensor, lr: Tensor) -> Tensor:
        """Return the reflectance (B, C, 4h, 4w) of a scaled latent, given the coarse image (B, C, h, w)."""
        return self.normalisation.to_reflectance(self.network.decode(latent, self.normalisation.condition(lr)))

    def _settled(self, image: Tensor, lr: Tensor) -> Tensor:
        """Remove the pattern of folded pixels of small networks."""
        if not self.network.unet.regresses:
            return image
        return without_phase_pattern(image, upsample(lr, SCALE), SCALE)

    def sampling_with(self, steps: int, eta: float | None, temperature: float, start: float) -> Sampling:
        """Return the sampling with these values; `steps` 0 and `eta` None are those of the weights."""
        own = self.sampling
        return Sampling(steps or own.steps, own.eta if eta is None else eta, temperature, start)


def network_of(architecture: Mapping[str, Any], bands: int, untrained: bool = False) -> LatentNetwork:
    """Return the networks of an architecture. Raises BundleError for an unknown kind.

    Weights are to be loaded; with `untrained`, they are random and the schedule is set.
    """
    kind = architecture.get("networks")
    if kind == "small":
        from pipeline.models.latent_small import small_network

        return small_network(architecture, bands)
    if kind == "published":
        from pipeline.models.ldsr_published import published_network, untrained_network

        return untrained_network(architecture) if untrained else published_network(architecture)
    raise BundleError(f"an architecture with networks {kind!r}", "'small' or 'published'")


class Normalisation(Protocol):
    """Map between reflectance and the range of the networks."""

    def to_network(self, reflectance: Tensor) -> Tensor:
        """Return images (B, C, H, W) in the range of the networks."""
        ...

    def to_reflectance(self, image: Tensor) -> Tensor:
        """Return reflectance of images in the range of the networks."""
        ...

    def condition(self, coarse: Tensor) -> Tensor:
        """Return what the condition is encoded from, of interpolated coarse reflectance."""
        ...


@dataclass(frozen=True)
class Unchanged:
    """Reflectance as it is, as in releases from 1.0."""

    def to_network(self, reflectance: Tensor) -> Tensor:
        """Return its argument."""
        return reflectance

    to_reflectance = condition = to_network


@dataclass(frozen=True)
class Root:
    """n = (sqrt(clip(rho, 0, max) + floor) - centre) / spread, of our networks."""

    reflectance_max: float
    input_floor: float
    input_centre: float
    input_spread: float

    def to_network(self, reflectance: Tensor) -> Tensor:
        """Return n."""
        root = (reflectance.clamp(0.0, self.reflectance_max) + self.input_floor).sqrt()
        return (root - self.input_centre) / self.input_spread

    condition = to_network

    def to_reflectance(self, image: Tensor) -> Tensor:
        """Return rho, which is not clipped."""
        return (image * self.input_spread + self.input_centre).clamp_min(0.0).square() - self.input_floor


def normalisation_of(bundle: Bundle, sound: bool = False) -> Normalisation:
    """Return the normalisation of a bundle. Raises BundleError for one of an unknown kind."""
    kind, given = bundle.normalisation.get("kind"), {k: v for k, v in bundle.normalisation.items() if k != "kind"}
    if kind == "none":
        return Unchanged()
    if kind == "sqrt":
        return Root(**given)
    if kind == "before-1.0":
        from pipeline.models.ldsr_release import Normalisation as Before

        return Before(given["gains"], as_released=not sound)
    raise BundleError(f"weights {bundle.path}: normalisation {kind!r}", "'none', 'sqrt' or 'before-1.0'")
