"""`python -m pipeline.view` as users meet it: where the page goes, words, exit codes, and nothing half-written."""

import os

import pytest

from pipeline import view
from pipeline.store import files
from tests.products.stores import attributes, chunk_of, copied, make_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("view"), bands=("B02", "B03", "B04", "B08"))


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def call(capsys):
    """Run the command; (exit code, stdout, stderr)."""

    def run(*words):
        code = view.main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


def test_the_page_is_written_beside_the_store(store, tmp_path, call):
    path = copied(store, tmp_path)
    code, out, err = call(path)
    page = tmp_path / "copy.html"
    assert (code, err) == (0, "")
    assert out.startswith(f"{page}: 2024-06-")
    assert "0.922 km2 at 2.5 m" in out
    assert "numbers exact" in out
    assert "numbers exact; seen by the sensor, 99 % of the pixels within " in out
    assert page.read_bytes().startswith(b"<!DOCTYPE html>")


def test_out_names_the_file_and_a_page_of_ours_is_replaced(store, empty_folder, call):
    assert call(store, "--out", "a.html")[0] == 0
    first = (empty_folder / "a.html").read_bytes()
    (empty_folder / "a.html").write_bytes(first + b"<!-- old -->")
    assert call(store, "--out", "a.html")[0] == 0
    assert (empty_folder / "a.html").read_bytes() == first
    assert os.listdir(empty_folder) == ["a.html"]


def test_files_of_others_are_not_replaced_unless_asked(store, empty_folder, call):
    mine = empty_folder / "notes.html"
    mine.write_text("my notes")
    code, _, err = call(store, "--out", mine)
    assert code == 2
    assert "exists and is not a report page" in err
    assert mine.read_text() == "my notes"
    assert call(store, "--out", mine, "--overwrite")[0] == 0
    assert mine.read_bytes().startswith(b"<!DOCTYPE html>")
    code, _, err = call(store, "--out", empty_folder)
    assert (code, "is a folder" in err) == (2, True)


def test_a_folder_that_is_not_there_is_not_made(store, empty_folder, call):
    code, out, err = call(store, "--out", "new/a.html")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"--out new/a.html: there is no folder {empty_folder / 'new'}; expected one that exists" in err
    assert os.listdir(empty_folder) == []


def test_refusals_are_one_line_with_their_exit_code(store, tmp_path, empty_folder, call):
    damaged = copied(store, tmp_path)
    chunk = chunk_of(damaged, "reflectance")
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 0xFF
    chunk.write_bytes(bytes(content))
    cases = {
        2: [("nothing.zarr",), (store, "--time", "1999-01-01"), (store, "--zone", "utm1n"), (store, "--at", "200", "0"),
            (store, "--at", "-3.5", "40")],
        7: [(damaged,)],
    }  # fmt: skip
    for expected, calls in cases.items():
        for words in calls:
            code, out, err = call(*words, "--out", "p.html")
            assert (code, out) == (expected, ""), words
            assert err.startswith("error: ")
            assert err.count("\n") == 1
    assert os.listdir(empty_folder) == []


def test_a_full_disk_leaves_the_old_page(store, empty_folder, call, monkeypatch):
    assert call(store, "--out", "a.html")[0] == 0
    before = (empty_folder / "a.html").read_bytes()

    def full(path, content):
        path.write_bytes(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "put_file", full)
    code, _, err = call(store, "--out", "a.html")
    assert code == 6
    assert "no space left" in err
    assert (empty_folder / "a.html").read_bytes() == before
    assert os.listdir(empty_folder) == ["a.html"]


def test_incomplete_stores_have_a_page(store, tmp_path, call):
    path = copied(store, tmp_path)
    attributes(path, status="incomplete")
    assert call(path, "--out", "p.html")[0] == 0


def test_open_hands_the_page_to_the_browser(store, empty_folder, call, monkeypatch):
    opened = []
    monkeypatch.setattr(view.webbrowser, "open", opened.append)
    assert call(store, "--out", "a b.html", "--open")[0] == 0
    assert opened == [(empty_folder / "a b.html").as_uri()]


def test_pages_of_remote_stores_go_into_this_folder(empty_folder):
    arguments = view.parser().parse_args(["s3://bucket/some/lyon.zarr"])
    assert str(view.page_file(arguments)) == "lyon.html"
