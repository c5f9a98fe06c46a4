"""`python -m tests.faults [--out FILE]`: run the fault suite and write its table (fault, injected, expected, seen)."""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import pytest

from tests.faults.matrix import ROWS

TESTS = Path(__file__).resolve().parents[1]


class Seen:
    """Outcomes and seconds by node id below tests/."""

    def __init__(self):
        self.outcome, self.seconds = {}, {}

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.removeprefix("tests/")
        self.seconds[name] = self.seconds.get(name, 0.0) + report.duration
        if report.when == "call" or report.outcome != "passed":
            self.outcome[name] = report.outcome

    def of(self, test):
        """(passed, others, seconds) of all tests that a row's entry names."""
        mine = [name for name in self.outcome if name == test or name.startswith((f"{test}[", f"{test}::"))]
        passed = sum(self.outcome[name] == "passed" for name in mine)
        return passed, [name for name in mine if self.outcome[name] != "passed"], sum(self.seconds[n] for n in mine)


def cpu_s():
    """Seconds of processors, of this process and of those it started and that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def table(seen, took_s, worked_s):
    """Markdown."""
    lines = [
        "# Faults",
        "",
        "What is done to a run on purpose, and what was seen. Written by `python -m tests.faults --out FILE`; every",
        "row is tests that CI runs.",
        "",
        "| fault | injected | expected | seen | seconds |",
        "|---|---|---|---|---|",
    ]
    for row in ROWS:
        parts = [seen.of(test) for test in row.tests]
        passed, failed = sum(part[0] for part in parts), [name for part in parts for name in part[1]]
        word = f"as expected ({passed} {'test' if passed == 1 else 'tests'})" if passed and not failed else "FAILED"
        lines.append(
            f"| {row.fault} | {row.injected} | {row.expected} | {word} | {sum(part[2] for part in parts):.1f} |"
        )
    end = f"{len(ROWS)} faults, {took_s:.0f} s on the machine that wrote this; {worked_s:.0f} s of its processors."
    return "\n".join([*lines, "", end]) + "\n"


def main():
    """Run the suite; returns pytest's exit code."""
    parser = argparse.ArgumentParser("python -m tests.faults", description=__doc__)
    parser.add_argument("--out", type=Path, help="write the table here as well")
    arguments = parser.parse_args()
    seen, started = Seen(), time.monotonic()
    wanted = sorted({str(TESTS / test) for row in ROWS for test in row.tests})
    code = pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", str(TESTS.parent), *wanted], plugins=[seen])
    text = table(seen, time.monotonic() - started, cpu_s())
    print(text)
    if arguments.out:
        arguments.out.write_text(text)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
