"""Every row of the fault matrix names tests that exist."""

import ast
from pathlib import Path

import pytest

from tests.faults.matrix import ROWS

TESTS = Path(__file__).resolve().parents[1]


NAMED = [test for row in ROWS for test in row.tests]


@pytest.mark.parametrize("test", sorted(set(NAMED)))
def test_named_tests_exist(test):
    path, *names = test.split("[")[0].split("::")
    inside = ast.parse((TESTS / path).read_text()).body
    for name in names:
        found = [node for node in inside if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name]
        assert found, f"{path} has no {name}"
        inside = found[0].body


def test_the_table_has_every_row():
    table = (TESTS / "faults" / "README.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table if line.startswith("| ")][1:] == [row.fault for row in ROWS]


def test_no_test_stands_for_two_rows():
    assert len(set(NAMED)) == len(NAMED)
    for test in NAMED:
        assert not [other for other in NAMED if other.startswith((f"{test}::", f"{test}["))], test
