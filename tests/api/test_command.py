"""The command `sen2fine`, and what all commands have in common."""

import argparse
import ast
import importlib

import pytest

from pipeline.api.command import COMMANDS, help_text, main
from pipeline.parsers import CommandParser, called_as
from pipeline.version import VERSION
from tests.api.conftest import ROOT, python


def modules_with_a_command():
    found = []
    for folder in ("pipeline", "training"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text()
            if "__main__" in text and "argv" in text + "arguments" and "Parser" in text:
                found.append(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return found


def test_every_command_has_a_name_under_sen2fine():
    assert {*modules_with_a_command()} - {"pipeline.start"} <= {module for module, _ in COMMANDS.values()}
    for module, _ in COMMANDS.values():
        assert callable(importlib.import_module(module).main)


@pytest.mark.parametrize("folder", ["pipeline", "training"])
def test_no_parser_takes_abbreviations(folder):
    """argparse's own class is the base of one class only, which all others use."""
    for path in (ROOT / folder).rglob("*.py"):
        if path.name == "parsers.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            made = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("ArgumentParser")
            based = isinstance(node, ast.ClassDef) and any("ArgumentParser" in ast.unparse(b) for b in node.bases)
            assert not made, f"{path}:{node.lineno}"
            assert not based, f"{path}:{node.lineno}"
    with pytest.raises(SystemExit):
        CommandParser("x").parse_args(["--versio"])


@pytest.mark.parametrize("word", COMMANDS)
def test_every_command_has_a_version_and_no_abbreviations(word, capsys):
    with pytest.raises(SystemExit) as ended:
        main([word, "--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"sen2fine {VERSION}\n"
    try:
        code = main([word, "--vers"])
    except SystemExit as error:
        code = error.code
    assert code == 2


@pytest.mark.parametrize("words", [["run", "--ov"], ["run", "--member", "3"], ["check", "x.zarr", "--rep"]])
def test_flags_that_would_have_been_completed(words, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        (["run", "--membrs", "3"], "did you mean --members?"),
        (["run", "--start", "2024-06-01", "--max_cloud=20"], "did you mean --max-cloud?"),
        (["check", "x.zarr", "--verfiy", "full"], "did you mean --verify?"),
        (["view", "x.zarr", "--zzzzzz"], "sen2fine view --help lists all flags"),
        (["check"], "sen2fine check --help lists all flags"),
        (["check", "x.zarr", "--verify", "most"], "sen2fine check --help lists all flags"),
    ],
)
def test_a_wrong_flag_is_one_line_with_the_nearest(words, cure, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.endswith(f"; cure: {cure}\n")
    assert err.count("\n") == 1


def test_help_lists_all_and_names_the_command(capsys):
    assert main([]) == main(["--help"]) == 0
    out = capsys.readouterr().out
    assert out == 2 * (help_text() + "\n")
    assert all(f"\n  {word} " in out for word in COMMANDS)
    with pytest.raises(SystemExit):
        main(["check", "--help"])
    assert capsys.readouterr().out.startswith("usage: sen2fine check ")
    importlib.import_module("pipeline.view").parser().print_usage()
    assert capsys.readouterr().out.startswith("usage: python -m pipeline.view ")


def test_an_unknown_command(capsys):
    assert main(["exprot"]) == 2
    assert capsys.readouterr().err.endswith("cure: did you mean export?\n")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sen2fine {VERSION}\n"


def test_exit_codes_are_those_of_the_commands(tmp_path, capsys):
    assert main(["check", str(tmp_path / "no.zarr")]) == 2
    assert "error:" in capsys.readouterr().err


def test_parsers_take_the_name_they_are_called_by():
    with called_as("sen2fine x"):
        assert CommandParser("python -m pipeline.x").prog == "sen2fine x"
    parser = CommandParser("python -m pipeline.x")
    assert parser.prog == "python -m pipeline.x"
    assert not isinstance(argparse.ArgumentParser("y"), CommandParser)


@pytest.mark.slow
def test_as_a_process_beside_files_of_the_same_names(tmp_path):
    (tmp_path / "pipeline.py").write_text("raise SystemExit(9)")
    (tmp_path / "training.py").write_text("raise SystemExit(9)")
    assert python("-m", "sen2fine", "train", "--version", cwd=tmp_path)[:2] == (0, f"sen2fine {VERSION}\n")
    assert python("-m", "sen2fine", "check", "no.zarr", cwd=tmp_path)[0] == 2
