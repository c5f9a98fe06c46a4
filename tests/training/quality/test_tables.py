"""Tables: means over sets, what is null and why, one CSV row per image and the statistics after them."""

import csv
import io
import math

import pytest

from pipeline.errors import StorageError
from training.quality.tables import (
    ALL_SETS,
    Record,
    Section,
    by_set,
    check_writable,
    csv_text,
    markdown,
    mean,
    methods_table,
    number,
    over_sets,
    spread,
    write_text,
)

RECORDS = [
    Record("quality", "town", "town/1", 0, "a", {"PSNR": 20.0, "LPIPS": None}, {"LPIPS": "no weights"}),
    Record("quality", "town", "town/2", 1, "a", {"PSNR": 30.0, "LPIPS": None}, {"LPIPS": "no weights"}),
    Record("quality", "sea", "sea/1", 2, "a", {"PSNR": 40.0, "LPIPS": None}, {"LPIPS": "no weights"}),
    Record("quality", "town", "town/1", 0, "b", {"PSNR": 21.0, "LPIPS": 0.5}),
]


def test_every_set_counts_once():
    assert by_set(RECORDS, "a", "PSNR") == {"town": 25.0, "sea": 40.0}
    assert over_sets(RECORDS, "a", "PSNR") == 32.5
    assert over_sets(RECORDS, "a", "LPIPS") is None
    assert over_sets(RECORDS, "c", "PSNR") is None


def test_unknown_values_do_not_count():
    assert mean([1.0, None, math.nan, 3.0]) == 2.0
    assert spread([1.0, None, 3.0]) == pytest.approx(math.sqrt(2))
    assert spread([1.0]) is None
    assert spread([1.0, math.inf]) is None


def test_numbers_and_null():
    assert number(1.2345, 1) == "1.2"
    assert number(None) == number(math.nan) == "null"
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"


def test_a_table_says_why_something_is_missing():
    table = methods_table(RECORDS, {"PSNR": 1, "LPIPS": 2})
    assert "| a | 32.5 | null |" in table
    assert "| b | 21.0 | 0.50 |" in table
    assert table.endswith("in LPIPS: no weights.")
    assert "null" not in methods_table(RECORDS, {"PSNR": 1})


def test_the_csv_holds_every_score_with_its_conditions():
    other = Record("real", "L2A", "L2A/1", 0, "a", {"spatial": 0.02})
    text = csv_text(
        [
            Section("x", "", RECORDS, "lite (a)", "lite-sr", "abc", "4 steps"),
            Section("y", "", [other], "lite (b)", "lite-sr", "abc"),
        ]
    )
    rows = list(csv.DictReader(io.StringIO(text)))
    values = [row for row in rows if row["statistic"] == "value"]
    assert len(values) == 5
    assert (values[0]["PSNR"], values[0]["LPIPS"], values[0]["spatial"]) == ("20", "null", "")
    assert values[0]["why_null"] == "LPIPS: no weights"
    assert (values[0]["digest"], values[0]["settings"], values[4]["spatial"]) == ("abc", "4 steps", "0.02")
    assert {row["name"] for row in rows if row["table"] == "real"} == {"lite (b)"}
    found = {(row["table"], row["set"], row["method"], row["statistic"]): row["PSNR"] for row in rows}
    assert found["quality", "town", "a", "mean"] == "25"
    assert float(found["quality", "town", "a", "sd"]) == pytest.approx(math.sqrt(50), rel=1e-5)
    assert found["quality", ALL_SETS, "a", "mean"] == "32.5"
    assert found["quality", "sea", "a", "sd"] == "null"


def test_whether_a_file_can_be_written_is_asked_without_a_trace(tmp_path):
    check_writable(tmp_path / "new" / "deep" / "table.md")
    assert not (tmp_path / "new").exists()
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StorageError, match=r"deep/table\.md cannot be written"):
        check_writable(tmp_path / "taken" / "deep" / "table.md")
    with pytest.raises(StorageError, match="is a folder; expected a file to write"):
        check_writable(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_files_are_written_whole_or_not_at_all(tmp_path):
    write_text(tmp_path / "deep" / "table.md", "text")
    assert (tmp_path / "deep" / "table.md").read_text() == "text"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["table.md"]
    with pytest.raises(StorageError, match="cannot be written"):
        write_text(tmp_path / "deep" / "table.md" / "below.md", "text")
