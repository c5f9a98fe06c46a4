"""Small networks for latent diffusion on CPUs: an autoencoder and a denoiser of convolutions on the latent's grid.

Pixels are folded into channels, so that all layers run at a quarter of the image's sides. All convolutions are 3x3,
without normalisation over windows or attention, so the reach is finite.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.latent import STRIDE, Denoiser, LatentNetwork, Moments
from pipeline.models.latent_sampler import alpha_bar, betas
from pipeline.models.lite import LevelEmbedding, ResidualBlock

if TYPE_CHECKING:
    from collections.abc import Mapping

NETWORKS = "small"  # value of `architecture["networks"]`
LEAST_LOG_VARIANCE = -12.0  # the largest is 0, so that no image makes the noise exceed the latents' spread
FIRST_SPREAD = 0.3  # of latents around their mean, in units of their spread
LOG_SPREAD_RANGE = (-5.0, 1.0)
SMALL: dict[str, Any] = {
    "networks": NETWORKS,
    "latents": 4,
    "latent_unit": 5.0,
    "width": 64,
    "encoder_blocks": 3,
    "decoder_blocks": 8,
    "condition_width": 64,
    "condition_blocks": 10,
    "denoiser_width": 80,
    "denoiser_blocks": 5,
    "betas": [1e-4, 0.0155],
}


class _Path(nn.Module):
    """A linear convolution plus residual blocks, whose last convolution starts at zero."""

    def __init__(self, channels_in: int, channels_out: int, width: int, blocks: int) -> None:
        super().__init__()
        self.linear = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.entry = nn.Conv2d(channels_in, width, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))
        self.exit = nn.Conv2d(width, channels_out, 3, padding=1)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.get_parameter("bias"))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, h, w) -> (B, channels_out, h, w)."""
        h = self.entry(x).float()
        for block in self.blocks:
            h = block(h)
        out: Tensor = self.linear(x).float() + self.exit(functional.silu(h)).float()
        return out


class SmallAutoencoder(nn.Module):
    """Autoencoder of images (B, bands, 4h, 4w) by latents (B, latents, h, w).

    The decoder reads latents divided by `unit`. That of their spread keeps its residual blocks well conditioned: blocks
    without normalisation multiply what they are given.
    """

    def __init__(
        self, bands: int, latents: int, width: int, encoder_blocks: int, decoder_blocks: int, unit: float = 1.0
    ) -> None:
        super().__init__()
        folded, self.unit = bands * STRIDE**2, unit
        self.encoder = _Path(folded, 2 * latents, width, encoder_blocks)
        self.decoder = _Path(latents, folded, width, decoder_blocks)
        with torch.no_grad():
            linear = self.encoder.linear
            linear.weight[latents:] = 0.0
            linear.get_parameter("bias")[latents:] = 0.0

    @property
    def untrained(self) -> bool:
        """Whether the decoder is still linear."""
        return not bool(self.decoder.exit.weight.any())

    @property
    def last_layer(self) -> nn.Parameter:
        """Weights of the decoder's last convolution."""
        return self.decoder.exit.get_parameter("weight")

    def encode(self, image: Tensor) -> Moments:
        """Return the distribution of the latent (B, L, h, w)."""
        mean, raw = self.encoder(functional.pixel_unshuffle(image, STRIDE)).chunk(2, dim=1)
        return Moments(mean, LEAST_LOG_VARIANCE * torch.sigmoid(raw))

    def decode(self, latent: Tensor) -> Tensor:
        """Return the image (B, bands, 4h, 4w) of a latent (B, L, h, w)."""
        return functional.pixel_shuffle(self.decoder(latent / self.unit), STRIDE)

    def forward(self, image: Tensor) -> Tensor:
        """Return the image of the latent's mean."""
        return self.decode(self.encode(image).mean)

    @torch.no_grad()
    def start_from_components(self, image: Tensor, spread: float) -> None:
        """Set the linear paths to the principal components of folded pixels of images (B, bands, 4h, 4w).

        Latents then have the standard deviation `spread` on average, and the decoder inverts the encoder as well as a
        linear map of single latent pixels can.
        """
        folded = functional.pixel_unshuffle(image, STRIDE).transpose(0, 1).flatten(1).double()
        centre = folded.mean(1)
        cov = torch.cov(folded)
        variances, vectors = torch.linalg.eigh(cov)
        count = self.decoder.linear.in_channels
        basis = vectors.flip(1)[:, :count].T  # (L, folded), largest variance first
        gain = spread / float(variances.flip(0)[:count].mean().sqrt())
        _set_centre(self.encoder.linear, gain * basis, -gain * basis @ centre, count)
        _set_centre(self.decoder.linear, basis.T * self.unit / gain, centre, len(centre))


def _set_centre(linear: nn.Conv2d, weight: Tensor, bias: Tensor, rows: int) -> None:
    """Set the first output channels of a 3x3 convolution to a map of single pixels."""
    linear.weight[:rows] = 0.0
    linear.weight[:rows, :, 1, 1] = weight.to(linear.weight)
    linear.get_parameter("bias")[:rows] = bias.to(linear.weight)


class SmallDenoiser(Denoiser):
    """Noise in a latent z_t, given its condition c, from an estimate of the residual r = (z - mean) / spread.

    Features of c give the mean, c plus a correction, and the spread of z around it, as in CorrDiff (arXiv 2309.15214).
    With a = sqrt(alpha_bar) and b = sqrt(1 - alpha_bar), z_t - a mean = a spread (r + noise of sd b / (a spread)). The
    estimate of r is the best linear one for unit variance plus a bounded correction, which starts at zero
    (preconditioning of Karras et al., arXiv 2206.00364).
    """

    regresses = True

    def __init__(
        self,
        latents: int,
        condition_width: int,
        condition_blocks: int,
        denoiser_width: int,
        denoiser_blocks: int,
        schedule: tuple[float, float],
    ) -> None:
        super().__init__()
        self.latents = latents
        self.register_buffer("levels", torch.from_numpy(alpha_bar(betas(*schedule))).float(), persistent=False)
        self.entry = nn.Conv2d(latents, condition_width, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(condition_width) for _ in range(condition_blocks))
        self.mean_head = nn.Conv2d(condition_width, latents, 3, padding=1)
        self.spread_head = nn.Conv2d(condition_width, latents, 3, padding=1)
        self.noisy_entry = nn.Conv2d(latents + condition_width, denoiser_width, 3, padding=1)
        self.level = LevelEmbedding(denoiser_width, denoiser_blocks)
        self.noisy_blocks = nn.ModuleList(ResidualBlock(denoiser_width) for _ in range(denoiser_blocks))
        self.exit = nn.Conv2d(denoiser_width, latents, 3, padding=1)
        for head in (self.mean_head, self.spread_head, self.exit):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.get_parameter("bias"))
        nn.init.constant_(self.spread_head.get_parameter("bias"), math.log(FIRST_SPREAD))

    def prepare(self, condition: Tensor) -> Tensor:
        """Return mean, spread and features, (B, 2 L + condition_width, h, w)."""
        entry = self.entry(condition).float()
        h = entry
        for block in self.blocks:
            h = block(h)
        log_spread = self.spread_head(h.detach()).float().clamp(*LOG_SPREAD_RANGE)
        return torch.cat([condition + self.mean_head(h).float(), log_spread.exp(), h], dim=1)

    def centre(self, prepared: Tensor) -> Tensor:
        """Return the mean (B, L, h, w)."""
        return prepared[:, : self.latents]

    def spread(self, prepared: Tensor) -> Tensor:
        """Return the standard deviation of latents around the mean (B, L, h, w)."""
        return prepared[:, self.latents : 2 * self.latents]

    def balance(self, prepared: Tensor, alpha: Tensor) -> Tensor:
        """Return 1 + (b / (a spread))^2: squared errors of the noise plus those of r."""
        return 1 + (1 - alpha) / (alpha * self.spread(prepared).square())

    def forward(self, noisy: Tensor, prepared: Tensor, timestep: Tensor) -> Tensor:
        """Return the noise (B, L, h, w) in `noisy` at timesteps (B,)."""
        alpha = self.get_buffer("levels")[timestep][:, None, None, None]
        found = self.centre(prepared) + self.spread(prepared) * self.residual(noisy, prepared, alpha)
        return (noisy - alpha.sqrt() * found) / (1 - alpha).sqrt()

    def residual(self, noisy: Tensor, prepared: Tensor, alpha: Tensor) -> Tensor:
        """Return the estimate of r (B, L, h, w) at alpha_bar = `alpha` (B, 1, 1, 1)."""
        mean, spread, features = self.centre(prepared), self.spread(prepared), prepared[:, 2 * self.latents :]
        unit = (alpha * spread.square() + 1 - alpha).sqrt()
        signal = alpha.sqrt() * spread / unit  # level of r in the scaled input
        scaled = (noisy - alpha.sqrt() * mean) / unit
        h = self.noisy_entry(torch.cat([scaled, features], dim=1)).float()
        for block, shift in zip(self.noisy_blocks, self.level(alpha.flatten().sqrt()), strict=True):
            h = block(h, shift)
        correction = self.exit(functional.silu(h)).float()
        estimate: Tensor = signal * scaled + (1 - signal.square()).clamp_min(0).sqrt() * correction
        return estimate


def small_network(architecture: Mapping[str, Any], bands: int) -> LatentNetwork:
    """Return both networks with random weights and the schedule of `architecture` (see `SMALL`)."""
    of, latents = architecture, int(architecture["latents"])
    first, last = (float(value) for value in of["betas"])
    autoencoder = SmallAutoencoder(
        bands, latents, of["width"], of["encoder_blocks"], of["decoder_blocks"], float(of["latent_unit"])
    )
    denoiser = SmallDenoiser(
        latents,
        of["condition_width"],
        of["condition_blocks"],
        of["denoiser_width"],
        of["denoiser_blocks"],
        (first, last),
    )
    network = LatentNetwork(autoencoder, denoiser, latents)
    network.get_buffer("betas").copy_(torch.from_numpy(betas(first, last)))
    return network
