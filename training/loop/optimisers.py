"""The optimisers of a stage: one Adam over what the stage trains, or those that the task gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from training.loop.task import TakesTurns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from training.loop.task import Task
    from training.presets import Preset, Stage

OWN = "network"  # the optimiser of tasks that give none
CLIP = 1.0  # largest norm of a gradient, of each optimiser's parameters


class Optimisers:
    """Optimisers by name, with the learning rates that they began with: schedules multiply these."""

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
        """Learning rate of the first one's first group, now."""
        return float(next(iter(self.each.values())).param_groups[0]["lr"])

    def scale_rates(self, factor: float) -> None:
        """Set all learning rates to `factor` times those at the start."""
        for name, each in self.each.items():
            for group, rate in zip(each.param_groups, self._rates[name], strict=True):
                group["lr"] = rate * factor

    def step(self, name: str, loss: Tensor, share: Callable[[list[nn.Parameter]], None]) -> None:
        """One step of one optimiser down the gradient of `loss`, which `share` makes that of all processes.

        Gradients reach no parameters but its own. KeyError for a name that is none.
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
        """States of all by name."""
        return {name: each.state_dict() for name, each in self.each.items()}

    def load_state_dict(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Go on from stored states. KeyError or ValueError where they are of other optimisers."""
        if states.keys() != self.each.keys():
            msg = f"states of {', '.join(states)}; expected {', '.join(self.each)}"
            raise KeyError(msg)
        for name, each in self.each.items():
            each.load_state_dict(states[name])
