"""Tensors are brought to where a network is, and what it gives back to the CPU."""

import pytest
import torch
from torch import nn

from pipeline.errors import UsageError
from training import placement, train


def test_tensors_go_to_the_device_and_the_result_comes_back(far):
    seen = []

    def scaled(values, factor):
        seen.append((values.device, factor))
        return values * factor

    out = placement.run(far, scaled, torch.ones(2, 3), 4)
    assert seen == [(far, 4)]
    assert (out.device, out.shape) == (torch.device("cpu"), (2, 3))


def test_on_the_cpu_nothing_changes():
    values = torch.rand(3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(placement.run(torch.device("cpu"), torch.sqrt, values), values.sqrt())


def test_a_network_is_where_its_weights_are(far):
    assert placement.device_of(nn.Linear(1, 1)) == torch.device("cpu")
    assert placement.device_of(nn.Linear(1, 1).to(far)) == far


def test_the_fixture_refuses_to_mix_devices(far):
    """Else the tests that use it could not fail."""
    with pytest.raises(RuntimeError, match="meta"):
        nn.Conv2d(1, 1, 3).to(far)(torch.ones(1, 1, 4, 4))


@pytest.mark.parametrize(
    ("instructions", "fits"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"bf16": True}, True), ({"avx512_f": True}, False)],
)
def test_bfloat16_needs_a_cpu_that_computes_in_it(monkeypatch, instructions, fits):
    told = {"cpu_name": "x", "amx_bf16": False, "avx512_bf16": False, **instructions}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    if fits:
        placement.check_bf16(torch.device("cpu"))
        return
    with pytest.raises(UsageError, match=r"--bf16 on a CPU without bfloat16 arithmetic.*amx_bf16.*leave --bf16 out"):
        placement.check_bf16(torch.device("cpu"))


def test_earlier_versions_of_torch_leave_it_to_linux(monkeypatch, tmp_path):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(placement, "CPUINFO", tmp_path / "cpuinfo")
    assert placement.cpu_features() is None
    placement.check_bf16(torch.device("cpu"))  # unknown is no refusal
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16\n")
    placement.check_bf16(torch.device("cpu"))
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx512f\n")
    with pytest.raises(UsageError, match="without bfloat16 arithmetic"):
        placement.check_bf16(torch.device("cpu"))


def test_a_gpu_that_would_emulate_bfloat16_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    with pytest.raises(UsageError, match="--bf16 on cuda:1"):
        placement.check_bf16(torch.device("cuda", 1))


def test_the_command_refuses_it_before_data_are_read(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True}, raising=False)
    command = ["--preset", "lite-sr", "--data", str(tmp_path / "none.toml"), "--out", str(tmp_path / "run"), "--bf16"]
    assert train.main(command) == 2
    assert capsys.readouterr().err.startswith("--bf16 on a CPU without bfloat16 arithmetic")
