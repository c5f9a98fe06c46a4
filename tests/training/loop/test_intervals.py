"""Reports take a bounded share of the time, checkpoints come as asked for."""

from training.loop.intervals import REST, Intervals


def test_reports_come_at_intervals_with_their_checkpoint():
    intervals = Intervals(60.0, 100.0)
    assert not intervals.report_due(159.0)
    assert not intervals.save_due(159.0)
    assert intervals.report_due(160.5)
    intervals.reported(160.5, 1.0)
    assert not intervals.report_due(220.0)
    assert not intervals.save_due(220.0)
    assert intervals.report_due(220.5)


def test_after_a_long_report_only_checkpoints_come_for_a_while():
    intervals = Intervals(60.0, 0.0)
    intervals.reported(60.0, 30.0)
    saved = []
    for now in range(60, 60 + 30 * REST):
        assert not intervals.report_due(now)
        if intervals.save_due(now):
            saved.append(now)
            intervals.saved(now)
    assert saved == [120, 180, 240, 300]
    assert intervals.report_due(60 + 30 * REST)


def test_an_interval_of_nothing_reports_after_every_step():
    intervals = Intervals(0.0, 5.0)
    assert intervals.report_due(5.0)
    intervals.reported(5.0, 100.0)
    assert intervals.report_due(5.0)
