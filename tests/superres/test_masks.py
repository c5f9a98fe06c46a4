"""Where detail may be generated."""

import numpy as np

from pipeline.superres import masks


def clear_dn(ny=40, nx=40):
    return np.full((3, ny, nx), 1500, np.uint16)


def test_clear_land_needs_no_mask():
    assert masks.detail_weight(clear_dn(), np.full((20, 20), 4, np.uint8)) is None


def test_clouds_and_their_neighbourhood_get_no_detail_and_the_rest_all():
    scl = np.full((20, 20), 4, np.uint8)
    scl[10, 10] = 9
    weight = masks.detail_weight(clear_dn(), scl)
    assert (weight[20:22, 20:22] == 0).all()
    assert (weight[16:26, 16:26] == 0).all()
    assert (weight[:12] == 1).all()
    assert 0 < weight[20, 13] < 1 or 0 < weight[20, 14] < 1


def test_nodata_and_bright_pixels_are_blocked():
    dn = clear_dn()
    dn[1, 5, 5] = 0
    dn[:, 30, 30] = 9000
    weight = masks.detail_weight(dn, None)
    assert weight[5, 5] == weight[30, 30] == 0
    assert weight[18, 18] == 1


def test_fill_takes_the_nearest_valid_pixel():
    values = np.array([[1.0, 0.0, 0.0, 5.0]], np.float32)
    assert masks.fill_nearest(values, values > 0).tolist() == [[1, 1, 5, 5]]
    assert masks.fill_nearest(values, np.zeros_like(values, bool)).tolist() == [[0, 0, 0, 0]]


def test_reflectance_follows_the_house_convention():
    assert np.allclose(masks.reflectance(np.array([1, 1000, 11000], np.uint16)), [-0.0999, 0.0, 1.0])


def test_quality_classes():
    weight = np.array([[0.0, 0.5, 1.0, 1.0]], np.float32)
    valid = np.array([[True, True, True, False]])
    assert masks.quality(weight, valid).tolist() == [[1, 2, 3, 0]]
