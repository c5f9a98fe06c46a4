"""The flags of all commands: one meaning each, and help with defaults, examples, costs and exit codes."""

import argparse
import importlib
import os
import re
from collections import defaultdict

import pytest

from pipeline.help_text import exit_codes

PIPELINE = {
    **{name: f"pipeline.{name}" for name in ("check", "export", "index", "submit", "view")},
    "run": "pipeline.arguments",
    "stack": "pipeline.archive.stack",
}
TRAINING = {
    "train": "training.arguments",
    **{name: f"training.{name}" for name in ("convert", "evaluate", "feed", "harmonise", "staged", "triplets")},
}
# What a flag means wherever it is given. A flag that a second command takes needs a line here.
MEANINGS = {
    "--bands": "names of bands, comma-separated",
    "--bbox": "W,S,E,N in degrees",
    "--composite": "how passes become time steps",
    "--data": "training file",
    "--device": "torch device",
    "--dry-run": "say what would be done, and stop",
    "--every": "seconds between two messages",
    "--images": "budget in images",
    "--init": "weights to start from",
    "--json": "one JSON object on stdout instead of words",
    "--licence": "licence of what is written",
    "--members": "number of draws",
    "--minutes": "budget in minutes",
    "--offset": "BOA offset of all scenes in DN",
    "--out": "what to write",
    "--overwrite": "replace what is there",
    "--parts": "parts of an array",
    "--preset": "recipes of training",
    "--quiet": "no progress line; warnings and the report alone",
    "--log-format": "log lines on stderr instead of a progress line",
    "--scale": "fine pixels along one side of a coarse one",
    "--seed": "seed of all chance",
    "--threads": "torch threads on a CPU",
    "--time": "time steps: dates, months or indexes",
    "--verify": "how closely finished units are checked",
    "--workers": "number of worker processes",
}
SERIES = {("feed", "--workers"), ("staged", "--minutes"), ("staged", "--images")}  # several values, one after the other
# What submit and staged take over from another parser is the same flag, not a second one.
TAKEN_OVER = {"submit": "run", "staged": "train"}


def parser_of(command):
    return importlib.import_module({**PIPELINE, **TRAINING}[command]).parser()


def flags_of(command):
    """{flag: action} without what help does not show."""
    shown = (action for action in parser_of(command)._actions if action.help != argparse.SUPPRESS)
    return {flag: action for action in shown for flag in action.option_strings if flag not in ("-h", "--help")}


def kind_of(action):
    if action.nargs == 0:
        return "switch"
    try:
        value = action.type("2") if callable(action.type) else "2"
    except Exception:
        value = "2"
    return "number" if isinstance(value, int | float) else "text"


def test_a_flag_has_one_meaning_in_all_commands():
    found = defaultdict(dict)
    for command in {**PIPELINE, **TRAINING}:
        for flag, action in flags_of(command).items():
            found[flag][command] = action
    shared = {}
    for flag, actions in found.items():
        own = {
            command: action
            for command, action in actions.items()
            if TAKEN_OVER.get(command) not in actions or action.help != actions[TAKEN_OVER[command]].help
        }
        if len(own) > 1 and flag != "--version":
            shared[flag] = own
    assert shared.keys() <= MEANINGS.keys(), "say what it means everywhere, or name it otherwise"
    for flag, actions in shared.items():
        kinds = {kind_of(action) for command, action in actions.items() if (command, flag) not in SERIES}
        assert len(kinds) == 1, (flag, kinds)


@pytest.mark.parametrize("command", [name for name in PIPELINE if name != "stack"])
def test_help_is_in_groups_with_examples_defaults_and_exit_codes(command):
    p = parser_of(command)
    groups = [group for group in p._action_groups[2:] if group._group_actions]
    assert groups
    for group in groups:
        assert re.match(r"example: ", group.description or ""), group.title
        words = re.findall(r"(?<!\S)--[a-z][\w-]*", group.description)
        assert words, group.title
        there = {*flags_of(command), "--partition", "--account"}
        assert set(words) <= there, "examples use flags that there are"
    assert p.epilog.startswith("exit codes:\n  0 ")
    assert exit_codes().startswith("exit codes:\n  0 ")
    for flag, action in flags_of(command).items():
        told = action.default in (None, False, "", 0, argparse.SUPPRESS) or "default" in action.help
        assert told, f"{flag} has the default {action.default}"


def test_costs_are_told_where_they_matter():
    flags = flags_of("run")
    for flag, said in {
        "--members": "N times as long",
        "--estimate": "at their cost",
        "--composite": "reads every scene",
        "--verify": "reads every byte back",
        "--unit-chunks": "more memory",
        "--chunk-px": "more objects",
        "--shard": "a sixteenth as many objects",
    }.items():
        assert said in flags[flag].help, flag


def test_exit_codes_are_those_of_the_page_on_deploying():
    from tests.conftest import REPOSITORY

    readme = (REPOSITORY / "deploy" / "README.md").read_text()
    rows = re.findall(r"^\| (\d+) \|", readme, re.MULTILINE)
    assert re.findall(r"^  (\d+)", exit_codes(), re.MULTILINE) == rows


@pytest.mark.parametrize("command", [*PIPELINE, *TRAINING])
def test_help_is_the_same_on_every_machine(command, monkeypatch, tmp_path):
    """Not the folders, the processors or the memory of the machine that prints it."""
    pages = []
    for count, folder in ((1, "/one/data"), (96, "/other/data")):
        monkeypatch.setenv("SEN2FINE_DATA", folder)
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid, count=count: set(range(count)), raising=False)
        monkeypatch.chdir(tmp_path)
        pages.append(parser_of(command).format_help())
    assert pages[0] == pages[1]
    assert str(tmp_path) not in pages[0]


@pytest.mark.parametrize(
    ("command", "words", "name", "value"),
    [
        ("submit", ["--target", "slurm", "--time", "04:00:00"], "time_limit", "04:00:00"),
        ("submit", ["--target", "slurm", "--time-limit", "04:00:00"], "time_limit", "04:00:00"),
        ("train", ["--bands", "6"], "bands", 6),
        ("train", ["--band-set", "6"], "bands", 6),
    ],
)
def test_spellings_that_were_documented_still_work(command, words, name, value):
    assert getattr(parser_of(command).parse_args(words), name) == value
