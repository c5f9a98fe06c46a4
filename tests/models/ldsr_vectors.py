"""Reference vectors of latent diffusion: arrays by key, and checkpoints of the released layout by the vectors' rule."""

import json
from collections import OrderedDict

import numpy as np
import torch

from pipeline.models import latent_sampler, ldsr
from pipeline.models.bundle import load_bundle
from tests.models.test_difffusr import ruled
from training import convert
from training.conversion import Choices
from training.tasks.ldsr_convert import FOLLOWING, LDSR
from training.tasks.ldsr_names import AVERAGED


class Vectors:
    def __init__(self, file):
        self.file = file

    def __call__(self, key):
        return torch.from_numpy(self.file[key])

    def reproduced(self, key, found, tolerance, mean=None):
        """Assert that `found` is the array of `key` within `tolerance` of its largest magnitude."""
        expected = self(key).double()
        found = torch.as_tensor(found)
        assert found.shape == expected.shape, key
        off = (found.double() - expected).abs()
        assert off.max() / expected.abs().max() <= tolerance, f"{key}: {off.max() / expected.abs().max():.2e}"
        assert mean is None or off.mean() <= mean, f"{key}: mean {off.mean():.2e}"


def read(folder):
    return Vectors(np.load(folder / "reference_vectors" / "ldsr_reference_vectors.npz"))


def published_shapes(folder, bands=4):
    """{tensor: shape} of a released checkpoint's networks."""
    described = json.loads((folder / "reference_vectors" / "ldsr_state_dict_shapes.json").read_text())
    return {**described["autoencoder"], **described["unet"], **(described["six_band"]["changed"] if bands == 6 else {})}


def released(weights, betas=None):
    """Weights as a released checkpoint holds them, with its schedule and all that inference does not take.

    One stored NaN stands for each tensor that is not to be taken: taking any would show.
    """
    betas = latent_sampler.betas() if betas is None else betas
    nan = torch.tensor(torch.nan)
    state = OrderedDict(weights)
    state |= {name: nan.expand(len(betas)) for name in FOLLOWING}
    state["betas"] = torch.from_numpy(betas).float()
    state["alphas_cumprod"] = torch.from_numpy(latent_sampler.alpha_bar(betas)).float()
    for name, tensor in weights.items():
        if name.startswith("model."):
            state[AVERAGED + name.removeprefix("model.").replace(".", "")] = nan.expand(tensor.shape)
    state |= {AVERAGED + "decay": torch.tensor(0.9999), AVERAGED + "num_updates": torch.tensor(7, dtype=torch.int32)}
    state |= {"first_stage_model.loss.logvar": nan, "first_stage_model.loss.perceptual_loss.lin0.weight": nan}
    return {"epoch": 3, "global_step": 9, "pytorch-lightning_version": "2.1.0", "state_dict": state}


def converted(shapes, folder):
    """The networks with weights by the rule, as a user gets them: from a checkpoint by a bundle. Leaves no files."""
    source, out = folder / "released.ckpt", folder / "ldsr.safetensors"
    torch.save(released(ruled(shapes)), source)
    bundle, tensors = convert.convert(source, LDSR, Choices())
    convert.write(bundle, tensors, out)
    source.unlink()
    del tensors
    network = ldsr.LDSR.from_bundle(load_bundle(out)).network
    out.unlink()
    return network
