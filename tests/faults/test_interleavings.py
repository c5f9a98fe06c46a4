"""A few of `python -m tests.faults.interleavings`, in a folder and in an object store."""

import pytest

from tests.faults import interleavings

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.mark.parametrize("words", [("--seed", "1"), ("--seed", "211", "--s3")])
def test_of_drivers_at_one_store_end_in_one_sound_store(words, capfd):
    assert interleavings.main(["--count", "3", *words]) == 0, capfd.readouterr().out
