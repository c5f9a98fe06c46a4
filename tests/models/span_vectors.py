"""The reference vectors of Fusion X2 and X4: arrays by key, and weights by the rule they were made with."""

import json
import math
import zlib

import numpy as np
import torch

from pipeline.models.span import Span

RELATIVE = 1e-5  # of an array's largest magnitude; folding and masks are exact to `RELATIVE_PLAIN`
RELATIVE_PLAIN = 1e-6
SIX = [3, 4, 5, 7, 8, 9]  # of the ten bands of the arrays, B02 B03 B04 B05 B06 B07 B08 B8A B11 B12
GUIDE = [0, 1, 2, 6]
RGBN = [2, 1, 0, 6]  # B04 B03 B02 B08, the order of a run
NAMES = "sen2sr_fusion_state_dict_shapes.json"


class Vectors:
    """The arrays as tensors, and the networks of the release with weights made by the rule."""

    def __init__(self, folder):
        self.file = np.load(folder / "sen2sr_fusion_reference_vectors.npz")
        self.nets = json.loads((folder / NAMES).read_text())["nets"]

    def __call__(self, key):
        return torch.from_numpy(self.file[key])

    def reproduced(self, key, found, relative=RELATIVE):
        expected = self(key)
        assert found.shape == expected.shape, key
        error = float((found - expected).abs().max() / expected.abs().max())
        assert error <= relative, f"{key}: {error:.2e}"

    def tensors(self, name):
        """Return all tensors of a network as its file holds them, the derived ones included."""
        return {key.removeprefix(f"{name}."): ruled(key, shape) for key, shape in self.nets[name].items()}

    def network(self, name, **sizes):
        span = Span(graph="published", **sizes)
        span.load_state_dict({key: x for key, x in self.tensors(name).items() if ".eval_conv." not in key})
        return span.requires_grad_(False)


def read(folder):
    return Vectors(folder / "reference_vectors")


def ruled(name, shape):
    """Return a tensor by the rule of the vectors, which its name and shape decide."""
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    z = z / math.sqrt(math.prod(shape[1:])) if len(shape) >= 2 else 0.05 * z
    return torch.from_numpy(z.astype(np.float32))
