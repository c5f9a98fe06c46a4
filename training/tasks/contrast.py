"""Contrastive learning of degradations (MoCo, He et al. 2020), as for DiffFuSR's degradation encoder.

Two crops of one image with the same degradation are a positive pair. Crops of earlier images, kept in a queue, are
negatives. Key encoder and queue are kept in checkpoints but not in bundles.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from training.loop import distributed

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models.degradation import DegradationEncoder

QUEUE = 8192  # number of keys: 256 batches of 32 (released code)
MOMENTUM = 0.999  # of the key encoder, He et al. 2020
TEMPERATURE = 0.07  # same


def info_nce(query: Tensor, key: Tensor, negatives: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Mean of -log(exp(q.k / T) / (exp(q.k / T) + sum_n exp(q.n / T))) over rows (He et al. 2020, eq. 1), in float32.

    `query` and `key` (B, D) are positive pairs, `negatives` (K, D) are shared by all. All rows have unit length.
    """
    with torch.autocast(query.device.type, enabled=False):
        query, key, negatives = query.float(), key.float(), negatives.float()
        alike = (query * key).sum(1, keepdim=True)
        logits = torch.cat([alike, query @ negatives.T], dim=1) / temperature
        return functional.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


class MomentumContrast(nn.Module):
    """Key encoder and queue of one degradation encoder. Neither is trained by gradients."""

    queue: Tensor
    cursor: Tensor

    def __init__(
        self,
        encoder: DegradationEncoder,
        width: int,
        size: int = QUEUE,
        momentum: float = MOMENTUM,
        temperature: float = TEMPERATURE,
    ) -> None:
        super().__init__()
        self.encoder_k = copy.deepcopy(encoder).requires_grad_(False)
        self.momentum, self.temperature = momentum, temperature
        self.register_buffer("queue", torch.zeros(size, width))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def begin(self, encoder: DegradationEncoder, generator: torch.Generator) -> None:
        """Copy `encoder` to the key encoder and fill the queue with random directions."""
        self.encoder_k.load_state_dict(encoder.state_dict())
        directions = torch.randn(self.queue.shape, generator=generator)
        self.queue.copy_(functional.normalize(directions, dim=1))
        self.cursor.zero_()

    def loss(self, encoder: DegradationEncoder, vector: Tensor, other: Tensor) -> Tensor:
        """Return InfoNCE of degradation vectors (B, D) of one crop and windows (B, bands, h, w) of the other.

        Updates the key encoder first, and adds the keys to the queue after the comparison.
        """
        query = functional.normalize(encoder.projection(vector).float(), dim=1)
        key = self._keys(encoder, other)
        loss = info_nce(query, key, self.queue.clone(), self.temperature)
        self.enqueue(distributed.gathered(key))
        return loss

    @torch.no_grad()
    def follow(self, encoder: DegradationEncoder) -> None:
        """Update k <- m k + (1 - m) q for every parameter (He et al. 2020, eq. 2). BatchNorm keeps its statistics."""
        for own, leading in zip(self.encoder_k.parameters(), encoder.parameters(), strict=True):
            own.lerp_(leading, 1 - self.momentum)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest keys in the ring buffer by keys (B, D)."""
        size = len(self.queue)
        keys = keys[-size:]
        places = (self.cursor + torch.arange(len(keys), device=self.queue.device)) % size
        self.queue[places] = keys.to(self.queue.dtype)
        self.cursor.copy_((self.cursor + len(keys)) % size)

    @torch.no_grad()
    def _keys(self, encoder: DegradationEncoder, windows: Tensor) -> Tensor:
        self.follow(encoder)
        vector = self.encoder_k(windows)
        return functional.normalize(self.encoder_k.projection(vector).float(), dim=1)
