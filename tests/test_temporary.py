"""Working folders: gone at the end, held while their process lives, removed after a kill by the next."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.archive.stack import Stack, split_stack
from pipeline.errors import StorageError, UsageError
from pipeline.temporary import remove_leftovers, require_parent, working_folder


def killed(parent, prefix):
    """The folder that a process leaves which is killed at work."""
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from pipeline.temporary import working_folder\n"
        "with working_folder(Path(sys.argv[1]), sys.argv[2]) as folder:\n"
        "    (folder / 'below').mkdir()\n"
        "    (folder / 'below' / 'file').write_text('x')\n"
        "    print(folder, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(parent), prefix], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    return done.stdout.strip()


def test_an_output_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="file is not a folder"):
        require_parent(tmp_path / "file" / "run.zarr")


def test_an_output_that_cannot_be_reached_is_one_line(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", denied)
    with pytest.raises(StorageError, match=r"--out .* cannot be reached \(Permission denied\)"):
        require_parent(tmp_path / "run.zarr")


def test_an_output_needs_a_folder_that_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    require_parent(Path("a.html"))
    require_parent(tmp_path / "new")
    for write in (require_parent, lambda out: split_stack(Stack(Path("a.tif"), ("B02",), ("2024-06-17",)), out)):
        with pytest.raises(UsageError) as caught:
            write(Path("my tifs/b/c"))
        found = f"--out my tifs/b/c: there is no folder {tmp_path}/my tifs/b; expected one that exists, to write into"
        assert str(caught.value) == f"{found}; cure: mkdir -p '{tmp_path}/my tifs/b', if the name is right"
    assert list(tmp_path.iterdir()) == []


def test_it_goes_at_the_end_and_with_an_error(tmp_path):
    with working_folder(tmp_path, ".a-") as folder:
        (folder / "file").write_text("x")
        assert folder.parent == tmp_path
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), working_folder(tmp_path, ".a-"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_and_all_else_stays(tmp_path):
    left = [killed(tmp_path, ".[a]-") for _ in range(2)]
    other = killed(tmp_path, ".b-")
    (tmp_path / ".[a]-empty").mkdir()  # killed before it had a lock
    mine = tmp_path / ".[a]-mine"
    mine.mkdir()
    (mine / "thesis").write_text("x")
    (tmp_path / ".[a]-file").write_text("x")
    (tmp_path / ".[a]-link").symlink_to(mine)
    with working_folder(tmp_path, ".[a]-") as folder, working_folder(tmp_path, ".[a]-") as second:
        assert folder.is_dir()
        assert second.is_dir()
        assert not any(os.path.exists(path) for path in left)
    assert os.path.exists(other)
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".[a]")} == {
        mine.name, ".[a]-file", ".[a]-link",
    }  # fmt: skip
    assert (mine / "thesis").read_text() == "x"


def test_without_locks_leftovers_stay(tmp_path, monkeypatch):
    left = killed(tmp_path, ".a-")

    def none(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    assert remove_leftovers(tmp_path, ".a-") == 0
    with working_folder(tmp_path, ".a-") as folder:
        assert folder.is_dir()
    assert [str(path) for path in tmp_path.iterdir()] == [left]


def test_a_folder_removed_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    real, seen = fcntl.flock, []

    def late(file, how):
        if not seen:
            seen.extend(tmp_path.iterdir())
            shutil.rmtree(seen[0])  # as another process that was quicker does
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with working_folder(tmp_path, ".a-") as folder:
        assert (folder / "sen2fine.lock").exists()
        assert folder != seen[0]


@pytest.mark.parametrize("content", ["", "thesis", '{"type": "FeatureCollection", "features": []}'])
def test_a_file_that_does_not_name_this_software_is_not_replaced(tmp_path, content):
    from pipeline.archive.stac.index_file import write_index
    from pipeline.errors import UsageError

    path = tmp_path / "archive.json"
    write_index((), tmp_path / "new.json")
    path.write_text(content)
    with pytest.raises(UsageError, match="was not written by sen2fine"):
        write_index((), path)
    assert path.read_text() == content
    path.write_text('{"sen2fine:offset_dn": 0}')
    write_index((), path)
    assert "FeatureCollection" in path.read_text()
