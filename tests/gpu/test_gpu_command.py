"""The command for a GPU, on the CPU: that it works on the day, and that it notices what does not hold."""

import json
import runpy
import sys

import pytest
import torch

from tests.gpu import __main__ as command
from tests.gpu import checks
from tests.gpu.bench import BROKEN, HOLDS


def rows_of(path, *words):
    code = command.main(["--device", "cpu", "--small", "--json", str(path), *words])
    return code, json.loads(path.read_text())["rows"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import of package:RuntimeWarning")
def test_without_a_gpu_it_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tests.gpu"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("tests.gpu", run_name="__main__", alter_sys=True)
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (3, "")
    assert err.startswith("no GPU: ")
    assert err.count("\n") == 1


@pytest.mark.long
@pytest.mark.slow
def test_all_that_a_cpu_can_tell_holds(tmp_path, capsys):
    code, rows = rows_of(tmp_path / "rows.json")
    told = capsys.readouterr().out
    assert code == 0, told
    checked = {row["check"] for row in rows if row["verdict"] == HOLDS}
    assert {"steps", "equality", "batches", "runs"} <= checked
    assert {row["check"] for row in rows} == {*checked, "waiting", "throughput", "batch"}
    assert sum(row["case"].endswith("worker killed") and row["value"] == "True" for row in rows) == 1
    assert all(f"| {row['check']} | {row['case']} |" in told for row in rows)


def test_what_does_not_hold_is_told(tmp_path, monkeypatch):
    """A rounding of the device that differs from NumPy's in one value."""
    real = checks.fetched_uint16

    def off(values):
        found = real(values).copy()
        found.flat[7] ^= 1
        return found

    monkeypatch.setattr(checks, "fetched_uint16", off)
    code, rows = rows_of(tmp_path / "rows.json", "--only", "steps")
    assert code == 1
    broken = {row["case"] for row in rows if row["verdict"] == BROKEN}
    assert broken >= {f"rounding, factor {factor}" for factor in (4, 8, 24)}
    assert next(row for row in rows if row["case"] == "noise")["verdict"] == HOLDS


def test_a_check_that_fails_does_not_stop_the_others(tmp_path, monkeypatch):
    def fail(_bench):
        yield from ()
        raise RuntimeError("CUDA error: made up")

    monkeypatch.setattr(checks, "waiting", fail)
    code, rows = rows_of(tmp_path / "rows.json", "--only", "waiting", "steps")
    assert code == 1
    assert rows[0]["value"] == "CUDA error: made up"
    assert len(rows) > 5


def test_time_is_kept(tmp_path):
    code, rows = rows_of(tmp_path / "rows.json", "--only", "steps", "--minutes", "0")
    assert (code, [row["value"] for row in rows]) == (0, ["time is up"])


def test_unknown_checks_are_named(capsys):
    assert command.main(["--device", "cpu", "--only", "everything"]) == 2
    assert "no check everything; expected some of steps" in capsys.readouterr().err
