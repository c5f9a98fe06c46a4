"""Checkpoints are written while training goes on, from a copy; what fails is told."""

import threading
from collections import OrderedDict

import pytest
import torch

from pipeline.errors import ReadError, StorageError
from training.loop import savepoint
from training.loop.savepoint import CHECKPOINT
from training.loop.writer import Writer, snapshot


@pytest.fixture
def held(monkeypatch):
    """A disk that writes only once the event is set."""
    event, write = threading.Event(), savepoint.write

    def slowly(folder, content):
        assert event.wait(60)
        write(folder, content)

    monkeypatch.setattr(savepoint, "write", slowly)
    yield event
    event.set()


def read(folder):
    return torch.load(folder / CHECKPOINT, weights_only=True)


def test_training_goes_on_and_the_file_holds_what_was_there_before(tmp_path, held):
    weights = torch.ones(3)
    with Writer() as writer:
        writer.begin(tmp_path, {"network": OrderedDict(a=weights), "at": {"step": 1}})
        weights += 1  # the next step
        writer.check()
        assert not (tmp_path / CHECKPOINT).exists()
        held.set()
    assert read(tmp_path)["network"]["a"].tolist() == [1, 1, 1]
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]


def test_checkpoints_are_written_in_order(tmp_path):
    with Writer() as writer:
        for step in range(5):
            writer.begin(tmp_path, {"at": step})
    assert read(tmp_path)["at"] == 4


def test_what_cannot_be_written_is_raised_at_the_next_step_or_the_end(tmp_path):
    (tmp_path / "taken").write_text("a file")
    writer = Writer()
    writer.begin(tmp_path / "taken" / "run", {})
    writer._thread.join()
    with pytest.raises(StorageError, match="cannot be written"):
        writer.check()
    writer.check()  # once is enough
    with pytest.raises(StorageError, match="cannot be written"), Writer() as writer:
        writer.begin(tmp_path / "taken" / "run", {})


def test_another_failure_is_told_first_and_still_leaves_a_whole_file(tmp_path, held):
    def fail():
        with Writer() as writer:
            writer.begin(tmp_path, {"at": 7})
            threading.Timer(0.1, held.set).start()
            raise ReadError("b.tif cannot be read")

    with pytest.raises(ReadError, match="b.tif"):
        fail()
    assert read(tmp_path)["at"] == 7


def test_a_copy_has_the_layout_of_files_and_keeps_the_kinds_of_containers():
    state = torch.nn.BatchNorm2d(2).state_dict()
    image = torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    copied = snapshot({"network": state, "image": image, "groups": [{"betas": (0.9, 0.99), "params": [0, 1]}]})
    assert type(copied["network"]) is type(state)
    assert copied["network"]._metadata == state._metadata
    assert copied["image"].is_contiguous()
    assert torch.equal(copied["image"], image)
    assert copied["groups"] == [{"betas": (0.9, 0.99), "params": [0, 1]}]
    copied["network"]["weight"].zero_()
    assert state["weight"].tolist() == [1, 1]
