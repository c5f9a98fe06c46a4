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

from pipeline.models.latent import STRIDE, Denoiser, LatentNetwork, Moments, interpolated
from pipeline.models.latent_sampler import alpha_bar, betas
from pipeline.models.lite import LevelEmbedding, ResidualBlock

if TYPE_CHECKING:
    from collections.abc import Mapping

NETWORKS = "small"  # value of `architecture["networks"]`
LEAST_LOG_VARIANCE = -12.0  # the largest is 0, so that no image makes the noise exceed the latents' spread
FIRST_SPREAD = 0.3  # of latents around their mean, in units of their spread
_NO_COARSE = "no coarse image; expected one, which this decoder sees"
LOG_SPREAD_RANGE = (-5.0, 1.0)
SMALL: dict[str, Any] = {
    "networks": NETWORKS,
    "latents": 8,
    "latent_unit": 5.0,
    "sees_coarse": True,
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
    without normalisation multiply what they are given. With `sees_coarse` it also reads the coarse image, so that
    latents need to tell only what that does not.
    """

    def __init__(
        self,
        bands: int,
        latents: int,
        width: int,
        encoder_blocks: int,
        decoder_blocks: int,
        unit: float = 1.0,
        *,
        sees_coarse: bool = False,
    ) -> None:
        super().__init__()
        folded, self.latents, self.unit, self.sees_coarse = bands * STRIDE**2, latents, unit, sees_coarse
        self.encoder = _Path(folded, 2 * latents, width, encoder_blocks)
        self.decoder = _Path(latents + bands * sees_coarse, folded, width, decoder_blocks)
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

    def decode(self, latent: Tensor, coarse: Tensor | None = None) -> Tensor:
        """Return the image (B, bands, 4h, 4w) of a latent (B, L, h, w), given a coarse one (B, bands, h, w).

        Raises ValueError if it sees the coarse image and is given none.
        """
        given = latent / self.unit
        if self.sees_coarse:
            if coarse is None:
                raise ValueError(_NO_COARSE)
            given = torch.cat([given, coarse], dim=1)
        return functional.pixel_shuffle(self.decoder(given), STRIDE)

    def forward(self, image: Tensor, coarse: Tensor | None = None) -> Tensor:
        """Return the image of the latent's mean."""
        return self.decode(self.encode(image).mean, coarse)

    @torch.no_grad()
    def start_from_components(self, image: Tensor, coarse: Tensor | None, spread: float, *, each: bool = False) -> None:
        """Set the linear paths to the principal components of folded pixels of images (B, bands, 4h, 4w).

        They are those of the difference from interpolated coarse images (B, bands, h, w) where the decoder sees these.
        Latents then have the standard deviation `spread`, on average or with `each` in every channel, and the decoder
        inverts the encoder as well as a linear map of single latent pixels can. Raises ValueError without a coarse
        image that the decoder sees.
        """
        if self.sees_coarse and coarse is None:
            raise ValueError(_NO_COARSE)
        seen = coarse if self.sees_coarse else None
        known = torch.zeros_like(image) if seen is None else interpolated(seen)
        folded = functional.pixel_unshuffle(image - known, STRIDE).transpose(0, 1).flatten(1).double()
        centre = folded.mean(1)
        vectors = torch.linalg.eigh(torch.cov(folded)).eigenvectors
        count = self.latents
        basis = vectors.flip(1)[:, :count].T  # (L, folded), largest variance first
        whole = basis @ functional.pixel_unshuffle(image, STRIDE).transpose(0, 1).flatten(1).double()
        variance = whole.var(1, keepdim=True)
        gain = spread / (variance if each else variance.mean().expand(count, 1)).sqrt()  # (L, 1)
        encoder, decoder = self.encoder.linear, self.decoder.linear
        encoder.weight[:count] = 0.0
        encoder.weight[:count, :, 1, 1] = (gain * basis).to(encoder.weight)
        encoder.get_parameter("bias")[:count] = -(gain * basis @ centre).to(encoder.weight)
        decoder.weight.zero_()
        decoder.weight[:, :count, 1, 1] = ((basis * self.unit / gain).T).to(decoder.weight)
        decoder.get_parameter("bias").copy_(centre)
        if seen is not None:  # the latents hold components of the whole image: those of the interpolated are taken off
            unknown = torch.eye(len(centre)) - (basis.T @ basis).float()
            inserted = interpolation_weights(seen.shape[1])
            decoder.weight[:, count:] = torch.einsum("of,fbyx->obyx", unknown, inserted)


def interpolation_weights(bands: int) -> Tensor:
    """Return `interpolated` as a 3x3 convolution to folded pixels, weights (bands * 16, bands, 3, 3)."""
    deltas = torch.eye(9).reshape(9, 1, 3, 3)
    blocks = interpolated(functional.pad(deltas, (1, 1, 1, 1)))[:, :, 2 * STRIDE : 3 * STRIDE, 2 * STRIDE : 3 * STRIDE]
    one = blocks.reshape(3, 3, STRIDE**2).permute(2, 0, 1)  # (16, 3, 3)
    found = torch.zeros(bands, STRIDE**2, bands, 3, 3)
    for band in range(bands):
        found[band, :, band] = one
    return found.reshape(bands * STRIDE**2, bands, 3, 3)


class SmallDenoiser(Denoiser):
    """Noise in a latent z_t, given its condition c, from an estimate of the residual r = (z - mean) / spread.

    Features of c give the mean, its latent plus a correction, and the spread of z around it, as in CorrDiff (arXiv
    2309.15214). With a = sqrt(alpha_bar) and b = sqrt(1 - alpha_bar), z_t - a mean = a spread (r + noise of sd
    b / (a spread)). The estimate of r is the best linear one for unit variance plus a bounded correction, which starts
    at zero (preconditioning of Karras et al., arXiv 2206.00364).
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
        coarse_bands: int = 0,
    ) -> None:
        super().__init__()
        self.latents = latents
        self.register_buffer("levels", torch.from_numpy(alpha_bar(betas(*schedule))).float(), persistent=False)
        self.entry = nn.Conv2d(latents + coarse_bands, condition_width, 3, padding=1)
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
        mean = condition[:, : self.latents] + self.mean_head(h).float()
        return torch.cat([mean, log_spread.exp(), h], dim=1)

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
    sees_coarse = bool(of.get("sees_coarse", False))
    autoencoder = SmallAutoencoder(
        bands,
        latents,
        of["width"],
        of["encoder_blocks"],
        of["decoder_blocks"],
        float(of["latent_unit"]),
        sees_coarse=sees_coarse,
    )
    denoiser = SmallDenoiser(
        latents,
        of["condition_width"],
        of["condition_blocks"],
        of["denoiser_width"],
        of["denoiser_blocks"],
        (first, last),
        bands * sees_coarse,
    )
    network = LatentNetwork(autoencoder, denoiser, latents, sees_coarse=sees_coarse)
    network.get_buffer("betas").copy_(torch.from_numpy(betas(first, last)))
    return network
