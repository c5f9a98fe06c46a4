"""What a run says while it works: log lines, a progress line that fits its terminal, and an answer to Ctrl-C."""

import fcntl
import io
import json
import logging
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress

import pytest

from pipeline import logs, terminal
from pipeline import run as command
from pipeline.errors import UsageError
from pipeline.terminal import fitted, shown_width
from tests.archive.synthetic import make_archive, make_scene
from tests.conftest import LOG_LINE
from tests.running.conftest import LEFT, TOP, box, write_aoi

UNITS = 4
STAGES = ("search", "plan", "units", "overviews", "publish", "quicklook")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Arguments of a run of four units."""
    folder = tmp_path_factory.mktemp("archive")
    archive = make_archive(folder, [make_scene(folder, scene_id="S2A_ONE", size_m=1200)])
    aoi = write_aoi(folder / "shore.geojson", box(LEFT + 310, TOP - 890, LEFT + 890, TOP - 310))
    return [
        *("--aoi", str(aoi), "--catalog", str(archive), "--sr", "bicubic", "--cluster", "inline", "--workers", "1"),
        *("--chunk-px", "144", "--unit-chunks", "1"),
    ]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestLines:
    def test_one_line_for_each_unit_and_stage(self, words, capsys):
        assert command.main([*words, "--out", "run.zarr", "--bands", "B02,B03,B04"]) == 0
        err = capsys.readouterr().err
        assert LOG_LINE.sub("", err) == ""
        said = err.splitlines()
        units = [line for line in said if re.search(r": unit z32632-r\d-c\d-t0 done in ", line)]
        assert [re.search(r"(\d) of 4", line)[1] for line in units] == ["1", "2", "3", "4"]
        assert re.search(r"1 of 4, \d+ km2/h, \d+ s left$", units[0])
        for room, text in (
            ("planning.planner", "searching .* over shore"),
            ("planning.planner", "planned 4 units from 1 scene in"),
            ("running.driver", r"4 of 4 units of .*/run\.zarr to compute \(inline\)"),
            ("running.driver", "building overviews"),
            ("running.driver", "publishing"),
            ("running.driver", r"run\.zarr is complete"),
        ):
            assert any(re.search(rf"INFO pipeline\.{re.escape(room)}: .*{text}", line) for line in said), text

    def test_as_json_every_line_is_an_object(self, words, capsys):
        assert command.main([*words, "--out", "run.zarr", "--log-format", "json", "--bands", "B08", "--json"]) == 0
        out, err = capsys.readouterr()
        said = [json.loads(line) for line in err.splitlines()]
        assert list(dict.fromkeys(one["stage"] for one in said if "stage" in one)) == list(STAGES)
        units = [one for one in said if "unit" in one]
        assert [one["done"] for one in units] == [1, 2, 3, 4]
        assert all(one["logger"] == "pipeline.running.unit_queue" for one in units)
        assert all(one["units"] == UNITS and set(one["stage_seconds"]) > {"read", "write"} for one in units)
        assert units[-1]["left_s"] == 0
        assert [one["message"] for one in said if one["level"] == "warning"] == [
            "no quicklook: it needs a measured pixel, and the bands B02, B03, B04 or B03, B04, B08"
        ]
        assert json.loads(out)["status"] == "complete"

    def test_a_refusal_is_a_record_too(self, words, capsys):
        assert command.main([*words, "--log-format", "json", "--start", "2016-01-01", "--end", "2016-02-01"]) == 3
        last = json.loads(capsys.readouterr().err.splitlines()[-1])
        assert (last["level"], last["exit_code"]) == ("error", 3)
        assert last["found"] in last["message"]
        assert last["cure"]

    def test_quiet_says_nothing_but_warnings(self, words, capsys):
        assert command.main([*words, "--out", "run.zarr", "--quiet", "--bands", "B08"]) == 0
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("no quicklook: ")

    def test_handlers_are_taken_away(self):
        logger = logging.getLogger("pipeline")
        before = list(logger.handlers), logger.level, logger.propagate
        with suppress(UsageError), logs.spoken("json"):
            assert terminal.structured()
            raise UsageError("no")
        assert (list(logger.handlers), logger.level, logger.propagate) == before
        assert not terminal.structured()

    def test_control_characters_and_secrets_reach_no_line(self, capsys):
        for log_format in logs.FORMATS:
            with logs.spoken(log_format):
                facts = {"url": "https://host/a.tif?sig=CANARY123", "pixels": 3}
                logging.getLogger("pipeline.test").info("a\x1b[31mb\nc", extra={"facts": facts})
            err = capsys.readouterr().err
            assert err.count("\n") == 1
            assert "\x1b" not in err
            assert "CANARY" not in err
        assert json.loads(err)["pixels"] == 3


@pytest.mark.slow
def test_the_address_of_the_dashboard_is_told(words, capsys):
    pytest.importorskip("bokeh", reason="without it there is no dashboard")
    local = [{"inline": "local", "1": "2"}.get(word, word) for word in words[:-2]]
    assert command.main([*local, *words[-2:], "--out", "run.zarr"]) == 0
    assert re.search(r"dashboard of the workers: http://127\.0\.0\.1:\d+/status\n", capsys.readouterr().err)


class TestFitting:
    @pytest.mark.parametrize("columns", [20, 40, 79, 200])
    def test_words_are_dropped_from_the_end(self, columns):
        words = ["units 3/16", "420 km2/h", "3 min left", "2 at work", "12 s"]
        text = fitted(words, columns)
        assert shown_width(text) <= columns
        assert ", ".join(words).startswith(text)
        assert text.startswith("units 3/16")

    def test_wide_characters_count_twice(self):
        assert shown_width("東京e\u0301") == 5
        assert shown_width(fitted(["東京" * 30], 21)) <= 21

    def test_a_narrow_terminal(self, monkeypatch):
        class Narrow(io.StringIO):
            def isatty(self):
                return True

            def fileno(self):
                return 7

        monkeypatch.setattr(terminal.os, "get_terminal_size", lambda _number: os.terminal_size((30, 5)))
        screen = Narrow()
        progress = terminal.Progress(stream=screen)
        progress.say("searching a catalogue with a long name")
        progress.line("a line of its own")
        progress.clear()
        shown = re.split(r"[\r\n]", screen.getvalue())
        assert max(map(len, shown)) <= 29
        assert "a line of its own" in [line.rstrip() for line in shown]

    def test_a_progress_line_elsewhere_does_not_swallow_warnings(self, capsys):
        class Screen(io.StringIO):
            def isatty(self):
                return True

        screen = Screen()
        progress = terminal.Progress(stream=screen)
        progress.say("searching")
        terminal.tell("warning: the area is small")
        progress.clear()
        assert capsys.readouterr().err == "warning: the area is small\n"
        assert "small" not in screen.getvalue()


def in_terminal(arguments, columns, *, interrupt_at=""):
    """Run a command in a terminal of that width; press Ctrl-C once when `interrupt_at` is shown.

    Returns exit code, the lines that were shown, and the seconds from Ctrl-C to its acknowledgement.
    """
    pid, screen = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "pipeline.run", *arguments])
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    shown, pressed, answered = b"", None, None
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if not select.select([screen], [], [], 0.02)[0]:
            continue
        try:
            more = os.read(screen, 1 << 16)
        except OSError:  # the other end is closed
            break
        shown += more
        if interrupt_at and pressed is None and interrupt_at.encode() in shown:
            os.write(screen, b"\x03")
            pressed = time.monotonic()
        if pressed is not None and answered is None and b"Ctrl-C again" in shown:
            answered = time.monotonic() - pressed
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(screen)
    return code, [line.rstrip() for line in re.split(r"[\r\n]+", shown.decode())], answered


@pytest.mark.slow
class TestTerminal:
    @pytest.mark.parametrize("columns", [80, 44])
    def test_every_line_fits_and_the_last_is_taken_away(self, words, columns):
        code, lines, _ = in_terminal([*words, "--out", "run.zarr"], columns)
        assert code == 0, lines
        progress = lines[: next(i for i, line in enumerate(lines) if "is complete: " in line)]  # then the report
        assert max(map(shown_width, progress)) < columns, progress
        assert {line[0] for line in progress if line} >= {*"|/-\\"}, "it moves"
        said = " ".join(progress)
        for text in ("searching", "units 0/4", "reading z32632", "units 4/4", "km2/h"):
            assert text in said
        assert not LOG_LINE.search("\n".join(lines))

    def test_ctrl_c_is_acknowledged_and_the_run_continues(self, words):
        code, lines, answered = in_terminal([*words, "--out", "run.zarr"], 80, interrupt_at="units 1/4")
        assert code == 75, lines
        assert any(re.fullmatch(r"(finishing 1 unit|stopping); Ctrl-C again stops at once", line) for line in lines)
        assert answered < 2
        assert "run the same command again to continue" in " ".join(lines[-3:])
        code, lines, _ = in_terminal([*words, "--out", "run.zarr"], 80)
        assert code == 0
        assert re.search(r"units +\d computed, [1-3] found done", "\n".join(lines))


BLOCKED = """
import hashlib, logging, os, signal, threading, time
from pipeline import logs
from pipeline.running.stop import stop_on_signals
content = bytes(300_000_000)
with logs.spoken("text"), stop_on_signals() as stop:
    stop.running = 1
    threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.{0})).start()
    hashlib.sha256(content)  # one call that no signal handler interrupts
    logging.getLogger("pipeline").warning("asked %s", stop.asked)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [("SIGINT", "finishing 1 unit; Ctrl-C again stops at once"), ("SIGTERM", "finishing 1 unit, as SIGTERM asks")],
)
def test_a_signal_is_acknowledged_during_a_call_that_lasts(name, said):
    done = subprocess.run([sys.executable, "-c", BLOCKED.format(name)], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert [line.split(": ", 1)[1] for line in lines] == [said, "asked True"]
