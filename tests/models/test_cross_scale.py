"""Attention within squares, and the two cross-scale modules."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

from pipeline.models.cross_scale import CrossAttention, CspEncoder, DetailRestoration, DilatedBlock, reach_px
from pipeline.models.layout import moved


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scrambled(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module


def attention(window):
    return scrambled(CrossAttention(12, heads=3, window=window))


def test_attention_in_closed_form():
    """One head of one channel: softmax(q k) v over all pixels of both sources."""
    module = CrossAttention(1, heads=1)
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), (2.0, 3.0, 5.0, 7.0, 1.0), strict=True):
            parameter.fill_(value)
    query, one, other = normal(1, 1, 2, 3), normal(1, 1, 2, 3, seed=1), normal(1, 1, 2, 3, seed=2)
    keys = torch.cat((one.flatten(), other.flatten()))
    weights = torch.softmax(2 * query.flatten()[:, None] * 3 * keys, dim=1)
    torch.testing.assert_close(module(query, one, other).flatten(), 7 * (weights @ (5 * keys)) + 1)


def test_squares_are_images_of_their_own():
    query, source = normal(2, 12, 8, 12), normal(2, 12, 8, 12, seed=1)
    found = attention(4)(query, source, query)
    for row in range(0, 8, 4):
        for column in range(0, 12, 4):
            cut = (..., slice(row, row + 4), slice(column, column + 4))
            torch.testing.assert_close(found[cut], attention(None)(query[cut], source[cut], query[cut]))


@pytest.mark.parametrize(("height", "width"), [(6, 7), (4, 5), (3, 8)])
def test_squares_at_the_border_see_only_what_is_there(height, width):
    query = normal(2, 12, height, width)
    found = attention(4)(query, query)
    last = (..., slice(height // 4 * 4, None), slice(width // 4 * 4, None))
    if query[last].numel():
        torch.testing.assert_close(found[last], attention(None)(query[last], query[last]))
    torch.testing.assert_close(attention(8)(query, query), attention(None)(query, query))


def test_the_dilated_block_is_the_identity_without_weights():
    block = DilatedBlock(4)
    for parameter in block[4].parameters():
        torch.nn.init.zeros_(parameter)
    x = normal(1, 4, 9, 9)
    assert torch.equal(block(x), x)
    assert [conv.dilation for conv in block] == [(1, 1), (2, 2), (3, 3), (2, 2), (1, 1)]


def test_untrained_modules_give_nothing():
    image, reference = normal(1, 3, 8, 8), normal(1, 3, 12, 12, seed=1)
    assert not CspEncoder(3, 12, 3)(image, reference).any()
    bands = (image, image, image)
    assert not DetailRestoration(3, 12, 3)(bands, bands).any()


def test_a_reference_of_any_size_is_read():
    encoder, image = scrambled(CspEncoder(3, 12, 3)), normal(1, 3, 8, 8)
    seen = [encoder(image, normal(1, 3, side, side, seed=1)) for side in (8, 12, 16)]
    assert all(tau.shape == image.shape for tau in seen)
    assert (seen[0] - seen[1]).abs().max() > 1e-4


@pytest.mark.parametrize("blocks", [1, 2])
def test_restoration_doubles_the_sides_and_sees_a_bounded_neighbourhood(blocks):
    module = scrambled(DetailRestoration(2, 8, 2, window=4, blocks=blocks, lr_channels=3, ref_channels=5))
    image, reference = normal(1, 3, 64, 64), normal(1, 5, 64, 64, seed=1)
    changed = image.clone()
    changed[..., 32, 32] += 1
    before, after = module((image,) * 3, (reference,) * 3), module((changed,) * 3, (reference,) * 3)
    assert before.shape == (1, 6, 128, 128)
    moved = (before != after).any(1)[0].nonzero() // 2 - 32
    assert reach_px(blocks, 4) - 4 <= moved.abs().max() <= reach_px(blocks, 4)


def test_every_band_is_restored_from_its_own_input():
    """D also reads V and H."""
    module = scrambled(DetailRestoration(2, 8, 2, window=4))
    inputs = [normal(1, 2, 8, 8, seed=k) for k in range(3)]
    before = module(tuple(inputs), tuple(inputs)).chunk(3, 1)
    for k, moves in enumerate(((True, False, True), (False, True, True), (False, False, True))):
        changed = [x + (j == k) for j, x in enumerate(inputs)]
        after = module(tuple(changed), tuple(inputs)).chunk(3, 1)
        assert tuple(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) == moves


class ConvolvedImages(TorchFunctionMode):
    """Notes of the image of each convolution over neighbours whether it is laid out channels last."""

    def __init__(self):
        super().__init__()
        self.channels_last = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.conv2d or func is torch.conv2d:
            image, weight = args[:2]
            if weight.shape[-1] > 1 and image.shape[1] > 1:
                self.channels_last.append(image.is_contiguous(memory_format=torch.channels_last))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 20)])
def test_on_a_cpu_no_convolution_has_to_copy_its_image(height, width):
    """A network of eight local blocks spent a fifth of its time on copies between two layouts."""
    encoder = CspEncoder(3, 12, 3, window=8, blocks=2)
    moved(encoder, "cpu")
    with ConvolvedImages() as found:
        encoder(normal(1, 3, height, width), normal(1, 3, 2 * height, 2 * width))
    assert found.channels_last == [True] * len(found.channels_last)
    assert len(found.channels_last) == 2 + 2 * 2 + 5 + 1
