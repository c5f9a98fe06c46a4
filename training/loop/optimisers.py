"""Optimisers of a stage: one Adam over the trained parameters, or those of the task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from training.loop.reduction import Reduction
from training.loop.task import TakesTurns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from training.loop.task import Task
    from training.presets import Preset, Stage

OWN = "network"  # name of the default optimiser
CLIP = 1.0  # maximum gradient norm per optimiser
KERNELS = ("foreach", "fused")  # settings that choose among kernels of an optimiser; checkpoints do not hold them


class Optimisers:
    """Optimisers by name, with their initial learning rates, which schedules multiply.

    Call `close` before others take over the same parameters.
    """

    def __init__(self, task: Task, preset: Preset, stage: Stage, fused: bool = False) -> None:
        trained: list[nn.Parameter] = []
        for name, parameter in task.network.named_parameters():
            parameter.requires_grad_(not stage.trains or name.startswith(stage.trains))
            trained += [parameter] if parameter.requires_grad else []
        if isinstance(task, TakesTurns):
            self.each = dict(task.optimisers(stage))
        else:
            self.each = {
                OWN: torch.optim.Adam(trained, lr=stage.learning_rate, betas=preset.betas, fused=fused or None)
            }
        self._rates = {name: [group["lr"] for group in each.param_groups] for name, each in self.each.items()}
        self._own = {name: _parameters(each) for name, each in self.each.items()}
        self._reductions = {name: Reduction(own) for name, own in self._own.items()}

    def close(self) -> None:
        """End the averaging of gradients."""
        for reduction in self._reductions.values():
            reduction.close()

    @property
    def rate(self) -> float:
        """Current learning rate of the first group of the first optimiser."""
        return float(next(iter(self.each.values())).param_groups[0]["lr"])

    def scale_rates(self, factor: float) -> None:
        """Set all learning rates to `factor` times their initial values."""
        for name, each in self.each.items():
            for group, rate in zip(each.param_groups, self._rates[name], strict=True):
                group["lr"] = rate * factor

    def step(self, name: str, loss: Tensor) -> None:
        """Step one optimiser along the gradient of `loss`, averaged over the processes.

        Gradients reach only the parameters of this optimiser. Raises KeyError for an unknown name.
        """
        if name not in self.each:
            msg = f"a loss for optimiser {name!r}; expected one of {', '.join(self.each)}"
            raise KeyError(msg)
        own = self._own[name]
        self.each[name].zero_grad(set_to_none=True)
        with self._reductions[name].averaging():
            torch.autograd.backward(loss, inputs=own if len(self.each) > 1 else None)
        torch.nn.utils.clip_grad_norm_(own, CLIP)
        self.each[name].step()

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the states of all optimisers by name, without the choice of kernels."""
        return {name: _with_kernels(each.state_dict()) for name, each in self.each.items()}

    def load_state_dict(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Restore stored states. Raises KeyError or ValueError if they belong to other optimisers."""
        if states.keys() != self.each.keys():
            msg = f"states of {', '.join(states)}; expected {', '.join(self.each)}"
            raise KeyError(msg)
        for name, each in self.each.items():
            each.load_state_dict(_with_kernels(states[name], each.param_groups))
            for parameter in self._own[name]:
                _lay_out(each.state.get(parameter, {}), parameter)


def _parameters(optimiser: Optimizer) -> list[nn.Parameter]:
    return [p for group in optimiser.param_groups for p in group["params"] if p.requires_grad]


def _with_kernels(state: dict[str, Any], own: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return an optimiser's state with the kernels of the groups `own`, or with those that PyTorch chooses."""
    groups = state["param_groups"]
    chosen = [{name: group[name] for name in KERNELS if name in group} for group in own or ({},) * len(groups)]
    plain = [dict.fromkeys(name for name in KERNELS if name in group) for group in groups]
    merged = [{**group, **none, **given} for group, none, given in zip(groups, plain, chosen, strict=True)]
    return {**state, "param_groups": merged}


def _lay_out(state: dict[str, Any], parameter: nn.Parameter) -> None:
    """Give the moments of a parameter its memory layout, which kernels for many parameters expect."""
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
            state[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
