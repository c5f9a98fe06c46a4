"""Two processes learn what one learns from batches of twice the size."""

import contextlib
import os
import socket

import pytest
import torch
from torch import nn

from pipeline.errors import ReadError, UsageError
from training import train
from training.loop import distributed
from training.loop.batches import FOR_BATCH, Draw
from training.loop.run import Budget, Run
from training.loop.task import Measured
from training.presets import Preset, Stage

PRESET = Preset("toy", "sr", {}, (Stage("all", 1.0, (), 0.05),), minutes=1, batch=4, ema=0.9, warmup_steps=2)
STEPS = 5


class Toy:
    """Fits y = 3 x - 2; `unused` never gets a gradient."""

    def __init__(self):
        torch.manual_seed(0)
        self.network = nn.ModuleDict({"fit": nn.Sequential(nn.Linear(1, 8), nn.SiLU(), nn.Linear(8, 1))})
        self.network["norm"], self.network["unused"] = nn.BatchNorm1d(1, affine=False), nn.Linear(1, 1)

    def batch(self, draw):
        x = torch.from_numpy(draw.rng.normal(size=(PRESET.batch, 1))).float()
        return {"x": x, "y": 3 * x - 2}

    def begin(self, stage, draw):
        pass

    def loss(self, stage, batch, draw):
        self.network["norm"](batch["x"])
        return (self.network["fit"](batch["x"]) - batch["y"]).square().mean()

    def finish(self):
        pass

    def validate(self, stage):
        return Measured("watched")


class Doubled(Toy):
    """The batches that two processes take in one step, as one."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def batch(self, draw):
        parts = [super(Doubled, self).batch(Draw.seeded(3, FOR_BATCH, self.number + rank)) for rank in range(2)]
        self.number += 2
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def train_as(rank, port, folder):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    assert distributed.launched()
    distributed.begin(torch.device("cpu"))
    rows = distributed.gathered(torch.full((2 + rank, 3), float(rank)))
    assert rows[:, 0].tolist() == [0, 0, 1, 1, 1]
    task, lines = Toy(), []
    run = Run(task, PRESET, Budget(images=2 * STEPS * PRESET.batch), folder / "run", seed=3)
    run.train(say=lines.append, every_s=0.0)
    torch.save({"at": vars(run.at), "lines": lines, "state": task.network.state_dict()}, folder / f"{rank}.pt")
    distributed.end()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Two processes have trained: their folder and what each ended with."""
    folder = tmp_path_factory.mktemp("together")
    torch.multiprocessing.start_processes(train_as, (free_port(), folder), nprocs=2, start_method="fork")
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_processes_equal_one_with_the_doubled_batch(together, tmp_path):
    alone = Doubled()
    run = Run(alone, PRESET, Budget(images=2 * STEPS * PRESET.batch), tmp_path, seed=3)
    run.train(every_s=1e9)
    for ended in together[1]:
        assert (ended["at"]["step"], ended["at"]["images"], ended["at"]["batches"]) == (STEPS, 40, 10)
        for name, value in alone.network["fit"].state_dict().items():
            torch.testing.assert_close(ended["state"]["fit." + name], value, atol=1e-5, rtol=0)
    mean = alone.network["norm"].running_mean
    torch.testing.assert_close(together[1][0]["state"]["norm.running_mean"], mean, atol=1e-5, rtol=0)


def test_only_the_first_process_writes_and_speaks(together):
    folder, (first, second) = together
    assert len(first["lines"]) == STEPS
    assert second["lines"] == []
    assert {path.name for path in (folder / "run").iterdir()} == {"checkpoint.pt", "log.csv"}
    assert (folder / "run" / "log.csv").read_text().count("\n") == STEPS + 1


def test_a_checkpoint_of_two_processes_goes_on_in_one(together, tmp_path):
    run = Run(Toy(), PRESET, Budget(images=48), tmp_path, seed=3)
    run.resume(together[0] / "run")
    run.train(every_s=1e9)
    assert (run.at.images, run.at.batches) == (48, 12)


TOML = """
[[source]]
name = "towns"
role = "hr"
path = "*.png"
gsd_m = 1.0
"""


def command_as(rank, port, folder, arguments):
    """One process of a command that `torchrun` started: its output and exit code go to files."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with (folder / f"{rank}.txt").open("w") as said:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                code = train.main(arguments)
            except SystemExit as ended:
                code = ended.code or 0
        said.write(f"exit code {code}\n")


def said_by_two(folder, *arguments):
    """Lines that each of two processes of the command prints, the last one its exit code."""
    args = (free_port(), folder, list(map(str, arguments)))
    torch.multiprocessing.start_processes(command_as, args, nprocs=2, start_method="fork")
    return [(folder / f"{rank}.txt").read_text().splitlines() for rank in range(2)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--minutes", "0"], "--minutes: 0 is not a number above 0"),
        (["--device", "banana"], "--device banana; expected cpu"),
        (["--data", "{folder}/none.toml"], "none.toml is no file"),
        (["--data", "{folder}/mine.toml"], "images"),
        (["--resume", "{folder}"], "no checkpoint.pt in"),
        (["--recipe", "x=1"], "lite-sr has no x"),
    ],
)
def test_a_wrong_command_is_said_once_by_all_processes(tmp_path, arguments, said):
    (tmp_path / "mine.toml").write_text(TOML.replace("*.png", "images"))
    (tmp_path / "images").mkdir()
    given = [part.format(folder=tmp_path) for part in arguments]
    first, second = said_by_two(tmp_path, "--preset", "lite-sr", "--out", tmp_path / "run", *given)
    assert said in first[-2]
    assert sum(said in line for line in first) == 1
    assert (first[-1], second) == ("exit code 2", ["exit code 2"])
    assert not (tmp_path / "run").exists()


def test_a_failure_of_one_process_alone_is_said_and_shared(tmp_path, monkeypatch):
    def prepared(args):
        distributed.begin(torch.device("cpu"))
        if distributed.rank() == 1:
            raise ReadError("this machine has no such file")

    monkeypatch.setattr(train, "prepared", prepared)
    first, second = said_by_two(tmp_path, "--preset", "lite-sr")
    assert first == ["this machine has no such file", "exit code 5"]
    assert second == ["exit code 5"]


def test_the_process_that_is_left_alone_says_so_in_one_line(tmp_path, monkeypatch):
    class Failing(Toy):
        def batch(self, draw):
            if os.environ["RANK"] == "1":
                raise ReadError("b.tif cannot be read")
            return super().batch(draw)

    def prepared(args):
        distributed.begin(torch.device("cpu"))
        run = Run(Failing(), PRESET, Budget(images=80), tmp_path / "run", seed=3)
        return train.Ready(run, run.task, args)

    monkeypatch.setattr(train, "prepared", prepared)
    first, second = said_by_two(tmp_path, "--preset", "lite-sr")
    assert second == ["b.tif cannot be read", "exit code 5"]
    assert first[0].startswith("process 0 lost the others (")
    assert "cure: see what another process said" in first[0]
    assert first[1:] == ["exit code 1"]
    assert not (tmp_path / "run").exists()


def test_help_is_given_once(tmp_path):
    first, second = said_by_two(tmp_path, "--help")
    assert first[0].startswith("usage: ")
    assert second == ["exit code 0"]


def test_alone_every_exchange_is_the_natural_thing():
    value = torch.ones(2, 3)
    distributed.average_([value])
    assert distributed.totals([1.5, 2]) == [1.5, 2]
    assert distributed.gathered(value) is value
    assert (distributed.rank(), distributed.world()) == (0, 1)
    assert distributed.device_of("cpu") == torch.device("cpu")


def test_devices_that_are_not_there_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert distributed.device_of("cuda:1") == torch.device("cuda", 1)
    for name in ("banana", "meta", "cuda:2"):
        with pytest.raises(UsageError, match=f"--device {name}"):
            distributed.device_of(name)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert distributed.device_of("cuda") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UsageError, match="--device cuda:1 for 3 processes: PyTorch .* sees 2 GPUs; cure: .*fewer"):
        distributed.device_of("cuda")
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="--device cuda:1: PyTorch .* sees no GPU; cure: --device cpu"):
        distributed.device_of("cuda")
