"""What learns in map guidance, and the prior beside it: one U-Net, of which both hold the tensors that learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from pipeline.models.bundle import BundleError, check_fit, load_tensors
from pipeline.models.diffusion_prior import PUBLISHED_PRIOR, SMALL_PRIOR, SYSTEM, Prior
from pipeline.models.guidance import Guidance, MapContent

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from pipeline.models.bundle import Bundle

PRIORS: dict[str, dict[str, Any]] = {"small": SMALL_PRIOR, "published": PUBLISHED_PRIOR}
DIGEST_BYTES = 32  # of SHA-256


@dataclass(frozen=True)
class Noisy:
    """Noisy latents (B, L, h, w), the noise in them, and their timesteps (B,)."""

    latents: Tensor
    noise: Tensor
    t: Tensor

    def of(self, numbers: Tensor) -> Noisy:
        """Return those of some images, by their numbers in the batch (n,)."""
        return Noisy(self.latents[numbers], self.noise[numbers], self.t[numbers])

    def errors(self, found: Tensor) -> Tensor:
        """Return the mean squared errors (B,) of estimates of the noise."""
        return functional.mse_loss(found, self.noise, reduction="none").mean((1, 2, 3))


class PriorBeside(nn.Module):
    """The prior during training: its networks, the factor on its latents, and the digest of its bundle.

    It is no part of what is trained: checkpoints hold it, so that a resumed run needs no other file.
    """

    def __init__(self, architecture: Mapping[str, Any]) -> None:
        super().__init__()
        self.networks = Prior(architecture).eval().requires_grad_(False)
        self.register_buffer("scaling", torch.tensor(self.networks.scaling, dtype=torch.float64))
        self.register_buffer("sha256", torch.zeros(DIGEST_BYTES, dtype=torch.uint8))

    def take(self, bundle: Bundle) -> None:
        """Load a prior, in place. Raises BundleError if it is of another kind or its tensors do not fit."""
        if bundle.system != SYSTEM:
            raise BundleError(f"weights {bundle.path} are of kind {bundle.system}", SYSTEM)
        tensors = load_tensors(bundle)
        check_fit(tensors, self.networks.state_dict(), f"the prior {bundle.path} does not fit the preset")
        self.networks.load_state_dict(tensors)
        self.get_buffer("scaling").fill_(float(bundle.architecture["scaling"]))
        self.get_buffer("sha256").copy_(torch.frombuffer(bytearray.fromhex(bundle.digest), dtype=torch.uint8))

    @property
    def digest(self) -> str:
        """SHA-256 of the bundle in hexadecimal digits, or "" before one is loaded."""
        found = bytes(self.get_buffer("sha256").cpu().tolist())
        return found.hex() if any(found) else ""

    @property
    def prior(self) -> Prior:
        """The networks, with the factor that belongs to them."""
        self.networks.scaling = float(self.get_buffer("scaling"))
        return self.networks


class Learning(nn.Module):
    """Guidance, and the tensors of the prior's U-Net that learn with it.

    These are the U-Net's own parameters under the same names, so that the U-Net computes with what is trained, and the
    state of this module is what a bundle of guidance holds.
    """

    def __init__(self, guidance: Guidance, prior: Prior, whole_unet: bool) -> None:
        super().__init__()
        self.guidance = guidance
        names = [f"unet.{name}" for name in prior.unet.state_dict()] if whole_unet else prior.attention_names()
        self.unet = shared(prior.unet, (name.removeprefix("unet.") for name in names))


def shared(network: nn.Module, names: Iterable[str]) -> nn.Module:
    """Return a module that holds these parameters of a network, by their names there. They are not copied."""
    found = nn.Module()
    for name in names:
        *path, last = name.split(".")
        at = found
        for part in path:
            if part not in dict(at.named_children()):
                at.add_module(part, nn.Module())
            at = at.get_submodule(part)
        at.register_parameter(last, network.get_parameter(name))
    return found


def leave_out(guidance: Guidance, shown: Sequence[bool]) -> None:
    """Set the kernels of map channels that no map of the training shows to 0, by channel, and let them not learn.

    Maps lie between -1 and 1, so that an empty channel would otherwise learn as a bias does, and its class would then
    change the output in use in a way that no image has taught.
    """
    kernels = kernels_of_map(guidance)

    def masked(weights: Tensor) -> Tensor:
        return weights * weights.new_tensor(shown, dtype=weights.dtype)[:, None, None]

    with torch.no_grad():
        kernels.copy_(masked(kernels))

    kernels.register_hook(masked)


def kernels_of_map(guidance: Guidance) -> Tensor:
    """Return the first kernels of the map (stem, channels, 3, 3). Raises ValueError for guidance without maps."""
    if not isinstance(guidance.content, MapContent):
        msg = f"guidance of variant {guidance.variant!r} takes no map"
        raise ValueError(msg)
    return guidance.content.map_stem.weight
