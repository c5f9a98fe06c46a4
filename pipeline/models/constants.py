"""Small tensors of fixed numbers, moved to a device once: a copy for every window would make the host wait for it."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


def constant(values: Iterable[float], like: Tensor) -> Tensor:
    """Return numbers (n,) in the type of `like`, where it is. The tensor is shared, and must not be changed.

    For prediction; what is compiled for training makes its own.
    """
    return _made(tuple(values), like.dtype, like.device)


@lru_cache(maxsize=512)
def _made(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(mode=False):
        return torch.tensor(values, dtype=dtype).to(device)
