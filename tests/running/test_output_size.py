"""The size of a run's output, and the limit beyond which it has to be asked for."""

import pytest

from pipeline.bands import BAND_NAMES
from pipeline.errors import UsageError
from pipeline.planning.output_size import MAX_OUTPUT_GB, output_gb, require_output
from pipeline.superres.passes import passes_of
from tests.toys import cascade

PASSES = passes_of(cascade.SYSTEM.stages({}, {}), ("B02", "B03", "B04", "B08"))


def test_bytes_follow_from_area_bands_and_gsd():
    sizes = output_gb(25.0, 3, PASSES)
    assert sizes[2.5] == pytest.approx(25e6 / 2.5**2 * 4 * 2 * 3 / 1e9)
    assert sizes[1.25] == pytest.approx(25e6 / 1.25**2 * 4 * 2 * 3 / 1e9)


def test_the_largest_area_that_is_allowed_without_asking_fits():
    from pipeline.aoi.aoi import MAX_AREA_KM2

    require_output(MAX_AREA_KM2, 1, passes_of((), BAND_NAMES), MAX_OUTPUT_GB)


def test_more_has_to_be_asked_for():
    size = sum(output_gb(1000.0, 1, PASSES).values())
    require_output(1000.0, 1, PASSES, size)
    with pytest.raises(UsageError, match=r"GB at 2\.5 m, .* GB at 1\.25 m\); expected at most 1 GB") as found:
        require_output(1000.0, 1, PASSES, 1.0)
    assert "--max-output-gb 100" in str(found.value)
    require_output(1000.0, 1, PASSES, 100.0)
