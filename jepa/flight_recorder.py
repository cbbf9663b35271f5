"""What led up to a step that went wrong, kept in the run folder so that the step can be taken again.

An event is a file `events/<step>-<kind>.json`. Data and randomness are functions of the step, so the newest checkpoint
before it, which the event keeps from being removed, is all that a replay needs; see `jepa.replay`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jepa.history import History
from jepa.metrics import json_number
from jepa.registry import nearest
from jepa.run_folder import atomic_write_text
from jepa.state import TrainState
from jepa.types import Array

KINDS = ("nonfinite", "spike", "abort")
WINDOW = 50  # steps; a spike is a loss above
SPIKE = 2.0  # times the largest of as many steps before it
KEPT = 8  # events of a kind; later ones pin no more checkpoints
FOLDER = "events"


class Event(NamedTuple):
    """`step`: its number in the record, so that its batch is that of `indices` for `step - 1`. `kind`: one of `KINDS`.

    `reason`: a sentence. `starts`: when the levels of the data began (`jepa.curriculum`). `key`: the data of the run's
    key, from which those of the step follow.
    `ledger`: every metric of the step, as the record writes numbers; of an abort, the last line and held-out figures.
    `trail`: step, loss and gradient norm of the steps up to it since the last line of the record. `checkpoint`: the
    newest saved step before it, None where there is none: then it is replayed from the beginning. `num_steps`: how long
    the run was to be, which its schedules stretch to.
    """

    step: int
    kind: str
    reason: str
    starts: list[int]
    key: list[int]
    ledger: dict[str, Any]
    trail: dict[str, list]
    checkpoint: int | None
    num_steps: int


def find(
    first_step: int, history: History, recent: Sequence[float], bad_terms: Sequence[str]
) -> tuple[list[tuple[int, str, str]], list[float]]:
    """(index, kind, reason) of what went wrong in a history whose first step has the number `first_step`, and `recent`
    for the next one.

    recent: the finite losses of the last `WINDOW` steps before it, or of as many as there were. bad_terms: what
    `health/bad_term` indexes. Of steps in a row that are not finite, the first is an event.
    """
    found, recent = [], list(recent)
    for i, total in enumerate(map(float, history["loss/total"])):
        consecutive = history["health/consecutive"][i]
        if consecutive == 1:
            term = bad_terms[history["health/bad_term"][i]]
            found.append((i, "nonfinite", f"step {first_step + i} was not applied: its {term} was not finite"))
        elif consecutive == 0 and len(recent) == WINDOW and total > SPIKE * max(recent):
            times = f"{total / max(recent):.3g} times the largest of the {WINDOW} steps before"
            found.append((i, "spike", f"the loss was {total:.4g} at step {first_step + i}, {times}"))
        if math.isfinite(total):
            recent = [*recent, total][-WINDOW:]
    return found, recent


def event(
    index: int,
    kind: str,
    reason: str,
    *,
    first_step: int,
    seen: History,
    starts: Sequence[int],
    key: Array,
    saved: Sequence[int],
    num_steps: int,
) -> Event:
    """The event of one step of the history `seen`. saved: the steps that have a checkpoint."""
    step = first_step + index
    trail = {name: [json_number(x) for x in seen[name][: index + 1]] for name in ("loss/total", "grad/norm")}
    return Event(
        step=step,
        kind=kind,
        reason=reason,
        starts=list(starts),
        key=np.asarray(jax.random.key_data(key)).tolist(),
        ledger={name: json_number(values[index]) for name, values in seen.items()},
        trail={"step": list(range(first_step, step + 1)), **trail},
        checkpoint=max((earlier for earlier in saved if earlier < step), default=None),
        num_steps=num_steps,
    )


def abort(
    reason: str, state: TrainState, measured: Mapping[str, float], num_steps: int, starts: Sequence[int]
) -> Event:
    """The event of a run that ends at this state, which is saved, for a reason that its held-out figures gave."""
    step = int(state.step)
    return Event(
        step=step,
        kind="abort",
        reason=reason,
        starts=list(starts),
        key=np.asarray(jax.random.key_data(state.key)).tolist(),
        ledger={name: json_number(value) for name, value in measured.items()},
        trail={},
        checkpoint=step,
        num_steps=num_steps,
    )


def write(workdir: Path, happened: Event) -> Path | None:
    """Writes the event, unless there are `KEPT` of its kind already. Returns its file."""
    folder = workdir / FOLDER
    folder.mkdir(exist_ok=True)
    path = folder / f"{happened.step}-{happened.kind}.json"
    if not path.exists() and len(list(folder.glob(f"*-{happened.kind}.json"))) >= KEPT:
        return None
    atomic_write_text(path, json.dumps(happened._asdict(), indent=2) + "\n")
    return path


def names(workdir: Path) -> list[str]:
    """The events of a run, such as `1234-spike`, by step."""
    return sorted((path.stem for path in (workdir / FOLDER).glob("*-*.json")), key=lambda n: (int(n.split("-")[0]), n))


def read(workdir: Path, name: str) -> Event:
    """The event `name`. Raises ValueError where there is none, naming those there are, or where it cannot be read."""
    known = names(workdir)
    if name not in known:
        raise ValueError(f"{workdir} has no event {name!r}: {nearest(name, known) if known else 'nothing went wrong'}")
    path = workdir / FOLDER / f"{name}.json"
    try:
        return Event(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not the file of an event ({error})") from error


def pins(happened: Iterable[Event]) -> set[int]:
    """The checkpoints that events need."""
    return {event.checkpoint for event in happened if event.checkpoint is not None}


def pinned(workdir: Path) -> set[int]:
    """The checkpoints that the events of a run need."""
    return pins(read(workdir, name) for name in names(workdir))
