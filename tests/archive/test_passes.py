"""Time steps: one overpass is one acquisition, whatever midnight, the antimeridian and the calendar say."""

import itertools

import pytest

from pipeline.archive.passes import best_first, pass_numbers, passes, periods
from pipeline.archive.scene import Scene
from pipeline.errors import UsageError


def scene(scene_id, when="2024-06-17T10:00:00Z", longitude=9.0, cloud=None, **properties):
    box = [[longitude, 45], [longitude + 1, 45], [longitude + 1, 46], [longitude, 46], [longitude, 45]]
    footprint = {"type": "Polygon", "coordinates": [box]}
    return Scene(scene_id, when, 32632, footprint, {}, cloud_pct=cloud, properties=properties)


def grouped(*scenes):
    return [[one.id for one in found.scenes] for found in passes(scenes)]


def test_best_first_is_least_cloudy_then_by_id_unknown_last():
    scenes = [scene("d"), scene("c", cloud=10), scene("b", cloud=10), scene("a", cloud=0.5)]
    assert [s.id for s in best_first(scenes)] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("longitude", [178.0, -158.0])
def test_an_overpass_is_not_split_at_midnight_utc(longitude):
    before = scene("before", "2024-06-17T23:59:50Z", longitude)
    after = scene("after", "2024-06-18T00:00:05Z", longitude)
    next_day = scene("next", "2024-06-18T23:59:50Z", longitude)
    steps = periods([next_day, after, before], "none")
    assert [step.scene_ids for step in steps] == [("after", "before"), ("next",)]
    assert [step.datetime_utc for step in steps] == ["2024-06-17T23:59:50Z", "2024-06-18T23:59:50Z"]
    assert [step.label for step in steps] == ["2024-06-17", "2024-06-18"], "the date of its own time"
    assert {step.composite for step in steps} == {"mosaic"}


def test_a_pass_across_the_antimeridian_is_one_step():
    days = ("2024-06-17", "2024-06-22")
    scenes = [
        scene(f"{side} {day}", f"{day}T22:30:{seconds}Z", longitude)
        for day in days
        for side, longitude, seconds in (("east", 179.0, "00"), ("west", -179.9, "15"))
    ]
    steps = periods(scenes, "none")
    assert [step.scene_ids for step in steps] == [(f"east {day}", f"west {day}") for day in days]
    assert [step.label for step in steps] == list(days)
    times = [step.datetime_utc for step in steps]
    assert times == sorted(times)


def test_orbits_and_satellites_of_one_day_are_separate_steps():
    first = scene("first", "2024-06-17T10:00:00Z", platform="sentinel-2a", relative_orbit=51)
    later_orbit = scene("later", "2024-06-17T11:40:30Z", platform="sentinel-2a", relative_orbit=52)
    tandem = scene("tandem", "2024-06-17T10:00:30Z", platform="Sentinel-2C", relative_orbit=51)
    steps = periods([later_orbit, tandem, first], "none")
    assert [step.scene_ids for step in steps] == [("first",), ("tandem",), ("later",)]
    assert [step.label for step in steps] == ["2024-06-17T100000Z", "2024-06-17T100030Z", "2024-06-17T114030Z"]


def test_facts_that_an_archive_leaves_out_separate_nothing():
    scenes = [
        scene("a", "2024-06-17T10:00:00Z", platform="S2A", relative_orbit=51),
        scene("b", "2024-06-17T10:00:14Z"),
        scene("c", "2024-06-17T10:00:28Z", platform="sentinel-2a"),
        scene("d", "2024-06-17T10:20:00Z", **{"sat:relative_orbit": 51}),
        scene("e", "2024-06-17T11:20:00Z"),
    ]
    assert grouped(*scenes) == [["a", "b", "c", "d"], ["e"]]
    for shuffled in itertools.permutations(scenes):
        assert grouped(*shuffled) == [["a", "b", "c", "d"], ["e"]]
    assert pass_numbers(scenes) == [0, 0, 0, 0, 1]


def test_a_pass_cut_in_the_middle_groups_as_the_whole():
    """What a unit sees of a pass is grouped as the plan grouped all of it."""
    track = [scene(f"{i:02}", f"2024-06-17T10:{i:02}:00Z", platform="S2B", relative_orbit=8) for i in range(30)]
    hour_later = [(f"x{one.id}", one.datetime_utc.replace("T10", "T11")) for one in track]
    orbit_later = [scene(name, when, platform="S2B", relative_orbit=9) for name, when in hour_later]
    for part in (track[:2] + orbit_later[:2], [track[0], track[29], orbit_later[29]]):
        numbers = pass_numbers(part)
        assert [n for n, s in zip(numbers, part, strict=True) if s in track] == [0] * sum(s in track for s in part)


def test_mosaic_and_median_are_one_period_over_everything():
    scenes = [scene("late", "2024-08-31T10:00:00Z", cloud=1), scene("early", "2024-06-01T10:00:00Z", cloud=2)]
    for composite in ("mosaic", "median"):
        (step,) = periods(scenes, composite)
        assert step.label == "2024-06-01/2024-08-31"
        assert step.scene_ids == ("late", "early")
        assert step.composite == composite
        assert step.datetime_utc == "2024-06-01T10:00:00Z"


def test_monthly_is_one_median_per_calendar_month_in_order():
    scenes = [
        scene("july", "2024-07-01T10:00:00Z"),
        scene("june cloudy", "2024-06-02T10:00:00Z", cloud=40),
        scene("june clear", "2024-06-28T10:00:00Z", cloud=1),
        scene("last year", "2023-06-15T10:00:00Z"),
    ]
    steps = periods(scenes, "monthly")
    assert [step.label for step in steps] == ["2023-06", "2024-06", "2024-07"]
    assert [step.datetime_utc for step in steps] == [f"{step.label}-01T00:00:00Z" for step in steps]
    assert [step.scene_ids for step in steps] == [("last year",), ("june clear", "june cloudy"), ("july",)]
    assert {step.composite for step in steps} == {"median"}


def test_a_pass_at_the_turn_of_a_month_stays_whole():
    before = scene("before", "2024-06-30T23:59:50Z", longitude=178.0)
    after = scene("after", "2024-07-01T00:00:05Z", longitude=178.5)
    (step,) = periods([before, after], "monthly")
    assert step.label == "2024-06"
    assert step.scene_ids == ("after", "before")


def test_dates_without_a_time_belong_together_wherever_they_are():
    days = [
        scene("west", "2025-06-01T00:00:00Z", longitude=-63.0, platform="S2A"),
        scene("east", "2025-06-01T00:00:00Z", longitude=170.0, platform="S2B"),
        scene("next", "2025-06-02T00:00:00Z"),
    ]
    assert [step.label for step in periods(days, "none")] == ["2025-06-01", "2025-06-02"]
    assert grouped(*days) == [["east", "west"], ["next"]]
    (step,) = periods(days, "monthly")
    assert step.label == "2025-06"


def test_months_agree_with_pandas():
    """Time of a month is what resampling to month starts gives, so that series can be joined."""
    import pandas as pd

    days = ("2024-02-29", "2024-12-31", "2025-01-01")
    scenes = [scene(day, f"{day}T10:00:00Z") for day in days]
    stamps = [pd.Timestamp(step.datetime_utc).tz_localize(None) for step in periods(scenes, "monthly")]
    assert stamps == list(pd.to_datetime(days).to_period("M").to_timestamp())


def test_scenes_beside_the_area_join_steps_and_make_none():
    inside = scene("inside", "2024-06-17T10:00:14Z")
    beside = scene("beside", "2024-06-17T10:00:00Z", longitude=10.0, cloud=1)
    alone = scene("alone", "2024-06-20T10:00:00Z", longitude=10.0)
    (step,) = periods([inside, beside, alone], "none", over_area={"inside"})
    assert (step.datetime_utc, step.label) == (inside.datetime_utc, "2024-06-17")
    assert step.scene_ids == ("beside", "inside")
    (month,) = periods([inside, beside, alone], "monthly", over_area={"inside"})
    assert month.scene_ids == ("beside", "alone", "inside")
    assert periods([alone], "none", over_area={"inside"}) == ()


def test_no_scenes_no_periods_and_unknown_composites_are_refused():
    assert periods([], "none") == periods([], "median") == periods([], "monthly") == ()
    with pytest.raises(UsageError, match="mean"):
        periods([scene("a")], "mean")
