"""Learning rates: warm-up, the cosine, and the published halvings."""

import pytest

from training.schedule import FINAL_RATE, rate


def test_warm_up_is_linear_and_may_be_absent():
    assert [rate("cosine", 0.0, step, 4) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert rate("step", 0.0, 0, 0) == 1.0


def test_the_cosine_falls_from_one_to_its_final_share():
    assert [rate("cosine", share, 10, 1) for share in (0, 0.5, 1)] == pytest.approx(
        [1, (1 + FINAL_RATE) / 2, FINAL_RATE]
    )


def test_the_published_rate_halves_every_fifth():
    shares = [0, 0.199, 0.2, 0.399, 0.4, 0.6, 0.8, 1.0]
    assert [rate("step", share, 10, 1) for share in shares] == [1, 1, 0.5, 0.5, 0.25, 0.125, 0.0625, 0.0625]


def test_a_constant_rate_only_warms_up():
    assert [rate("constant", share, 10, 1) for share in (0, 0.5, 1)] == [1, 1, 1]
    assert rate("constant", 0.0, 0, 2) == 0.5
