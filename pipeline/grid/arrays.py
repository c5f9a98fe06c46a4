"""One code for arrays of NumPy and for tensors on a device: what the two call differently.

`namespace` is the module whose functions take the values: both have where, moveaxis, stack, ... under one name. On the
CPU arrays are NumPy's, which is no slower there than torch for what surrounds the networks; on any other device they
are tensors of torch. Sums, products and comparisons of both round alike, so that the same code gives the same bits.
"""

from __future__ import annotations

import math
from itertools import chain
from mmap import mmap
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import torch
    from numpy.typing import NDArray
    from torch import Tensor

Array: TypeAlias = Any  # an array of NumPy, or a tensor of torch
Module: TypeAlias = Any  # numpy or torch


def is_numpy(values: Array) -> bool:
    """Whether values are an array of NumPy."""
    return isinstance(values, (np.ndarray, np.generic))


def takes_numpy(device: torch.device) -> bool:
    """Whether what surrounds networks on a device is arrays of NumPy, as on the CPU, and not tensors."""
    return device.type == "cpu"


def namespace(values: Array) -> Module:
    """The module whose functions take these values: numpy or torch."""
    if is_numpy(values):
        return np
    import torch

    return torch


def cast(values: Array, kind: str) -> Array:
    """Values converted to a type by its name, such as "float32"."""
    if is_numpy(values):
        return values.astype(kind)
    return values.to(getattr(namespace(values), kind))


def blank(shape: Sequence[int], device: torch.device, value: float = 0.0) -> Array:
    """Values of float32 that are all the same: an array of NumPy for the CPU, a tensor for any other device."""
    if takes_numpy(device):
        return np.full(tuple(shape), value, np.float32)
    import torch

    return torch.full(tuple(shape), value, device=device)


def paged(shape: Sequence[int], device: torch.device) -> Array:
    """Zeros of float32 that outlive larger arrays. On the CPU they have pages of their own, given back at their end.

    In the C library's heap they would lie between what comes and goes, and the gaps that they leave are not used again.
    """
    if not takes_numpy(device):
        return blank(shape, device)
    return np.frombuffer(mmap(-1, 4 * math.prod(shape)), np.float32).reshape(tuple(shape))


def zeros(shape: Sequence[int], like: Array, kind: str = "float32") -> Array:
    """Zeros of a type, where `like` is."""
    if is_numpy(like):
        return np.zeros(tuple(shape), kind)
    return like.new_zeros(tuple(shape), dtype=getattr(namespace(like), kind))


def divided(values: Array, number: float) -> Array:
    """Values over a number, correctly rounded. torch would multiply by the reciprocal of a number on a GPU."""
    if is_numpy(values):
        return values / values.dtype.type(number)
    return values / values.new_full((), number)


def divide(values: Array, number: float) -> None:
    """Divide values by a number, in place."""
    values /= values.dtype.type(number) if is_numpy(values) else values.new_full((), number)


def compact(values: Array) -> Array:
    """Values laid out in memory in the order of their axes."""
    return np.ascontiguousarray(values) if is_numpy(values) else values.contiguous()


def copied(values: Array) -> Array:
    """A copy of values."""
    return values.copy() if is_numpy(values) else values.clone()


def stacked(values: Iterable[Array], count: int) -> Array:
    """`count` arrays of one shape and type, stacked along a new first axis while they are made, or tensors."""
    every = iter(values)
    first = next(every)
    if not is_numpy(first):
        return namespace(first).stack([first, *every])
    whole = np.empty((count, *first.shape), first.dtype)
    for i, one in enumerate(chain([first], every)):
        whole[i] = one
    return whole


def placed(values: NDArray[Any], like: Array) -> Array:
    """An array moved to where `like` is. uint16 becomes int32 on a device, which lacks most of its operations."""
    return values if is_numpy(like) else on_device(values, like.device)


def beside(values: NDArray[Any], device: torch.device) -> Array:
    """An array as what surrounds networks on a device: itself for the CPU, else moved there."""
    return values if takes_numpy(device) else on_device(values, device)


def on_device(values: NDArray[Any], device: torch.device) -> Array:
    """An array as a tensor on a device. A GPU copies from pinned memory and nobody waits for it."""
    import torch

    wide = values.dtype == np.uint16
    held = np.ascontiguousarray(values.view(np.int16) if wide else values)
    tensor = torch.from_numpy(held if held.flags.writeable else held.copy())  # torch has no tensors that are only read
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    tensor = tensor.to(device, non_blocking=device.type == "cuda")
    return tensor.to(torch.int32) & 0xFFFF if wide else tensor


def settled(tensor: Tensor) -> Array:
    """A tensor as what surrounds the networks takes it: as an array of NumPy from the CPU, else where it is."""
    return tensor.numpy() if takes_numpy(tensor.device) else tensor


def tensor_of(values: Array) -> Tensor:
    """The tensor of an array, which shares its memory, or the tensor itself."""
    import torch

    return torch.from_numpy(values) if is_numpy(values) else values


def fetched(values: Array) -> NDArray[Any]:
    """Values as an array of NumPy. Waits for a device."""
    found: NDArray[Any] = values if is_numpy(values) else values.cpu().numpy()
    return found


def fetched_uint16(values: Array) -> NDArray[np.uint16]:
    """Whole numbers of 0 to 65535 as an array of NumPy; a device hands over 16 bits of each."""
    found: NDArray[np.uint16]
    if is_numpy(values):
        found = values.astype(np.uint16, copy=False)
    else:
        signed = ((values + 32_768) & 0xFFFF) - 32_768  # of the same 16 bits
        found = cast(signed, "int16").cpu().numpy().view(np.uint16)
    return found
