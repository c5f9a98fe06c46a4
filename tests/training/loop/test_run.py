"""The training loop: stages, log, and checkpoints that resume as if nothing had happened."""

import csv
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from pipeline.errors import Interrupted, StorageError, UsageError
from training import placement
from training.loop import savepoint
from training.loop.execution import Execution
from training.loop.log import COLUMNS, LOG, SAMPLES
from training.loop.run import Budget, Diverged, Run
from training.loop.savepoint import CHECKPOINT
from training.loop.task import Measured, Objective
from training.presets import Preset, Stage

PRESET = Preset(
    name="toy",
    task="sr",
    architecture={},
    stages=(Stage("first", 0.5, ("a.",), 0.05), Stage("second", 0.5, ("b.",), 0.05)),
    minutes=1,
    batch=4,
    ema=0.9,
    warmup_steps=2,
)


class Toy:
    """Fits y = 3 x - 2 with two layers, one per stage; data and noise come from the draw."""

    def __init__(self):
        torch.manual_seed(0)
        self.network = nn.Module()
        self.network.a, self.network.b = nn.Linear(1, 4), nn.Linear(4, 1)
        self.began = []
        self.losses = []
        self.finished = False

    def batch(self, draw):
        x = torch.from_numpy(draw.rng.normal(size=(PRESET.batch, 1))).float()
        return {"x": x, "y": 3 * x - 2 + 0.01 * torch.randn(x.shape, generator=draw.torch)}

    def begin(self, stage, draw):
        self.began.append(stage.name)

    def loss(self, stage, batch, draw):
        shaken = batch["y"] + 0.01 * torch.randn(batch["y"].shape, generator=draw.torch)
        loss = (self.network.b(self.network.a(batch["x"])) - shaken).square().mean()
        self.losses.append(float(loss.detach()))
        return loss

    def finish(self):
        self.finished = True

    def validate(self, stage):
        assert not self.network.training
        return Measured(stage.name, {"score": 1.5})


class Rich(Toy):
    """The same with named parts, a companion that counts steps, and samples."""

    def __init__(self):
        super().__init__()
        self.companion = nn.Module()
        self.companion.register_buffer("seen", torch.zeros(1))

    def loss(self, stage, batch, draw):
        self.companion.seen += len(batch["x"])
        loss = super().loss(stage, batch, draw)
        return Objective(loss, {"fit": 2 * loss, "seen": self.companion.seen[0]})

    def samples(self, stage):
        return [{"ours": torch.full((3, 8, 10), 0.1), "truth": torch.rand(3, 8, 10)} for _ in range(2)]


def run_of(folder, images, task=None, **options):
    return Run(task or Toy(), PRESET, Budget(images=images), folder, seed=3, **options)


def rows_of(folder):
    with (folder / LOG).open(newline="") as file:
        return list(csv.DictReader(file))


def test_stages_train_only_their_parameters_and_begin_once(tmp_path):
    task = Toy()
    before = {name: value.clone() for name, value in task.network.state_dict().items()}
    run = run_of(tmp_path, 80, task)
    run.train(until_images=36, every_s=1e9)
    assert torch.equal(task.network.b.weight, before["b.weight"])
    assert not torch.equal(task.network.a.weight, before["a.weight"])
    middle = task.network.a.weight.clone()
    assert not task.finished
    run = run_of(tmp_path, 80, Toy())
    run.resume(tmp_path)
    run.train(every_s=1e9)
    assert run.task.began == ["second"]
    assert run.task.finished
    assert run.at.images == 80
    assert not torch.equal(run.task.network.b.weight, before["b.weight"])
    assert torch.allclose(run.task.network.a.weight, middle, atol=0.1)


def test_an_interrupted_run_equals_an_uninterrupted_one(tmp_path):
    whole = run_of(tmp_path / "whole", 80)
    whole.train(every_s=1e9)
    part = run_of(tmp_path / "part", 80)
    part.train(until_images=28, every_s=1e9)
    again = Run(Toy(), PRESET, Budget(images=80), tmp_path / "part", seed=99)  # the checkpoint's seed counts
    again.resume(tmp_path / "part")
    again.train(every_s=1e9)
    assert again.at.step == whole.at.step
    assert part.task.losses + again.task.losses == whole.task.losses
    for name, value in whole.task.network.state_dict().items():
        assert torch.equal(value, again.task.network.state_dict()[name]), name


def test_worker_processes_change_nothing(tmp_path):
    runs = [run_of(tmp_path / str(workers), 80, execution=Execution(workers=workers)) for workers in (0, 2)]
    for run in runs:
        run.train(every_s=1e9)
    assert runs[0].task.losses == runs[1].task.losses
    assert len(set(runs[0].task.losses)) == 20


def test_losses_follow_the_seed(tmp_path):
    losses = []
    for seed in (3, 3, 4):
        task = Toy()
        Run(task, PRESET, Budget(images=400), tmp_path, seed).train(every_s=1e9)
        losses.append(task.losses)
    assert len(losses[0]) == 100
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[2][0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stopped_run_ends_its_step_and_resumes_there(tmp_path, workers):
    whole = run_of(tmp_path / "whole", 80)
    whole.train(every_s=1e9)
    part, asked = run_of(tmp_path / "part", 80, execution=Execution(workers=workers)), iter([False, False, True])
    with pytest.raises(
        Interrupted, match=r"stopped after step 3, 12 images; cure: .*--resume .*part goes on there"
    ) as e:
        part.train(every_s=1e9, stop=lambda: next(asked))
    assert e.value.exit_code == 75
    assert rows_of(tmp_path / "part") == []
    again = run_of(tmp_path / "part", 80)
    again.resume(tmp_path / "part")
    again.train(every_s=1e9)
    assert part.task.losses + again.task.losses == whole.task.losses
    last = run_of(tmp_path / "last", 12)
    last.train(every_s=1e9, stop=lambda: last.at.images >= 8)  # asked in its last step: it has ended anyway
    assert last.at.images == 12


def test_a_companion_resumes_with_the_run(tmp_path):
    run_of(tmp_path, 80, Rich()).train(until_images=28, every_s=1e9)
    again = run_of(tmp_path, 80, Rich())
    again.resume(tmp_path)
    assert again.task.companion.seen.item() == 28
    assert not any("seen" in name for name in again.average.state)


def test_training_reduces_the_loss_and_reports(tmp_path):
    task, lines = Toy(), []
    run = Run(task, PRESET, Budget(images=1600), tmp_path, seed=3)
    run.train(say=lines.append, every_s=0.0)
    x = torch.linspace(-1, 1, 9)[:, None]
    assert (task.network.b(task.network.a(x)) - (3 * x - 2)).abs().max() < 0.5
    assert len(lines) == 400
    assert "second" in lines[-1]
    assert "1600 images" in lines[-1]
    assert "% waiting" in lines[-1]


class Slow(Toy):
    """Each step lasts 10 ms and each validation 200 ms."""

    def loss(self, stage, batch, draw):
        time.sleep(0.01)
        return super().loss(stage, batch, draw)

    def validate(self, stage):
        time.sleep(0.2)
        return super().validate(stage)


def test_slow_scores_come_less_often_than_checkpoints(tmp_path):
    lines, written, run = [], [], run_of(tmp_path, 80, Slow())
    begin = run.writer.begin
    run.writer.begin = lambda *given: (written.append(given), begin(*given))
    run.train(say=lines.append, every_s=0.02)
    assert 2 * len(lines) < len(written)  # two lines where no step lasts longer than it should


def test_images_per_second_count_what_the_device_has_still_to_compute(tmp_path, monkeypatch):
    """A GPU is handed work and computes it later: here 0.3 s of it when the interval ends."""
    monkeypatch.setattr(placement, "settle", lambda device: time.sleep(0.3))
    run = run_of(tmp_path, 40)
    run.train(every_s=1e9)
    row = rows_of(tmp_path)[-1]
    assert float(row["images_per_s"]) < 40 / 0.3
    assert float(row["waiting"]) < 1
    run = run_of(tmp_path / "often", 8)
    run.train(every_s=0.0)
    assert run.at.elapsed_s > 0.3  # what is found after one step is counted with the next


def test_a_full_disk_ends_the_run_at_the_next_step(tmp_path, monkeypatch):
    def full(folder, content):
        raise StorageError("no space left on device")

    monkeypatch.setattr(savepoint, "write", full)
    run = run_of(tmp_path, 80)
    with pytest.raises(StorageError, match="no space left"):
        run.train(every_s=0.0)
    assert run.at.step <= 2


def test_a_run_shorter_than_an_interval_reports_when_it_ends(tmp_path):
    lines = []
    run_of(tmp_path, 80, Rich()).train(say=lines.append, every_s=1e9)
    (line,) = lines
    assert "step     20        80 images" in line
    assert [row["images"] for row in rows_of(tmp_path)] == ["80"]
    assert [path.name for path in (tmp_path / SAMPLES).iterdir()] == ["0000020.png"]


def test_the_log_has_a_row_per_line_and_continues(tmp_path):
    said = []
    run_of(tmp_path, 80, Rich()).train(say=said.append, every_s=0.0, until_images=24)
    torch.save({**torch.load(tmp_path / CHECKPOINT, weights_only=True)}, tmp_path / "older")
    run_of(tmp_path, 80, Rich()).train(say=said.append, every_s=0.0, until_images=40)
    (tmp_path / "older").replace(tmp_path / CHECKPOINT)  # as if it had been killed before it could write another
    again = run_of(tmp_path, 80, Rich())
    again.resume(tmp_path)
    again.train(say=said.append, every_s=0.0)
    rows = rows_of(tmp_path)
    assert tuple(rows[0]) == (*COLUMNS, "loss fit", "loss seen", "score")
    assert [int(row["step"]) for row in rows] == list(range(1, 21))
    assert [int(row["images"]) for row in rows] == list(range(4, 84, 4))
    assert rows[0]["stage"], rows[-1]["stage"] == ("first", "second")
    assert float(rows[5]["learning_rate"]) > 0
    assert 0 <= float(rows[5]["waiting"]) <= 1
    assert float(rows[5]["loss fit"]) == pytest.approx(2 * float(rows[5]["loss"]), rel=1e-2)
    assert float(rows[5]["score"]) == 1.5
    assert float(rows[9]["share"]) == 0.5
    assert (tmp_path / LOG).read_text().count("minutes") == 1


def test_samples_are_written_where_a_task_shows_them(tmp_path):
    from PIL import Image

    run_of(tmp_path, 12, Rich()).train(say=lambda line: None, every_s=0.0)
    files = sorted((tmp_path / SAMPLES).iterdir())
    assert [path.name for path in files] == ["0000001.png", "0000002.png", "0000003.png"]
    with Image.open(files[0]) as image:
        assert image.size == (2 * 14, 12 + 2 * 12)


def test_a_loss_of_nan_stops_and_spares_the_checkpoint(tmp_path):
    run = run_of(tmp_path, 80)
    run.train(until_images=20, every_s=1e9)
    good = (tmp_path / CHECKPOINT).read_bytes()

    class Broken(Toy):
        def loss(self, stage, batch, draw):
            return super().loss(stage, batch, draw) * float("nan")

    again = run_of(tmp_path, 80, Broken())
    again.resume(tmp_path)
    with pytest.raises(Diverged, match="cure"):
        again.train(every_s=1e9)
    assert (tmp_path / CHECKPOINT).read_bytes() == good


def refused(folder, preset=PRESET):
    run = Run(Toy(), preset, Budget(images=80), folder, seed=3)
    with pytest.raises(UsageError) as caught:
        run.resume(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_foreign_checkpoints_are_refused_in_one_line(tmp_path):
    assert f"no {CHECKPOINT}" in refused(tmp_path)
    run_of(tmp_path, 80).train(until_images=8, every_s=1e9)
    assert "of preset toy" in refused(tmp_path, replace(PRESET, name="other"))
    assert "ema = 0.9;" in refused(tmp_path, replace(PRESET, ema=0.5))
    run_of(tmp_path, 80).resume(tmp_path)
    Run(Toy(), replace(PRESET, minutes=5), Budget(minutes=5), tmp_path, seed=3).resume(tmp_path)  # longer: fine
    Run(Toy(), replace(PRESET, sampler={"steps": 3}), Budget(images=80), tmp_path, seed=3).resume(tmp_path)  # later
    content = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    content["network"]["a.weight"] = torch.zeros(7, 7)
    torch.save(content, tmp_path / CHECKPOINT)
    assert "does not fit the network" in refused(tmp_path)


@pytest.mark.parametrize("how", ["cut", "garbage", "empty", "foreign", "pickle"])
def test_damaged_and_foreign_checkpoints_are_refused_in_one_line(tmp_path, how):
    run_of(tmp_path, 80).train(until_images=8, every_s=1e9)
    path = tmp_path / CHECKPOINT
    whole = path.read_bytes()
    if how == "foreign":
        torch.save({"state_dict": {"weight": torch.zeros(2)}}, path)
    elif how == "pickle":
        torch.save({"network": Toy}, path)  # code: must not be executed
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "garbage": b"not a checkpoint\n" * 9, "empty": b""}[how])
    assert str(path) in refused(tmp_path)


def test_checkpoints_say_what_they_are_and_leave_no_partial_file(tmp_path):
    run_of(tmp_path, 80).train(until_images=8, every_s=1e9)
    content = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert (content["preset"], content["seed"]) == ("toy", 3)
    assert '"ema": 0.9' in content["config"]
    assert {path.name for path in tmp_path.iterdir()} == {CHECKPOINT, LOG}


def test_learning_rate_warms_up_and_falls(tmp_path):
    run = run_of(tmp_path, 80)
    assert run._rate() == pytest.approx(1 / 2)
    run.at.stage_step, run.at.images = 10, 20
    assert run._rate() == pytest.approx(0.51)
    run.at.images = 40
    assert run._rate() == pytest.approx(0.02)
    run.optimisers.scale_rates(0.51)
    assert run.optimisers.rate == pytest.approx(0.05 * 0.51)


def test_budget_counts_minutes_or_images():
    assert Budget(minutes=2).progress(60, 10**9) == 0.5
    assert Budget(images=200).progress(10**9, 50) == 0.25
    assert Budget(minutes=1).progress(600, 0) == 1.0


def rates(folder, stage):
    return [float(row["learning_rate"]) for row in rows_of(folder) if row["stage"] == stage]


def test_a_finished_run_with_more_budget_trains_every_stage_again(tmp_path):
    run_of(tmp_path, 80).train(say=list, every_s=0.0)
    assert len(rows_of(tmp_path)) == 20
    again = run_of(tmp_path, 160)
    again.resume(tmp_path)
    assert (again.before, again.extending, again.at.extended) == (Budget(images=80), True, 1)
    before = {name: value.clone() for name, value in again.task.network.state_dict().items()}
    again.train(say=list, every_s=0.0)
    assert again.task.began == ["first", "second"]
    assert [row["stage"] for row in rows_of(tmp_path)] == (["first"] * 10 + ["second"] * 10) * 2
    for stage in ("first", "second"):
        once, more = rates(tmp_path, stage)[:10], rates(tmp_path, stage)[10:]
        assert once == more, "warm-up and schedule as in the first round"
    assert not torch.equal(again.task.network.a.weight, before["a.weight"])
    assert [(one.stage, one.first_image, one.end_image) for one in again.lineage.stages] == [
        ("first", 0, 40), ("second", 40, 80), ("first", 80, 120), ("second", 120, 160),
    ]  # fmt: skip
    assert not again.untrained


def test_an_extension_that_is_interrupted_equals_one_that_is_not(tmp_path):
    for name in ("whole", "part"):
        run_of(tmp_path / name, 80).train(say=list, every_s=1e9)
    whole = run_of(tmp_path / "whole", 160)
    whole.resume(tmp_path / "whole")
    whole.train(say=list, every_s=1e9)
    losses = []
    for until in (80, 100, 136, None):
        part = run_of(tmp_path / "part", 160)
        part.resume(tmp_path / "part")
        part.train(say=list, every_s=1e9, until_images=until)
        losses += part.task.losses
    assert losses == whole.task.losses
    for name, value in whole.task.network.state_dict().items():
        assert torch.equal(value, part.task.network.state_dict()[name]), name


@pytest.mark.parametrize(
    ("done", "budget", "stages"),
    [
        (20, 160, ["first"] * 20 + ["second"] * 20),  # in its first stage: its shares of the new budget
        (60, 160, ["first"] * 10 + ["second"] * 30),  # later: what is left goes to the present stage
        (60, 64, ["first"] * 10 + ["second"] * 6),
        (20, 24, ["first"] * 5 + ["second"]),
    ],
)
def test_another_budget_is_shared_by_the_stages_that_are_left(tmp_path, done, budget, stages):
    run_of(tmp_path, 80).train(say=list, every_s=0.0, until_images=done)
    again = run_of(tmp_path, budget)
    again.resume(tmp_path)
    again.train(say=list, every_s=0.0)
    assert [row["stage"] for row in rows_of(tmp_path)] == stages
    second = rates(tmp_path, "second")
    if done < 40:
        assert second[0] == pytest.approx(0.025), "warm-up at its start"
    assert second[-1] == min(second[1:] or second)


def test_a_budget_that_ends_before_the_last_stage_leaves_it_untrained(tmp_path):
    run = run_of(tmp_path, 80)
    run.train(say=list, every_s=1e9, until_images=20)
    again = run_of(tmp_path, 16)
    again.resume(tmp_path)
    again.train(say=list, every_s=1e9)
    assert again.untrained == ("second",)
    more = run_of(tmp_path, 80)  # and is reached by one that does not
    more.resume(tmp_path)
    more.train(say=list, every_s=1e9)
    assert (more.untrained, more.at.extended) == ((), 0)


def test_a_budget_may_change_from_images_to_minutes(tmp_path):
    run_of(tmp_path, 80).train(say=list, every_s=1e9)
    run = Run(Toy(), PRESET, Budget(minutes=1000.0), tmp_path, seed=3)
    run.resume(tmp_path)
    assert run.extending
    begin, end = run._bounds()
    assert 0 < begin < 60
    assert end == pytest.approx(begin + (60_000 - begin) / 2)


def test_checkpoints_of_before_go_on_where_shares_of_the_budget_put_them(tmp_path):
    run_of(tmp_path, 80).train(say=list, every_s=1e9, until_images=60)
    content = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    for name in ("stage_images", "stage_s", "extended"):
        del content["at"][name]
    del content["budget"], content["processes"]
    torch.save({**content, "format_version": 3}, tmp_path / CHECKPOINT)
    run = run_of(tmp_path, 80)
    run.resume(tmp_path)
    assert run._bounds() == (40.0, 80.0)
    assert run.before is None
