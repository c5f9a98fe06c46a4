"""Text from elsewhere never acts on a terminal, a log or a page."""

import io
import logging
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import terminal
from pipeline.errors import PipelineError, UsageError
from pipeline.plain import plain

HOSTILE = [
    "\x1b[31mred", "\x1b]0;title\x07", "\x1b]8;;http://evil\x1b\\link", "\x9b2J", "\r overwritten", "\x08\x08", "\x00",
    "\u202egnp.exe", "\u2066hidden\u2069", "\u200b", "\ufeff", "\u2028next line", "\x85", "\x7f",
    "\ud800", "\U000e0041",
]  # fmt: skip


def acts(text, kept=""):
    """Characters that a terminal acts on or that cannot be seen."""
    return [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") and c not in kept]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_and_not_obeyed(text):
    assert acts(plain(f"a {text} b\n")) == []
    assert plain("ÄÖÜ café 東京 · µm") == "ÄÖÜ café 東京 · µm"
    assert plain("a\n\tb", lines=True) == "a\n\tb"


@given(st.text())
def test_nothing_that_acts_is_left_and_twice_is_once(text):
    assert acts(plain(text)) == []
    assert acts(plain(text, lines=True), "\n\t") == []
    assert plain(plain(text)) == plain(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_errors_are_one_line_whatever_they_quote(text):
    error = UsageError(f"collection {text}\nerror: all is well", f"one of {text}", f"ask {text}")
    assert acts(str(error)) == []
    again = PipelineError.__reduce__(error)
    assert str(again[0](*again[1])) == str(error)


@pytest.mark.parametrize("text", HOSTILE[:-2])
def test_what_commands_print_is_plain(text, capsys):
    terminal.show(f"plan\n  note {text}")
    terminal.tell(f"warning: {text}\nnext")
    said = capsys.readouterr()
    assert acts(said.out, "\n\t") == []
    assert acts(said.err, "\n") == []
    assert said.err.count("\n") == 1


def test_the_line_of_progress_is_plain():
    class Screen(io.StringIO):
        def isatty(self):
            return True

    screen = Screen()
    progress = terminal.Progress(stream=screen)
    progress.say("reading \x1b[31mS2A\n\u202e")
    progress.clear()
    assert acts(screen.getvalue(), "\r") == []


def test_pages_show_what_they_do_not_obey():
    from pipeline.products.page.escaping import escape

    for text in HOSTILE:
        assert acts(escape(f"<b>{text}</b>"), "\n\t") == []
    assert escape("<b>\u202e") == "&lt;b&gt;\\u202e"


LOGS = """
import logging
logging.basicConfig(level=logging.DEBUG, format="%(message)s")
from pipeline.redaction import redact_logs
redact_logs()
logging.getLogger("other").warning("item %s", "\\x1b[31mred\\u202e")
raise ValueError("\\x1b]0;title\\x07")
"""


def test_logs_and_traces_are_plain():
    done = subprocess.run([sys.executable, "-c", LOGS], capture_output=True, text=True, check=False)
    assert "item \\x1b[31mred\\u202e" in done.stderr
    assert acts(done.stderr, "\n\t") == []
    assert logging.getLogRecordFactory() is not None
