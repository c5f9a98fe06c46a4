"""`python -m pipeline.check --watch`: the state of a run, shown again until the store is complete."""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.errors import EXIT_OK, EXIT_QUARANTINE, EXIT_RESUMABLE
from pipeline.jobs.slurm import spans
from pipeline.plain import plain
from pipeline.running.watching import STATES, WORKING, Watch
from pipeline.terminal import duration, fitted, show

if TYPE_CHECKING:
    from pipeline.planning.plan import Plan
    from pipeline.running.watching import PartState, State
    from pipeline.store.place import Place

_SHOWN = 8  # parts at work, and failures


def watch(plan: Plan, place: Place, *, every_s: float, once: bool, parts: int, as_json: bool) -> int:
    """Show the state every `every_s` seconds until the store is complete, or `once`. Return the exit code.

    On a terminal the text is rewritten in place. Elsewhere, and as JSON, a state is printed when it has changed.
    """
    looking, before, height = Watch(plan, place, parts), None, 0
    screen = not once and not as_json and sys.stdout.isatty()
    while True:
        state = looking.look()
        if screen:
            height = _redraw(_text(state), height)
        elif (seen := _lasting(state)) != before:
            before = seen
            show(json.dumps(state.to_json()) if as_json else _stamped(state, once=once))
        if once or state.finished:
            return _exit_code(state)
        time.sleep(every_s)


def _exit_code(state: State) -> int:
    if not state.finished:
        return EXIT_RESUMABLE
    return EXIT_QUARANTINE if state.set_aside else EXIT_OK


def _lasting(state: State) -> State:
    """Return a state without what changes with time alone."""
    return replace(state, km2_per_h=None, units_per_h=None, left_s=None, at=0.0)


def _stamped(state: State, *, once: bool) -> str:
    text = "\n".join(_text(state))
    return text if once else f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(state.at))}\n{text}"


def _redraw(lines: list[str], height: int) -> int:
    """Write lines over the `height` lines written before, cut to the terminal. Return their number."""
    columns, rows = shutil.get_terminal_size()
    kept = [fitted([line], columns - 1) for line in lines[: max(1, rows - 1)]]
    up = f"\x1b[{height}A" if height else ""
    sys.stdout.write(f"{up}\r\x1b[J" + "".join(f"{line}\n" for line in kept))
    sys.stdout.flush()
    return len(kept)


def _text(state: State) -> list[str]:
    """Return the state in lines."""
    share = 100 * state.done / state.units if state.units else 100.0
    aside = f", {len(state.set_aside)} set aside" if state.set_aside else ""
    lines = [
        f"{plain(state.store)}: {state.status}",
        f"  units     {state.done} of {state.units} done ({share:.0f} %){aside}",
        f"  speed     {_speed(state)}",
    ]
    if state.run:
        lines.append(f"  run       {plain(state.run)}")
    lines += _parts(state.parts)
    lines += [f"  set aside {unit}: {plain(error)}" for unit, error in list(state.set_aside.items())[:_SHOWN]]
    if len(state.set_aside) > _SHOWN:
        lines.append(f"            and {len(state.set_aside) - _SHOWN} more")
    return lines


def _speed(state: State) -> str:
    if state.finished:
        return "finished"
    if state.done + len(state.set_aside) == state.units:
        return "all units have ended; the store is to be published"
    if state.units_per_h is None:
        return "unknown, fewer than two units have ended in the last 30 min"
    left = "" if state.left_s is None else f"; about {duration(state.left_s)} left"
    return f"{state.km2_per_h:.0f} km2/h, {state.units_per_h:.0f} units/h{left}"


def _parts(parts: tuple[PartState, ...]) -> list[str]:
    """Return how many parts are in which state, and which."""
    if not parts:
        return []
    of = {state: [part for part in parts if part.state == state] for state in STATES}
    lines = [f"  parts     {', '.join(f'{len(some)} {state}' for state, some in of.items() if some)} of {len(parts)}"]
    for state, some in of.items():
        if some:
            lines.append(f"  {state:<9} {spans([part.number for part in some])}")
            told = [f"            {part.number}: {text}" for part in some if (text := _told(part))]
            lines += told[:_SHOWN] + ([f"            and {len(told) - _SHOWN} more"] if len(told) > _SHOWN else [])
    return lines


def _told(part: PartState) -> str:
    """Return what else is known of a part: who works on it, or its error."""
    return f"{part.done} of {part.units} units, {plain(part.holder)}" if part.state == WORKING else plain(part.error)
