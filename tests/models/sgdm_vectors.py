"""The reference vectors of map guidance: arrays by key, and weights by the rule they were made with."""

import json
import zlib

import numpy as np
import torch

from tests.models.test_difffusr import ruled

RELATIVE = 1e-5  # of an array's largest magnitude
EXACT = 1e-12  # of float64 arrays of the sampler
DIM = 32  # of a style vector


class Vectors:
    """The arrays as tensors, and the tensors of the nets in the authors' layout."""

    def __init__(self, folder):
        self.file = np.load(folder / "sgdm_reference_vectors.npz")
        self.nets = json.loads((folder / "sgdm_state_dict_shapes.json").read_text())["nets"]

    def __call__(self, key):
        return torch.from_numpy(np.asarray(self.file[key]))

    def reproduced(self, key, found, relative=RELATIVE):
        """Assert that `found` is the array of `key` within `relative` of its largest magnitude."""
        expected = self(key).double()
        found = torch.as_tensor(found).double()
        assert found.shape == expected.shape, key
        error = float((found - expected).abs().max() / expected.abs().max())
        assert error <= relative, f"{key}: {error:.2e}"

    def tensors(self, net):
        """Return all tensors of a net by the rule, under the names of the json."""
        return flow_tensors(self.nets[net]) if net == "flow" else ruled(self.nets[net])


def flow_tensors(shapes):
    """Weights of a flow by the rule: permutations, and last layers a tenth as large."""
    made = ruled({name: shape for name, shape in shapes.items() if "perm" not in name})
    made = {name: 0.1 * tensor if ".net.4." in name else tensor for name, tensor in made.items()}
    for name in shapes:
        if name.endswith(".perm"):
            order = np.random.default_rng(zlib.crc32(name.encode())).permutation(DIM)
            made[name] = torch.from_numpy(order)
            made[name.replace(".perm", ".inv_perm")] = torch.from_numpy(np.argsort(order))
    return {name: made[name] for name in shapes}


def read(folder):
    return Vectors(folder / "reference_vectors")
