"""What a run leaves for the eye: rows, and sheets of samples."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import StorageError
from training.loop import log, savepoint
from training.loop.log import GAP_PX, LABEL_PX, Row, sheet, write_samples
from training.loop.task import Measured

ROW = Row(1.5, 0.25, 270, "mean", 7, 112, 3.2, 0.045, 1e-3, 0.25, {"x0": 0.1}, Measured("PSNR 30 dB", {"psnr": 30.0}))


def test_a_row_reads_well():
    assert ROW.line() == (
        "   1.5 min,  25%, 4 min left  mean     step      7       112 images    3.2/s,  4% waiting  lr 1.0e-03  "
        "loss 0.25000 (x0=0.1)  PSNR 30 dB"
    )
    assert ", 100%  mean" in replace(ROW, share=1.0, left_s=0.0).line()


def rows_of(folder):
    with (folder / log.LOG).open(newline="") as file:
        return list(csv.DictReader(file))


def test_columns_are_numbers_and_may_come_later(tmp_path):
    log.begin(tmp_path)
    log.add(tmp_path, ROW)
    log.add(tmp_path, replace(ROW, step=8, parts={}, measured=Measured("one", {"psnr": 31.0, "one": 29.5})))
    log.add(tmp_path, replace(ROW, step=9, parts={}, measured=Measured("", {})))
    rows = rows_of(tmp_path)
    assert tuple(rows[0]) == (*log.COLUMNS, "loss x0", "psnr", "one")
    assert [(row["step"], row["loss x0"], row["psnr"], row["one"]) for row in rows] == [
        ("7", "0.1", "30", ""), ("8", "", "31", "29.5"), ("9", "", "", ""),
    ]  # fmt: skip


def test_a_resumed_log_keeps_the_columns_that_it_had(tmp_path):
    log.begin(tmp_path)
    log.add(tmp_path, ROW)
    log.add(tmp_path, replace(ROW, step=8))
    log.begin(tmp_path / "on", tmp_path, step=7)
    log.add(tmp_path / "on", replace(ROW, step=8))
    assert [(row["step"], row["psnr"]) for row in rows_of(tmp_path / "on")] == [("7", "30"), ("8", "30")]


def test_a_sheet_is_stretched_by_truth_and_cut_to_the_smallest():
    ramp = torch.linspace(0.1, 0.2, 20).expand(3, 16, 20)
    rows = [{"ours": ramp + 0.1, "truth": ramp}, {"ours": ramp[:, :12], "truth": ramp[:, :12]}]
    pixels = sheet(rows)
    assert pixels.shape == (LABEL_PX + 2 * (12 + GAP_PX), 2 * (20 + GAP_PX), 3)
    first = pixels[LABEL_PX : LABEL_PX + 12]
    assert np.all(first[:, :19] == 255)  # brighter than the truth's brightest
    truth = first[:, 20 + GAP_PX : 40 + GAP_PX]
    assert truth[0, 0].tolist() == [0, 0, 0]
    assert truth[0, -1].tolist() == [255, 255, 255]
    assert (np.diff(truth[0, :, 0].astype(int)) >= 0).all()


def test_samples_are_labelled_files_named_by_their_step(tmp_path):
    path = write_samples(tmp_path, 42, [{"ours": torch.zeros(3, 40, 40), "truth": torch.rand(3, 40, 40)}])
    assert path.name == "0000042.png"
    with Image.open(path) as image:
        assert np.asarray(image)[:LABEL_PX].min() < 128  # text


def test_what_cannot_be_written_is_said_in_words(tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("a file where a folder is wanted")
    attempts = (
        lambda: log.begin(taken),
        lambda: log.add(taken, ROW),
        lambda: write_samples(taken, 1, [{"truth": torch.rand(3, 8, 8)}]),
        lambda: savepoint.write(taken, {}),
    )
    for attempt in attempts:
        with pytest.raises(StorageError, match="taken.* cannot be written .*cure"):
            attempt()
