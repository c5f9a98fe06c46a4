"""The generative prior of map guidance: autoencoder, U-Net and text contexts in Stable Diffusion's shape.

Rombach et al., CVPR 2022. Either Stable Diffusion 2.1-base, which users bring, or a small one of our own; both are
diffusers' AutoencoderKL and UNet2DConditionModel. GroupNorm and attention span the window, so windows are whole and
lie on the lattice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.errors import UsageError
from pipeline.models.bundle import Bundle, BundleError, LatticeSpec, check_fit, load_tensors
from pipeline.models.guided_unet import guided_noise
from pipeline.models.latent import Moments
from pipeline.models.spaced_sampler import stable_diffusion_alpha_bar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

SYSTEM = "sgdm-prior"
BANDS = ("B04", "B03", "B02")
NETWORKS = ("published", "small")
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
# Latents of 1/4, and one learned context in place of text.
SMALL_PRIOR: dict[str, Any] = {
    "networks": "small",
    "unet": {
        **_UNET,
        "block_out_channels": [32, 64, 64, 64],
        "layers_per_block": 1,
        "cross_attention_dim": 32,
        "attention_head_dim": [2, 4, 4, 4],
        "norm_num_groups": 8,
    },
    "vae": {
        **_VAE,
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "block_out_channels": [16, 32, 64],
        "layers_per_block": 2,
        "norm_num_groups": 8,
    },
    "scaling": SCALING,
    "contexts": [1, 4, 32],
}


class Prior(nn.Module):
    """Networks of an architecture such as `SMALL_PRIOR`, with random weights.

    Tensors: `unet.*`, `vae.*` under diffusers' names, and `contexts` (n, tokens, dim). Raises UsageError without
    diffusers, and BundleError for networks of another kind.
    """

    def __init__(self, architecture: Mapping[str, Any]) -> None:
        super().__init__()
        if missing := sorted(set(PUBLISHED_PRIOR) - set(architecture)):
            raise BundleError(f"a prior's architecture without {', '.join(missing)}", ", ".join(PUBLISHED_PRIOR))
        if architecture["networks"] not in NETWORKS:
            raise BundleError(f"a prior with networks {architecture['networks']!r}", " or ".join(map(repr, NETWORKS)))
        diffusers = _diffusers()
        self.unet: Any = diffusers.UNet2DConditionModel(**_tuples(architecture["unet"]))
        self.vae: Any = diffusers.AutoencoderKL(**_tuples(architecture["vae"]))
        self.contexts = nn.Parameter(torch.randn(*architecture["contexts"]))
        self.scaling = float(architecture["scaling"])
        self.stride = 2 ** (len(architecture["vae"]["block_out_channels"]) - 1)
        self.latents = int(architecture["vae"]["latent_channels"])
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

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the scaled latent (B, L, h, w) of an image (B, 3, H, W) in -1..1: its mean; with `noise`, a sample."""
        moments = Moments.of(self.vae.encode(image).latent_dist.parameters)
        return self.scaling * (moments.mean if noise is None else moments.sample(noise))

    def decode(self, latent: Tensor) -> Tensor:
        """Return the image (B, 3, H, W), about -1..1, of a scaled latent (B, L, h, w)."""
        image: Tensor = self.vae.decode(latent / self.scaling).sample
        return image

    def noise(self, noisy: Tensor, timestep: Tensor, context: Tensor, controls: Sequence[Tensor] = ()) -> Tensor:
        """Return the noise in a scaled latent (B, L, h, w) at timesteps (B,). `context`: numbers of contexts, (B,)."""
        return guided_noise(self.unet, noisy, timestep, self.contexts[context], controls)

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
