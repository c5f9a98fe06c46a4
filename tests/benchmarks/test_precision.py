"""The emulation of TF32, and what is told of differences."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.grid.grid import Window
from tests.benchmarks.precision import Apart, AsTf32, real_or_random, rounded


def test_tf32_keeps_ten_bits():
    """Halves go away from zero; the exponent may grow; other types stay."""
    ulp = 2.0**-10
    given = torch.tensor([1.0, 1 + ulp, 1 + ulp / 2, 1 + 0.49 * ulp, -1 - ulp / 2, 2 - ulp / 4, 0.0, 3e-5])
    found = rounded(given)
    assert found[:7].tolist() == [1.0, 1 + ulp, 1 + ulp, 1.0, -1 - ulp, 2.0, 0.0]
    assert abs(found[7] / given[7] - 1) <= ulp / 2
    assert torch.equal(rounded(found), found)
    whole = torch.arange(5)
    assert rounded(whole) is whole


@pytest.mark.parametrize("inference", [False, True])
def test_convolutions_and_products_see_rounded_factors_and_sums_do_not(inference):
    image, kernel = torch.rand((1, 2, 6, 6)), torch.rand((3, 2, 3, 3))
    with torch.inference_mode(inference), AsTf32():
        convolved, product, total = functional.conv2d(image, kernel), image[0, 0] @ image[0, 1], image + image
    assert torch.equal(convolved, functional.conv2d(rounded(image), rounded(kernel)))
    assert not torch.equal(convolved, functional.conv2d(image, kernel))
    assert torch.equal(product, rounded(image[0, 0]) @ rounded(image[0, 1]))
    assert torch.equal(total, image + image)


def test_differences_are_counted_in_dn():
    one = np.array([[1, 65535, 7, 8]], np.uint16)
    apart = Apart.of(one, np.array([[1, 0, 9, 8]], np.uint16))
    assert (apart.share, apart.mean, apart.largest) == (0.5, 65537 / 4, 65535)
    assert str(apart) == f"50.0 % / {65537 / 4:.3f} / 65535"


def test_rasters_cover_a_window_without_real_imagery(tmp_path):
    native, real = real_or_random(Window(-79_992, 12_000, 240, 480), tmp_path)
    assert not real
    assert {gsd: dn.shape[1:] for gsd, dn in native.dn.items()} == {10: (60, 120), 20: (30, 60), 60: (10, 20)}
