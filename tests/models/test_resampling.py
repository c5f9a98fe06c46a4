"""Interpolation and folding give what torch gives, on any shape; gradients and short number formats go torch's way."""

import pytest
import torch
from torch.nn import functional

from pipeline.models.resampling import folded, unfolded, upsample


def image(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("scale", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 7), (1, 2, 1, 9), (1, 9, 120, 120)])
def test_upsampling_is_torchs(shape, scale):
    x = image(*shape)
    expected = functional.interpolate(x.double(), scale_factor=scale, mode="bicubic", align_corners=False)
    found = upsample(x, scale)
    assert found.is_contiguous()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


def test_upsampling_has_gradients():
    x = image(1, 2, 4, 4).requires_grad_()
    upsample(x, 4).sum().backward()
    torch.testing.assert_close(x.grad.sum(), torch.tensor(2 * 16.0 * 16))


def test_running_sums_are_not_rounded_to_short_formats():
    x = image(1, 3, 16, 16).bfloat16()
    expected = functional.interpolate(x, scale_factor=4, mode="bicubic", align_corners=False)
    assert torch.equal(upsample(x, 4), expected)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_folding_is_pixel_unshuffle_and_back(order):
    x = image(2, 3, 12, 20).contiguous(memory_format=order)
    phases = folded(x, 4)
    assert torch.equal(phases, functional.pixel_unshuffle(x, 4))
    assert torch.equal(unfolded(phases.contiguous(memory_format=order), 4), x)
