"""Keyed noise: known answers, independence of cutting, distribution."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.grid.grid import Window
from pipeline.grid.noise import normal_field, philox4x32

ONES = 0xFFFFFFFF
# Known answers of Philox4x32-10, distributed with Random123 (kat_vectors): counter, key, output.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_known_answers(counter, key, expected):
    words = philox4x32(tuple(np.array([c], np.uint64) for c in counter), key[0] | (key[1] << 32))
    assert tuple(int(word[0]) for word in words) == expected


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_of_a_device(counter, key, expected):
    """Tensors lack uint64: int64 has the same bits."""
    words = philox4x32(tuple(torch.tensor([c]) for c in counter), key[0] | (key[1] << 32))
    assert tuple(int(word[0]) for word in words) == expected


@pytest.mark.parametrize(
    "words",
    [
        {"seed": 2**64 - 1, "channels": 3, "step": 7, "member": 3, "stream": 9},
        {"seed": 9, "channels": 5, "step": 65535, "member": 65535, "stream": 2**24 - 1},
        {"seed": 0, "channels": 1},
    ],
)
def test_a_device_draws_the_same(words):
    window = Window(-79_992, 12_000, 96, 120)
    there = normal_field(window, **words, device=torch.device("cpu"))
    assert there.dtype == torch.float32
    assert np.array_equal(there.numpy(), normal_field(window, **words))
    assert normal_field(window, **words, device=torch.device("meta")).shape == there.shape


@settings(max_examples=25, deadline=None)
@given(st.integers(-2_000_000, 2_000_000), st.integers(-100, 400_000), st.integers(0, 60), st.integers(0, 60))
def test_a_part_of_a_field_equals_the_field_of_the_part(row, col, dy, dx):
    whole = Window(row, col, 97, 89)
    part = Window(row + dy, col + dx, 31, 29)
    field = normal_field(whole, seed=7, channels=3, step=2, member=5, stream=32)
    assert np.array_equal(
        field[(slice(None), *part.slices(whole))], normal_field(part, seed=7, channels=3, step=2, member=5, stream=32)
    )


def test_every_key_part_changes_the_field():
    window = Window(-1_900_000, 120_000, 16, 16)
    base = {"seed": 1, "channels": 3, "step": 1, "member": 1, "stream": 1}
    fields = [normal_field(window, **base)]
    fields += [normal_field(window, **{**base, name: 2}) for name in ("seed", "step", "member", "stream")]
    fields.append(normal_field(Window(window.row + 1, window.col, 16, 16), **base))
    fields.append(normal_field(Window(window.row, window.col + 1, 16, 16), **base))
    flat = np.stack([f.ravel() for f in fields])
    assert np.abs(np.corrcoef(flat) - np.eye(len(flat))).max() < 0.15


def test_neighbouring_rows_do_not_share_streams():
    field = normal_field(Window(0, 0, 2, 4096), seed=0, channels=1)[0]
    assert len(np.intersect1d(field[0], field[1])) <= 2


def test_standard_normal_and_white():
    field = normal_field(Window(-1_000_000, 200_000, 512, 512), seed=42, channels=5)
    assert np.abs(field.mean((1, 2))).max() < 0.01
    assert np.abs(field.std((1, 2)) - 1).max() < 0.01
    assert np.abs((field[:, 1:] * field[:, :-1]).mean()) < 0.005
    assert abs((field**4).mean() - 3) < 0.05
    assert np.abs(np.corrcoef(field.reshape(5, -1)) - np.eye(5)).max() < 0.01


def test_out_of_range_keys_are_refused():
    with pytest.raises(ValueError, match="out of range"):
        normal_field(Window(0, 0, 1, 1), seed=-1, channels=1)


def test_members_come_in_pairs_of_opposite_noise():
    window = Window(0, 0, 24, 24)
    fields = [normal_field(window, seed=1, channels=3, member=member) for member in range(4)]
    assert np.array_equal(fields[1], -fields[0])
    assert np.array_equal(fields[3], -fields[2])
    assert abs(np.corrcoef(fields[0].ravel(), fields[2].ravel())[0, 1]) < 0.1
