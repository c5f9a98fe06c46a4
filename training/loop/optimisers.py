"""Optimisers of a stage: one Adam over the trained parameters, or those of the task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from training.loop.task import TakesTurns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from training.loop.task import Task
    from training.presets import Preset, Stage

OWN = "network"  # name of the default optimiser
CLIP = 1.0  # maximum gradient norm per optimiser


class Optimisers:
    """Optimisers by name, with their initial learning rates, which schedules multiply."""

    def __init__(self, task: Task, preset: Preset, stage: Stage) -> None:
        trained: list[nn.Parameter] = []
        for name, parameter in task.network.named_parameters():
            parameter.requires_grad_(not stage.trains or name.startswith(stage.trains))
            trained += [parameter] if parameter.requires_grad else []
        if isinstance(task, TakesTurns):
            self.each = dict(task.optimisers(stage))
        else:
            self.each = {OWN: torch.optim.Adam(trained, lr=stage.learning_rate, betas=preset.betas)}
        self._rates = {name: [group["lr"] for group in each.param_groups] for name, each in self.each.items()}

    @property
    def rate(self) -> float:
        """Current learning rate of the first group of the first optimiser."""
        return float(next(iter(self.each.values())).param_groups[0]["lr"])

    def scale_rates(self, factor: float) -> None:
        """Set all learning rates to `factor` times their initial values."""
        for name, each in self.each.items():
            for group, rate in zip(each.param_groups, self._rates[name], strict=True):
                group["lr"] = rate * factor

    def step(self, name: str, loss: Tensor, share: Callable[[list[nn.Parameter]], None]) -> None:
        """Step one optimiser along the gradient of `loss`. `share` averages the gradients over the processes.

        Gradients reach only the parameters of this optimiser. Raises KeyError for an unknown name.
        """
        if name not in self.each:
            msg = f"a loss for optimiser {name!r}; expected one of {', '.join(self.each)}"
            raise KeyError(msg)
        own = [p for group in self.each[name].param_groups for p in group["params"] if p.requires_grad]
        self.each[name].zero_grad(set_to_none=True)
        torch.autograd.backward(loss, inputs=own if len(self.each) > 1 else None)
        share(own)
        torch.nn.utils.clip_grad_norm_(own, CLIP)
        self.each[name].step()

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the states of all optimisers by name."""
        return {name: each.state_dict() for name, each in self.each.items()}

    def load_state_dict(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Restore stored states. Raises KeyError or ValueError if they belong to other optimisers."""
        if states.keys() != self.each.keys():
            msg = f"states of {', '.join(states)}; expected {', '.join(self.each)}"
            raise KeyError(msg)
        for name, each in self.each.items():
            each.load_state_dict(states[name])
