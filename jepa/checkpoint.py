"""Checkpoints of a run: the training state and a JSON record, the newest few and the best one.

A save is synchronous: when `save` returns, the checkpoint is on disk under its final name, and a full disk shows at
that save. One process writes; any number may read while it does. `jepa.checkpoint_files` has the format, in which a
damaged checkpoint is told from one of another model; here is which checkpoints are kept, and which one is restored.
"""

from __future__ import annotations

import itertools
import math
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from jepa import checkpoint_files
from jepa.checkpoint_files import Damaged, first_line, quiet_orbax
from jepa.paths import by_path, nest
from jepa.types import PyTree

Step = int | Literal["latest", "best"]


def step_of(text: str) -> Step:
    """What `--checkpoint` of a command names: "latest", "best" or a step."""
    return int(text) if text.isdecimal() else text


class Checkpoints(NamedTuple):
    """The checkpoints in a folder. `values` is the metric that `best` minimises, by step, where it is known. `pinned`
    are steps that stay, whatever comes; more may be put into it.
    """

    folder: Path
    manager: ocp.CheckpointManager | None  # None for a reader, which never changes the folder
    best_metric: str | None
    values: dict[int, float]
    pinned: set[int]


class Restored(NamedTuple):
    """A restored checkpoint. `notices` are sentences for the person at the keyboard, empty when all is well."""

    state: PyTree
    host: dict[str, Any]
    step: int
    notices: tuple[str, ...]


class _KeepBest(NamedTuple):
    """Preserves the step of the lowest finite metric and the pinned ones. Reads the checked records: Orbax's own
    metrics file is not.
    """

    values: dict[int, float]
    pinned: set[int]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        present = {info.step for info in checkpoints}
        best = next((step for step in _ranked(self.values) if step in present), None)
        return [info.step == best or info.step in self.pinned for info in checkpoints]


def _ranked(values: Mapping[int, float]) -> list[int]:
    """Steps from the lowest metric up, the earliest of equals first."""
    return sorted(values, key=lambda step: (values[step], step))


def open_manager(
    folder: Path | str, *, best_metric: str, keep_latest: int = 2, pinned: Iterable[int] = ()
) -> Checkpoints:
    """Opens `folder` for the one process that writes, and removes what a killed run left half-written.

    Kept are the newest `keep_latest` checkpoints, the one with the lowest `best_metric` and those that are `pinned`.
    """
    folder = Path(folder).absolute()
    values: dict[int, float] = {}
    pins = set(pinned)
    policies = [checkpoint_managers.LatestN(keep_latest), _KeepBest(values, pins)]
    options = ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
        enable_async_checkpointing=False,
    )
    _remove_half_written(folder)
    with quiet_orbax():
        checkpoints = Checkpoints(folder, ocp.CheckpointManager(folder, options=options), best_metric, values, pins)
    _refresh(checkpoints)
    return checkpoints


def open_reader(folder: Path | str, *, best_metric: str | None = None) -> Checkpoints:
    """Opens `folder` for reading only, also while a run writes to it: nothing is created, moved or removed.

    `best` follows the metric that the run itself minimised, unless `best_metric` names another that it recorded.
    """
    checkpoints = Checkpoints(Path(folder).absolute(), None, best_metric, {}, set())
    _refresh(checkpoints)
    return checkpoints


def close(checkpoints: Checkpoints) -> None:
    if checkpoints.manager is not None:
        with quiet_orbax():
            checkpoints.manager.close()


def steps(checkpoints: Checkpoints) -> list[int]:
    """Steps with a finished checkpoint, ascending, as the folder is now."""
    return sorted(ocp.utils.checkpoint_steps(checkpoints.folder)) if checkpoints.folder.is_dir() else []


def best_step(checkpoints: Checkpoints) -> int | None:
    """The step of the lowest metric (the earliest of equals), or None where no checkpoint has a finite one."""
    return next(iter(_ranked(checkpoints.values)), None)


def save(
    checkpoints: Checkpoints, step: int, state: PyTree, host: Mapping[str, Any], metrics: Mapping[str, float]
) -> bool:
    """Writes a checkpoint; True once it is on disk, False where this step had been saved already (left as it is).

    `host` is what JSON can hold. A metric that is not finite is left out, so it never makes a checkpoint the best.
    Raises OSError when it cannot be written (the earlier checkpoints are untouched), and ValueError when the folder
    holds a later step, which this one could not follow.
    """
    assert checkpoints.manager is not None, "these checkpoints were opened for reading"
    known = steps(checkpoints)
    if step in known:
        return False
    if known and known[-1] > step:
        raise ValueError(
            f"{checkpoints.folder} already holds step {known[-1]}, later than step {step} to be saved: "
            f"continue an earlier step in a new workdir"
        )
    finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
    items = checkpoint_files.pack(step, state, host, finite, checkpoints.best_metric)
    if checkpoints.best_metric in finite:  # before the save, which decides what to keep
        checkpoints.values[step] = finite[checkpoints.best_metric]
    try:
        with quiet_orbax():
            checkpoints.manager.save(step, args=items, force=True)
    except Exception as error:
        checkpoints.values.pop(step, None)
        _remove_half_written(checkpoints.folder)
        raise OSError(f"could not save step {step} to {checkpoints.folder}: {first_line(error)}") from error
    _refresh(checkpoints)
    return True


def restore(checkpoints: Checkpoints, abstract_state: PyTree, step: Step = "latest") -> Restored | None:
    """The state at `step`, bit for bit as saved, or None where there is no checkpoint at all.

    abstract_state: the state or its `jax.eval_shape`; gives structure, shapes, dtypes and, where present, shardings.
    A damaged checkpoint is skipped for the next best or the one before, with a notice; a writer also moves it
    to `damaged/`, once another has proved readable. A step given as a number has no substitute.
    Raises ValueError naming the arrays by path when the checkpoint is of another model, when a numbered step
    is missing or damaged, and when no checkpoint can be read.
    """
    found = _first_intact(checkpoints, step, abstract_state)
    if found is None:
        return None
    record, arrays, notices = found
    expected, structure = by_path(abstract_state), jax.tree.structure(abstract_state)
    leaves = [checkpoint_files.to_device(arrays[path], record["arrays"][path], leaf) for path, leaf in expected.items()]
    return Restored(jax.tree.unflatten(structure, leaves), record["host"], record["step"], notices)


def read(workdir: Path | str, step: Step = "latest") -> Restored:
    """What the run in `workdir` saved, as nested dictionaries of arrays by name; needs no code of the model.

    Another checkpoint used in place of a damaged one is logged as a warning.
    Raises ValueError when the run has no checkpoint, or none that can be read.
    """
    found = _first_intact(open_reader(Path(workdir) / "checkpoints"), step)
    if found is None:
        raise ValueError(f"there is no checkpoint in {Path(workdir) / 'checkpoints'}")
    record, arrays, notices = found
    for notice in notices:
        logging.warning("%s", notice)
    leaves = {path: checkpoint_files.to_device(x, record["arrays"][path], None) for path, x in arrays.items()}
    return Restored(nest(leaves), record["host"], record["step"], notices)


def _remove_half_written(folder: Path) -> None:
    for debris in folder.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(debris, ignore_errors=True)


def _first_intact(
    checkpoints: Checkpoints, step: Step, abstract_state: PyTree = None
) -> tuple[dict[str, Any], dict[str, np.ndarray], tuple[str, ...]] | None:
    """Record and arrays of the first candidate that is whole, and what to say about those before it."""
    damaged: dict[int, str] = {}
    for candidate in _candidates(checkpoints, step):
        try:
            record = checkpoint_files.read_record(checkpoints.folder, candidate)
            if abstract_state is not None:  # another model is the user's mistake: it must not look like damage
                checkpoint_files.check_same(record, by_path(abstract_state), checkpoints.folder)
            arrays = checkpoint_files.read_arrays(checkpoints.folder, record)
        except Damaged as error:
            if checkpoints.manager is None and _was_replaced(checkpoints, candidate):
                return _first_intact(checkpoints, step, abstract_state)
            damaged[candidate] = str(error)
            continue
        notices = [_set_aside(checkpoints, bad, reason, record["step"]) for bad, reason in damaged.items()]
        if step == "best" and not checkpoints.values:
            notices.append(f"no checkpoint has a finite metric: using the latest, step {record['step']}, as the best")
        return record, arrays, tuple(notices)
    if damaged:
        reasons = "; ".join(f"step {bad}: {reason}" for bad, reason in damaged.items())
        raise ValueError(f"no checkpoint asked for in {checkpoints.folder} can be read ({reasons})")
    return None


def _was_replaced(checkpoints: Checkpoints, step: int) -> bool:
    """Whether the run removed this checkpoint for a newer one while it was read: no damage, look again."""
    time.sleep(0.2)  # removing takes a moment, during which the folder is still there
    return step not in steps(checkpoints)


def _candidates(checkpoints: Checkpoints, step: Step) -> list[int]:
    """Steps to try, in order."""
    _refresh(checkpoints)
    known = steps(checkpoints)
    if isinstance(step, int):
        if step not in known:
            raise ValueError(f"there is no checkpoint at step {step} in {checkpoints.folder}; there are {known}")
        return [step]
    if step not in ("latest", "best"):
        raise ValueError(f"a checkpoint is 'latest', 'best' or a step, not {step!r}")
    ranked = _ranked(checkpoints.values) if step == "best" else []
    return ranked + sorted(set(known) - set(ranked), reverse=True)


def _refresh(checkpoints: Checkpoints) -> None:
    """Brings `values` up to date with the folder."""
    known = steps(checkpoints)
    for gone in set(checkpoints.values) - set(known):
        del checkpoints.values[gone]
    for step in set(known) - set(checkpoints.values):
        try:
            record = checkpoint_files.read_record(checkpoints.folder, step)
        except Damaged:
            continue  # said when it is restored
        name = checkpoints.best_metric or record["best_metric"]
        if name in record["metrics"]:
            checkpoints.values[step] = record["metrics"][name]


def _set_aside(checkpoints: Checkpoints, step: int, reason: str, used: int) -> str:
    """Moves a damaged checkpoint to `damaged/<step>-<n>`, unless opened for reading. Returns the notice."""
    sentence = f"the checkpoint at step {step} is damaged ({reason}): using step {used}"
    if checkpoints.manager is None:
        return sentence
    folder = checkpoints.folder / "damaged"
    folder.mkdir(exist_ok=True)
    target = next(folder / f"{step}-{n}" for n in itertools.count(1) if not (folder / f"{step}-{n}").exists())
    (checkpoints.folder / str(step)).rename(target)
    checkpoints.values.pop(step, None)
    with quiet_orbax():
        checkpoints.manager.reload()
    return f"{sentence}; the damaged one is now {target}"
