"""The generative prior of map guidance: autoencoder, U-Net and text contexts in Stable Diffusion's shape.

Rombach et al., CVPR 2022. Either Stable Diffusion 2.1-base, which users bring, or a small one of our own. Both have
diffusers' UNet2DConditionModel; the autoencoder is diffusers' AutoencoderKL, or the one of `latent_small`, which is
faster on CPUs. GroupNorm and attention span the window, so windows are whole and lie on the lattice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.errors import UsageError
from pipeline.models.bundle import Bundle, BundleError, LatticeSpec, check_fit, load_tensors
from pipeline.models.guided_unet import guided_noise
from pipeline.models.latent import STRIDE, Moments
from pipeline.models.latent_small import SmallAutoencoder
from pipeline.models.spaced_sampler import stable_diffusion_alpha_bar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

SYSTEM = "sgdm-prior"
BANDS = ("B04", "B03", "B02")
NETWORKS = ("published", "small")
NOISE, VELOCITY = "noise", "velocity"  # what the U-Net estimates: e, or v = a e - b x (arXiv 2202.00512)
SCALING = 0.18215  # of latents, so that their variance is about 1
_UNET: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],  # diffusers' name for the number of heads, of 64 channels each
    "use_linear_projection": True,
}
_VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
}
# Stable Diffusion 2.1-base. Contexts: number, tokens and channels; see `map_words`.
PUBLISHED_PRIOR: dict[str, Any] = {
    "networks": "published",
    "unet": _UNET,
    "vae": _VAE,
    "scaling": SCALING,
    "contexts": [16, 77, 1024],
}
# Latents of 1/4 with unit variance in each channel, and one learned context in place of text. Velocities are learned
# faster than the noise: their estimate tells the image at the noisiest steps too.
SMALL_PRIOR: dict[str, Any] = {
    "networks": "small",
    "unet": {
        **_UNET,
        "in_channels": 8,
        "out_channels": 8,
        # No attention at the finest level, which would take half of the time.
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [48, 64, 80, 80],
        "layers_per_block": 1,
        "cross_attention_dim": 32,
        "attention_head_dim": [2, 2, 2, 2],
        "norm_num_groups": 8,
    },
    "vae": {"latents": 8, "width": 64, "encoder_blocks": 3, "decoder_blocks": 8},
    "scaling": 1.0,
    "contexts": [1, 4, 32],
    "estimates": VELOCITY,
}


class Prior(nn.Module):
    """Networks of an architecture such as `SMALL_PRIOR`, with random weights.

    Tensors: `unet.*`, `vae.*`, under diffusers' names where they are diffusers' networks, and `contexts` (n, tokens,
    dim). Raises UsageError without diffusers, and BundleError for networks of another kind.
    """

    def __init__(self, architecture: Mapping[str, Any]) -> None:
        super().__init__()
        if missing := sorted(set(PUBLISHED_PRIOR) - set(architecture)):
            raise BundleError(f"a prior's architecture without {', '.join(missing)}", ", ".join(PUBLISHED_PRIOR))
        if architecture["networks"] not in NETWORKS:
            raise BundleError(f"a prior with networks {architecture['networks']!r}", " or ".join(map(repr, NETWORKS)))
        diffusers = _diffusers()
        self.unet: Any = diffusers.UNet2DConditionModel(**_tuples(architecture["unet"]))
        self.vae: Any
        if architecture["networks"] == "small":
            self.vae = SmallAutoencoder(len(BANDS), **architecture["vae"])
            self.latents = int(architecture["vae"]["latents"])
        else:
            self.vae = diffusers.AutoencoderKL(**_tuples(architecture["vae"]))
            self.latents = int(architecture["vae"]["latent_channels"])
        self.contexts = nn.Parameter(torch.randn(*architecture["contexts"]))
        self.scaling = float(architecture["scaling"])
        self.stride = stride_of(architecture)
        self.estimates = architecture.get("estimates", NOISE)
        self.alpha_bar = stable_diffusion_alpha_bar()

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> Prior:
        """Load a prior on the CPU, for inference. Raises BundleError if the tensors do not fit."""
        return cls.of_tensors(bundle, load_tensors(bundle))

    @classmethod
    def of_tensors(cls, bundle: Bundle, tensors: Mapping[str, Tensor]) -> Prior:
        """Return the prior of a bundle with these tensors, which are not copied."""
        if bundle.system != SYSTEM:
            raise BundleError(f"weights {bundle.path} are of kind {bundle.system}", SYSTEM)
        with torch.device("meta"):
            prior = cls(bundle.architecture)
        check_fit(tensors, prior.state_dict(), f"weights {bundle.path} do not fit {SYSTEM}")
        prior.load_state_dict(dict(tensors), assign=True)
        return prior.eval().requires_grad_(False)

    def moments(self, image: Tensor) -> Moments:
        """Return the distribution of the latent (B, L, h, w), not yet scaled, of an image (B, 3, H, W) in -1..1."""
        found = self.vae.encode(image)
        return found if isinstance(found, Moments) else Moments.of(found.latent_dist.parameters)

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the scaled latent (B, L, h, w) of an image (B, 3, H, W) in -1..1: its mean; with `noise`, a sample."""
        moments = self.moments(image)
        return self.scaling * (moments.mean if noise is None else moments.sample(noise))

    def decode(self, latent: Tensor) -> Tensor:
        """Return the image (B, 3, H, W), about -1..1, of a scaled latent (B, L, h, w)."""
        found = self.vae.decode(latent / self.scaling)
        image: Tensor = found if isinstance(found, Tensor) else found.sample
        return image

    def noise(self, noisy: Tensor, timestep: Tensor, context: Tensor, controls: Sequence[Tensor] = ()) -> Tensor:
        """Return the noise in a scaled latent (B, L, h, w) at timesteps (B,). `context`: numbers of contexts, (B,)."""
        found = guided_noise(self.unet, noisy, timestep, self.contexts[context], controls)
        if self.estimates == NOISE:
            return found
        alpha = self._alphas(timestep, noisy)
        return alpha.sqrt() * found + (1 - alpha).sqrt() * noisy

    def balance(self, timestep: Tensor) -> Tensor:
        """Return the weights (B,) of squared errors of the noise at timesteps (B,): those of what the U-Net estimates.

        1 for the noise; for the velocity, whose error is that of the noise over sqrt(alpha_bar), 1 / alpha_bar.
        """
        alpha = self._alphas(timestep, self.contexts).flatten()
        return torch.ones_like(alpha) if self.estimates == NOISE else 1 / alpha

    def _alphas(self, timestep: Tensor, like: Tensor) -> Tensor:
        return torch.from_numpy(self.alpha_bar).to(like)[timestep][:, None, None, None]

    def attention_names(self) -> list[str]:
        """Return the tensors of the U-Net that guidance trains: all with `attn` in their name, as released."""
        return [f"unet.{name}" for name in self.unet.state_dict() if "attn" in name]


def prior_bundle(
    architecture: Mapping[str, Any],
    lattice: LatticeSpec,
    provenance: Mapping[str, Any] | None = None,
    licence: str = "",
) -> Bundle:
    """Return the metadata of a prior for `save_bundle`."""
    return Bundle(
        system=SYSTEM,
        architecture=dict(architecture),
        in_bands=BANDS,
        out_bands=BANDS,
        scale=1,
        lattice=lattice,
        normalisation={"kind": "none"},
        provenance=dict(provenance or {}),
        licence=licence,
    )


def stride_of(architecture: Mapping[str, Any]) -> int:
    """Return the pixels of an image per pixel of its latent, along one axis."""
    widths = architecture["vae"].get("block_out_channels")
    return STRIDE if widths is None else int(2 ** (len(widths) - 1))


def _tuples(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}


def _diffusers() -> ModuleType:
    try:
        import diffusers
    except ImportError as error:
        raise UsageError(
            "networks of Stable Diffusion's shape need diffusers, which is not installed",
            "the extra diffusers",
            'pip install "sen2fine[diffusers]"',
        ) from error
    found: ModuleType = diffusers
    return found
