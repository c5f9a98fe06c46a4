"""Logs and traces of a process without secrets, whichever logger or handler writes them."""

import io
import logging
import subprocess
import sys

import pytest

from pipeline.redaction import redact_logs

SECRET = "CANARY0123456789"
ADDRESS = f"https://host.example/a.tif?sig={SECRET}"


@pytest.fixture
def written():
    """A logger with a handler of its own that hands nothing on, as `distributed` has, and what it wrote."""
    before, text = logging.getLogRecordFactory(), io.StringIO()
    logger, handler = logging.getLogger("tests.redaction"), logging.StreamHandler(text)
    logger.propagate = False
    logger.addHandler(handler)
    redact_logs()
    yield logger, text
    logger.removeHandler(handler)
    logger.propagate = True
    logging.setLogRecordFactory(before)


def test_texts_and_arguments_are_redacted(written):
    logger, text = written
    logger.error("read %s in %d tries", ADDRESS, 3)
    logger.error(f"read {ADDRESS}")
    logger.error({"href": ADDRESS})
    assert SECRET not in text.getvalue()
    assert text.getvalue().count("https://host.example/a.tif?[redacted]") == 3
    assert "in 3 tries" in text.getvalue()


def test_arguments_that_do_not_fit_are_redacted_too(written):
    logger, text = written
    logger.error("%d tries", ADDRESS)
    assert text.getvalue() == "%d tries ('https://host.example/a.tif?[redacted]',)\n"


def test_traces_are_redacted_with_all_causes(written):
    logger, text = written
    try:
        try:
            raise OSError(ADDRESS)
        except OSError as error:
            raise RuntimeError(f"token={SECRET}") from error
    except RuntimeError:
        logger.exception("it failed")
    assert SECRET not in text.getvalue()
    assert "OSError: https://host.example/a.tif?[redacted]" in text.getvalue()
    assert "RuntimeError: token=[redacted]" in text.getvalue()


def test_what_holds_no_secret_stays_as_it_is_said(written):
    logger, text = written
    logger.error("100 %% of %s", "pixels")
    logger.error("100 % done")
    logger.error("%s", "a%sb")
    assert text.getvalue() == "100 % of pixels\n100 % done\na%sb\n"


def test_again_is_the_same_as_once(written):
    factory = logging.getLogRecordFactory()
    redact_logs()
    assert logging.getLogRecordFactory() is factory


@pytest.mark.parametrize("where", ["process", "thread"])
def test_the_last_words_of_a_process_or_thread_are_redacted(where):
    code = "from pipeline.redaction import redact_logs\nredact_logs()\n"
    code += f"def fail():\n    raise OSError({ADDRESS!r})\n"
    thread = "import threading\nt = threading.Thread(target=fail)\nt.start()\nt.join()"
    code += "fail()" if where == "process" else thread
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "OSError: https://host.example/a.tif?[redacted]" in done.stderr
    assert "Traceback" in done.stderr
    # the line of the source is the text of the program itself
    assert SECRET not in "\n".join(line for line in done.stderr.splitlines() if "raise" not in line)
