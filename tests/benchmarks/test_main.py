"""The benchmarks' command, with cases that take seconds."""

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


def benchmarks(*words):
    command = [sys.executable, "-m", "tests.benchmarks", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)


@pytest.mark.slow
def test_cases_give_the_same_rows_alone_and_together(tmp_path):
    """Together they run in processes of their own, so that the peak memory of one is not that of the others."""
    alone = benchmarks("--only", "factors")
    both = benchmarks("--only", "factors", "opening", "--out", tmp_path / "table.md")
    assert (alone.returncode, both.returncode) == (0, 0), alone.stderr + both.stderr
    *expected, opening = both.stdout.splitlines()
    assert alone.stdout.splitlines() == expected
    assert len(expected) > 4
    assert opening.startswith("| opening a store of 10000 chunks | ")
    assert (tmp_path / "table.md").read_text() == both.stdout


@pytest.mark.slow
def test_a_case_that_fails_ends_the_command():
    done = benchmarks("--only", "opening", "area25", "--sr", "no-such-system")
    assert done.returncode != 0
    assert "no-such-system" in done.stderr
    assert "| opening a store" in done.stdout
