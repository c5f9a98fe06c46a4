"""Every row of the fault matrix names tests that exist."""

import ast
from pathlib import Path

import pytest

from tests.faults.matrix import ROWS

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("test", sorted({test for row in ROWS for test in row.tests}))
def test_named_tests_exist(test):
    path, _, name = test.partition("::")
    tree = ast.parse((TESTS / path).read_text())
    names = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert not name or name.split("[")[0] in names, f"{path} has no {name}"
