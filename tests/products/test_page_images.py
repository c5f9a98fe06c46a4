"""Images inside the report page: what a browser will make of them, written down here once more, in Python."""

import io
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from pipeline.products.page.images import encode_classes, encode_exact, encode_lossy, encode_set, stretch


def decode(plane):
    """DN of a plane, as web/planes.js takes it apart."""
    if plane.codec == "bytes":
        return np.frombuffer(zlib.decompress(plane.content), np.uint8).reshape(plane.ny, plane.nx)
    if plane.codec == "exact":
        high, low = np.frombuffer(zlib.decompress(plane.content), np.uint8).reshape(2, plane.ny, plane.nx)
        folded = high.astype(np.int64) << 8 | low
        change = (folded >> 1) ^ -(folded & 1)
        return (change.cumsum(0).cumsum(1) % 2**16).astype(np.uint16)
    dn = np.array(plane.table)[np.asarray(Image.open(io.BytesIO(plane.content)))]
    if plane.fixes:
        planes = np.frombuffer(zlib.decompress(plane.fixes), np.uint8).reshape(6, plane.fixes_count).astype(np.int64)
        at = (planes[:4] * 256 ** np.arange(4)[:, None]).sum(0).cumsum()
        steps = (planes[4] | planes[5] << 8).astype(np.uint16).view(np.int16)
        dn.ravel()[at] += steps * plane.bound_dn
    if plane.mask:
        bits = np.unpackbits(np.frombuffer(zlib.decompress(plane.mask), np.uint8), bitorder="little")
        dn = np.where(bits[: dn.size].reshape(dn.shape) == 1, dn, 0)
    return dn


def land(seed=0, shape=(200, 240), bright=True):
    """Smooth ground, texture, some roofs that are ten times as bright, and a corner of nodata."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    dn = 2000 + 600 * np.sin(x / 17) * np.cos(y / 23) + rng.normal(0, 40, shape)
    if bright:
        dn[rng.random(shape) > 0.999] = 15000
    dn = np.clip(dn, 1, 65535).astype(np.uint16)
    dn[:30, :20] = 0
    return dn


@given(arrays(np.uint16, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 65535)))
def test_exact_planes_come_back_exactly(image):
    plane = encode_exact(image)
    assert (decode(plane) == image).all()
    assert plane.max_error_dn == 0


def test_classes_come_back_exactly():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4) % 4
    assert (decode(encode_classes(image)) == image).all()


@pytest.mark.parametrize("budget", [60_000, 20_000, 8_000])
def test_lossy_planes_are_within_what_they_say(budget):
    image = land()
    plane = encode_lossy({"B04": image}, budget).planes["B04"]
    decoded = decode(plane).astype(int)
    error = np.abs(decoded - image)[image > 0]
    assert plane.size <= budget
    assert 0 < error.max() == plane.max_error_dn <= plane.bound_dn
    assert np.sqrt((error**2.0).mean()) == pytest.approx(plane.rms_error_dn, abs=0.06)
    assert ((decoded == 0) == (image == 0)).all()


def test_fewer_bytes_mean_larger_errors_within_the_budget():
    images = {f"B{i:02d}": land(i) for i in range(1, 4)}
    fine, coarse = (encode_lossy(images, budget) for budget in (180_000, 50_000))
    assert coarse.size <= 50_000 < fine.size <= 180_000
    error = [sum(plane.rms_error_dn for plane in found.planes.values()) for found in (coarse, fine)]
    assert error[0] > 1.5 * error[1]


def test_sets_are_exact_where_that_fits_and_small_where_not():
    image = land()
    exact = encode_set(["B04"], image[None], 10**6)
    assert exact.exact
    small = encode_set(["B04"], image[None], exact.size // 3)
    assert not small.exact
    assert small.size <= exact.size // 3


def test_a_plane_without_a_measured_pixel_is_nodata_throughout():
    empty = np.zeros((64, 64), np.uint16)
    assert not decode(encode_lossy({"B01": empty}, 10_000).planes["B01"]).any()
    assert stretch(empty) == (1000, 11000)


def test_even_ground_needs_no_fixes_and_no_mask():
    even = np.full((64, 64), 1234, np.uint16)
    plane = encode_lossy({"B01": even}, 10_000).planes["B01"]
    assert (plane.fixes, plane.mask, plane.max_error_dn) == (b"", b"", 0)
    assert (decode(plane) == 1234).all()


def test_stretch_leaves_out_nodata_and_keeps_a_span():
    image = np.concatenate([np.zeros(500), np.arange(2000, 3000)]).astype(np.uint16)[None]
    low, high = stretch(image)
    assert (low, high) == (2009, 2989)
    assert stretch(np.full((4, 4), 1500, np.uint16)) == (1500, 1600)
