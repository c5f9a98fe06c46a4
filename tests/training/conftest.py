"""Fixtures of the training tests."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of several devices, as GPUs do; copies may cross, and so may single numbers."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim()]
        devices = {str(tensor.device) for tensor in given}
        if len(devices) > 1 and func is not torch.ops.aten.copy_.default:
            msg = f"{func} of tensors on {sorted(devices)}"
            raise RuntimeError(msg)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def far(monkeypatch):
    """A device that is not the CPU and does not mix with it: PyTorch's "meta", whose values come back as 0."""
    fetched, listed = Tensor.cpu, Tensor.tolist

    def cpu(tensor):
        return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else fetched(tensor)

    monkeypatch.setattr(Tensor, "cpu", cpu)
    monkeypatch.setattr(Tensor, "tolist", lambda tensor: listed(cpu(tensor)))
    with OneDevice():
        yield torch.device("meta")
