"""Weights of `--sr ldsr` small enough for a test, away from their zero initialisation."""

from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.functional import avg_pool2d

from pipeline.bands import bands_at
from pipeline.models import span_fusion
from pipeline.models.bundle import Bundle, LatticeSpec, save_bundle
from pipeline.models.latent_small import small_network
from pipeline.models.ldsr import BANDS, SQRT, SYSTEM

TINY = {
    "networks": "small",
    "latents": 4,
    "latent_unit": 5.0,
    "sees_coarse": True,
    "width": 8,
    "encoder_blocks": 1,
    "decoder_blocks": 1,
    "condition_width": 8,
    "condition_blocks": 1,
    "denoiser_width": 8,
    "denoiser_blocks": 1,
    "betas": [1e-4, 0.0155],
}
LATTICE = LatticeSpec(192, 144, 24, 12)
LATTICES = {span_fusion.X2: LatticeSpec(48, 36, 6, 3), span_fusion.X4: LATTICE}
SPAN = {"features": 8, "blocks": 2, "graph": "chained"}


def moved(network: torch.nn.Module, by: float = 0.02) -> torch.nn.Module:
    """The network with all parameters moved at random."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return network


def latent_bundle(bands=BANDS, steps=4) -> Bundle:
    sampler = {"name": "ddim", "steps": steps, "eta": 0.0, "temperature": 1.0}
    return Bundle(SYSTEM, TINY, bands, bands, 4, LATTICE, SQRT, sampler)


def write_latent(path: Path, bands=BANDS) -> Path:
    torch.manual_seed(0)
    network = small_network(TINY, len(bands))
    image = 0.3 * torch.randn(4, len(bands), 32, 32)
    network.autoencoder.start_from_components(image, avg_pool2d(image, 4), 5.0)
    network.get_buffer("latent_spread").fill_(5.0)
    save_bundle(path, latent_bundle(bands), moved(network).state_dict())
    return path


def write_fusion(path: Path, kind: str) -> Path:
    torch.manual_seed(0)
    bundle = replace(span_fusion.fusion_bundle(kind, SPAN), lattice=LATTICES[kind])
    network = span_fusion.network(bundle.architecture, bundle.normalisation)
    save_bundle(path, bundle, moved(network).state_dict())
    return path


def write_all(folder: Path) -> dict[str, Path]:
    """Weights by role: `sr`, `sr6`, `x2`, `x4`."""
    return {
        "sr": write_latent(folder / "ldsr.safetensors"),
        "sr6": write_latent(folder / "ldsr6.safetensors", bands_at(20)),
        "x2": write_fusion(folder / "x2.safetensors", span_fusion.X2),
        "x4": write_fusion(folder / "x4.safetensors", span_fusion.X4),
    }
