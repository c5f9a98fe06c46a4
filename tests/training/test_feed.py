"""The command that measures how fast batches are made."""

import time

import pytest
import torch

from tests.training.imagery import TINY_SR, own_imagery
from training import feed


def test_a_slow_source_is_seen_in_every_number():
    def make(draw):
        time.sleep(0.01)
        return {"x": torch.zeros(4, 1)}

    speed = feed.speed_of(make, workers=0, seconds=0.1, warm=0, step_s=0.0)
    assert 0 < speed.images_per_s <= 400
    assert speed.per_cpu_s > speed.images_per_s  # it sleeps
    assert speed.batch_ms >= 10
    assert speed.waits_ms >= 10
    made_elsewhere = feed.speed_of(make, workers=1, seconds=0.1, warm=0, step_s=0.0)
    assert made_elsewhere.per_cpu_s == 0


def test_the_command_prints_a_row_for_every_number_of_workers(tmp_path, monkeypatch, capsys):
    data = own_imagery(tmp_path, monkeypatch)
    given = ["--data", str(data), "--preset", TINY_SR.name, "--seconds", "0.05", "--warm-up", "0", "--step-ms", "1"]
    assert feed.main([*given, "--workers", "0,1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["preset", "workers", "images/s"]
    assert [line.split()[:2] for line in lines[1:]] == [[TINY_SR.name, "0"], [TINY_SR.name, "1"]]
    assert all(float(line.split()[2]) > 0 for line in lines[1:])
    assert feed.main(["--data", str(tmp_path / "none.toml"), "--preset", TINY_SR.name]) == 2
    assert "none.toml is no file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        feed.main(["--workers", "some"])
    assert "--workers some; expected numbers such as 0,1,2" in capsys.readouterr().err
