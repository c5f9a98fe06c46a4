"""Where detail may be generated."""

import numpy as np

from pipeline.superres import masks


def clear_dn(ny=40, nx=40):
    return np.full((3, ny, nx), 1500, np.uint16)


def test_clear_land_needs_no_mask():
    assert masks.detail_weight(clear_dn(), np.full((20, 20), 4, np.uint8)) is None


def test_clouds_and_their_surroundings_get_no_detail():
    scl = np.full((20, 20), 4, np.uint8)
    scl[10, 10] = 9
    weight = masks.detail_weight(clear_dn(), scl)
    assert (weight[20:22, 20:22] == 0).all()
    assert (weight[18:24, 18:24] == 0).all()
    assert (weight[:12] == 1).all()
    assert 0 < weight[20, 16] < 1


def test_nodata_is_blocked_alone_and_unseen_values_widely():
    dn = clear_dn()
    dn[1, 5, 5] = 0
    dn[:, 30, 30] = 17_500
    weight = masks.detail_weight(dn, None)
    assert weight[5, 5] == 0
    assert (weight[4:7, 6] == 1).all()
    assert (weight[28:33, 28:33] == 0).all()
    assert weight[18, 18] == weight[30, 20] == 1


def test_roofs_keep_detail_and_unclassified_clouds_lose_it():
    """A white roof of 250 m, a sand-coloured desert, and a white cloud of 400 m."""
    roof, sand, cloud = clear_dn(120, 120), clear_dn(120, 120), clear_dn(120, 120)
    roof[:, 40:65, 40:65] = 8000
    sand[:] = np.array([7500, 6300, 5200], np.uint16)[:, None, None]
    cloud[:, 40:80, 40:80] = 8000
    assert masks.detail_weight(roof, None) is None
    assert masks.detail_weight(sand, None) is None
    weight = masks.detail_weight(cloud, None)
    assert (weight[40:80, 40:80] == 0).all()
    assert (weight[:30] == 1).all()
    assert masks.detail_weight(cloud, np.full((60, 60), 4, np.uint8)) is None  # which knows better


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


def test_causes_are_those_nearest():
    dn, scl = clear_dn(), np.full((20, 20), 4, np.uint8)
    scl[2, 2], scl[17, 17] = 9, 1
    dn[1, :, 39] = 0
    dn[:, 36, 2] = 17_500
    nearest = masks.nearest_cause(dn, scl)
    named = {place: masks.CAUSES[nearest[place]] for place in ((8, 8), (30, 30), (5, 37), (33, 4), (30, 38))}
    assert named == {
        (8, 8): "cloud", (30, 30): "saturated", (5, 37): "nodata", (33, 4): "bright", (30, 38): "nodata"
    }  # fmt: skip
    dn[:, :35, :35] = 8000
    assert masks.CAUSES[masks.nearest_cause(dn, None)[3, 3]] == "like_cloud"
    assert masks.CAUSES[masks.nearest_cause(clear_dn(), None)[3, 3]] == "like_cloud"  # a window's edge saw one
