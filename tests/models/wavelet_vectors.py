"""The reference vectors of the wavelet cascade: arrays by key, and weights by the rule they were made with."""

import math
import zlib

import numpy as np
import torch

DTYPES = (torch.float64, torch.float32)
RELATIVE = {torch.float64: 1e-12, torch.float32: 1e-5}  # of an array's largest magnitude


class Vectors:
    """Reads each key as a tensor of one type, and remembers which keys were read."""

    def __init__(self, file, dtype=torch.float64):
        self.file, self.dtype = file, dtype

    def __call__(self, key):
        return torch.from_numpy(self.file[key]).to(self.dtype)

    def one(self, key):
        """A batch of one."""
        return self(key)[None]

    def reproduced(self, key, found, batch=True):
        """Assert that `found` is the array of `key` to the tolerance of its type."""
        expected = torch.from_numpy(self.file[key])
        found = found[0] if batch else found
        assert found.dtype == self.dtype
        assert found.shape == expected.shape, key
        error = (found.double() - expected).abs().max() / expected.abs().max()
        assert error <= RELATIVE[self.dtype], f"{key}: {error:.2e}"


def read(folder, dtype=torch.float64):
    return Vectors(np.load(folder / "reference_vectors" / "wavelet_cascade_vectors.npz"), dtype)


def ruled(network, prefix):
    """Fill `network` by the rule of the vectors, in float64, for the names that it has under `prefix`."""
    weights = {}
    for name, tensor in network.state_dict().items():
        z = np.random.default_rng(zlib.crc32(f"{prefix}.{name}".encode())).standard_normal(tuple(tensor.shape))
        weights[name] = torch.from_numpy(z / math.sqrt(math.prod(z.shape[1:])) if z.ndim >= 2 else 0.05 * z)
    network.double().load_state_dict(weights)
    return network
