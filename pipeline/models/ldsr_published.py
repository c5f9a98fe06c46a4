"""The published networks of latent diffusion for Sentinel-2: diffusers' AutoencoderKL and UNet2DModel.

OpenSR LDSR-S2 (Donike et al., IEEE JSTARS 2025). Sizes and tensors equal those of the authors' LDM networks, which
`training.convert` renames. GroupNorm and attention span the window, so windows are whole and lie on the lattice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.errors import UsageError
from pipeline.models.bundle import Bundle, BundleError, LatticeSpec
from pipeline.models.latent import Denoiser, LatentNetwork, Moments
from pipeline.models.latent_sampler import betas

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

SYSTEM = "ldsr"
NETWORKS = "published"  # value of `networks` in the architecture
SCALE = 4
# By number of bands, in the order of the networks' channels.
BANDS = {4: ("B04", "B03", "B02", "B08"), 6: ("B05", "B06", "B07", "B8A", "B11", "B12")}
# 128 coarse pixels as trained. Neighbours share 12 of them, as released: a ramp of 8, and margins of 2 at both ends.
LATTICE = LatticeSpec(window_px=512, stride_px=464, ramp_px=32, margin_px=8)
ARCHITECTURE: dict[str, Any] = {
    "networks": NETWORKS,
    "bands": 4,
    "latents": 4,
    "autoencoder_channels": [128, 256, 512],
    "autoencoder_blocks": 2,
    "channels": [160, 320, 320, 640],
    "blocks": 2,
    "attention_levels": [3],  # indices of `channels`
    "head": 32,  # channels per attention head
}
GROUPS = 32  # of every GroupNorm
EPS = 1e-5  # of the denoiser's GroupNorms; those of the autoencoder have 1e-6, fixed in AutoencoderKL
SAMPLER: dict[str, Any] = {"name": "ddim", "steps": 100, "eta": 0.95, "temperature": 1.0}
# Releases before 1.0 scale reflectance to network range: gain * reflectance, clamped to [0, 1], then 2 x - 1.
BEFORE_1_0 = "before-1.0"
GAINS = {4: [10 / 3, 10 / 3, 10 / 3, 2.0], 6: [2.0] * 6}


class PublishedAutoencoder(nn.Module):
    """`Autoencoder` by diffusers' AutoencoderKL."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net: Any = net

    @property
    def last_layer(self) -> nn.Parameter:
        """Weights of the decoder's last convolution."""
        weight: nn.Parameter = self.net.decoder.conv_out.weight
        return weight

    def encode(self, image: Tensor) -> Moments:
        """Return the distribution (B, L, h, w) of the latent of an image (B, C, 4h, 4w)."""
        return Moments.of(self.net.encode(image).latent_dist.parameters)

    def decode(self, latent: Tensor, coarse: Tensor | None = None) -> Tensor:
        """Return the image (B, C, 4h, 4w) of a latent (B, L, h, w)."""
        image: Tensor = self.net.decode(latent).sample
        return image

    def forward(self, image: Tensor, coarse: Tensor | None = None) -> Tensor:
        """Return the image of the latent's mean."""
        return self.decode(self.encode(image).mean, coarse)


class PublishedDenoiser(Denoiser):
    """Denoiser by diffusers' UNet2DModel. h and w are multiples of 8 with the published sizes."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net: Any = net

    def forward(self, noisy: Tensor, prepared: Tensor, timestep: Tensor) -> Tensor:
        """Return the noise (B, L, h, w) in `noisy`, given a condition (B, L, h, w) and timesteps (B,) from 0."""
        noise: Tensor = self.net(torch.cat([noisy, prepared], 1), timestep).sample
        return noise


def published_network(architecture: Mapping[str, Any] | None = None, device: str = "cpu") -> LatentNetwork:
    """Return the networks with weights left uninitialised, to be loaded; on "meta", without memory for them.

    Sizes missing from `architecture` are as published. Raises UsageError without diffusers, and BundleError for
    sizes that the networks do not have.
    """
    sizes = _sizes(architecture)
    with torch.device("meta"):
        made = _networks(sizes)
    return made.to_empty(device=device)


def untrained_network(architecture: Mapping[str, Any] | None = None) -> LatentNetwork:
    """Return the networks with random weights and the schedule of release 1.0, to be trained. Raises as above.

    As in the authors' LDM, the last convolutions of the denoiser, of its residual blocks and of its attention are 0.
    """
    made = _networks(_sizes(architecture))
    made.get_buffer("betas").copy_(torch.from_numpy(betas()))
    for name, module in made.unet.named_modules():
        if name.endswith(("conv_out", "conv2", "to_out.0")):
            nn.init.zeros_(module.get_parameter("weight"))
            nn.init.zeros_(module.get_parameter("bias"))
    return made


def _networks(sizes: Mapping[str, Any]) -> LatentNetwork:
    return LatentNetwork(PublishedAutoencoder(_autoencoder(sizes)), PublishedDenoiser(_unet(sizes)), sizes["latents"])


def _sizes(architecture: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return all sizes. Raises BundleError for a size that the networks do not have."""
    if unknown := sorted(set(architecture or {}) - set(ARCHITECTURE)):
        raise BundleError(f"architecture with {', '.join(unknown)}", f"{', '.join(ARCHITECTURE)}")
    sizes = {**ARCHITECTURE, **(architecture or {})}
    if sizes["networks"] != NETWORKS:
        raise BundleError(f"networks {sizes['networks']!r}", repr(NETWORKS))
    return sizes


def published_bundle(
    architecture: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    licence: str = "",
    before_1_0: bool = False,
) -> Bundle:
    """Return the bundle's metadata for `save_bundle`. `before_1_0`: weights of a release before 1.0."""
    sizes = {**ARCHITECTURE, **(architecture or {})}
    bands = BANDS[sizes["bands"]]
    return Bundle(
        system=SYSTEM,
        architecture=sizes,
        in_bands=bands,
        out_bands=bands,
        scale=SCALE,
        lattice=LATTICE,
        normalisation={"kind": BEFORE_1_0, "gains": GAINS[len(bands)]} if before_1_0 else {"kind": "none"},
        sampler=dict(SAMPLER),
        provenance=dict(provenance or {}),
        licence=licence,
    )


def _autoencoder(sizes: Mapping[str, Any]) -> nn.Module:
    channels = tuple(sizes["autoencoder_channels"])
    net: nn.Module = _diffusers().AutoencoderKL(
        in_channels=sizes["bands"],
        out_channels=sizes["bands"],
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=sizes["autoencoder_blocks"],
        latent_channels=sizes["latents"],
        norm_num_groups=GROUPS,
    )
    return net


def _unet(sizes: Mapping[str, Any]) -> nn.Module:
    channels = tuple(sizes["channels"])
    attends = [level in sizes["attention_levels"] for level in range(len(channels))]
    net: nn.Module = _diffusers().UNet2DModel(
        in_channels=2 * sizes["latents"],
        out_channels=sizes["latents"],
        down_block_types=tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attends),
        up_block_types=tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)),
        block_out_channels=channels,
        layers_per_block=sizes["blocks"],
        attention_head_dim=sizes["head"],
        norm_num_groups=GROUPS,
        norm_eps=EPS,
    )
    return net


def _diffusers() -> ModuleType:
    try:
        import diffusers
    except ImportError as error:
        raise UsageError(
            "the published latent diffusion networks need diffusers, which is not installed",
            "the extra diffusers",
            'pip install "sen2fine[diffusers]"',
        ) from error
    found: ModuleType = diffusers
    return found
