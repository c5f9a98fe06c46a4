"""Progress fits its surroundings: a terminal, a notebook, or neither."""

import io
import logging
import sys
import types

from pipeline.api.progress import NotebookProgress, in_notebook, progress_of
from pipeline.running.unit_queue import Summary
from pipeline.terminal import Progress


class Shown:
    """A display of IPython, which keeps what it is told."""

    def __init__(self):
        self.said = []

    def __call__(self, content, *, raw, display_id):
        assert raw
        assert display_id
        self.said.append(content["text/plain"])
        return self

    def update(self, content, *, raw):
        assert raw
        self.said.append(content["text/plain"])


def kernel(display):
    """The modules of a Jupyter kernel."""
    python, shown = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    python.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    shown.display = display
    return {"IPython": python, "IPython.display": shown}


def test_in_a_notebook_one_line_is_updated(monkeypatch):
    display = Shown()
    for name, module in kernel(display).items():
        monkeypatch.setitem(sys.modules, name, module)
    assert in_notebook()
    with progress_of(shown=True) as progress:
        assert isinstance(progress, NotebookProgress)
        progress.say("searching")
        logging.getLogger("pipeline.running.driver").info("publishing", extra={"facts": {"stage": "publish"}})
        progress.units(Summary(units=4, resumed=1), 2)
    assert display.said == ["searching", "publishing", "units 1/4, 2 at work", ""]


def test_nothing_said_is_nothing_displayed():
    display = Shown()
    NotebookProgress(display).clear()
    assert display.said == []


def test_elsewhere_the_package_logs_and_the_user_decides(monkeypatch, caplog):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with caplog.at_level(logging.INFO, logger="pipeline"), progress_of(shown=True) as progress:
        logging.getLogger("pipeline.running.driver").info("publishing", extra={"facts": {"stage": "publish"}})
        progress.say("searching")
    assert [record.getMessage() for record in caplog.records] == ["publishing"]
    assert sys.stderr.getvalue() == ""


def test_in_a_terminal_it_is_the_line_of_the_command(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_of(shown=True) as progress:
        assert type(progress) is Progress
        progress.say("searching")
        assert "searching" in sys.stderr.getvalue()


def test_progress_may_be_silent(monkeypatch, caplog):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with caplog.at_level(logging.INFO, logger="pipeline"), progress_of(shown=False) as progress:
        progress.say("searching")
    assert not caplog.records
    assert sys.stderr.getvalue() == ""
