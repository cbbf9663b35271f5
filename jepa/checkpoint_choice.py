"""Which checkpoint to take where there are no labels: held-out prediction error, scale and rank, together.

Each alone is blind. The error falls as embeddings shrink or lose dimensions; rank rises with noise; neither sees a norm
that drifts. A guard against collapse, and no more: in small runs its order is not told apart from one that knows
nothing of the probes (`experiments/checkpoint_choice.py`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from scipy import stats

from jepa.findings_record import Record

GAUSSIAN = ("sigreg", "visreg", "vicreg_variance", "bhep")  # terms that hold the standard deviation at 1


class Choice(NamedTuple):
    """Evaluated steps and the mean place [n] of each among all, 1 for the best; `figures` are what was ranked, by name,
    [n] each. `best` is the step of the lowest place, the latest of equals, and `step` the best of those still there.
    """

    step: int
    best: int
    steps: np.ndarray
    places: np.ndarray
    figures: dict[str, np.ndarray]


def choose(record: Record, kept: Collection[int] | None = None) -> Choice | None:
    """Ranks every evaluation by three figures and takes the mean of its places; None where one is not measured.

    error  prediction error over that of copying, or the error itself where nothing can be copied
    scale  |log| of a standard deviation, over 1 where a term holds it there, else over that of the first evaluation:
           of the targets, the views, or what a projector makes of them for the losses
    rank   effective rank over its expectation; the higher the better

    kept: the steps that have a checkpoint, to choose among; all if not given. None where there is none of them.
    """
    role = "views" if "diag/views/std" in record.series else "target"
    projected = "objective.projector_dim" in record.config and record.config["objective.name"] == "lejepa"
    projected = projected and record.config["objective.projector_dim"] is not None
    names = {
        "error": "val/prediction/copy_ratio" if role == "target" else "val/prediction",
        "scale": f"diag/{'projected' if projected else role}/std",
        "rank": f"diag/{role}/rank_ratio",
    }
    if not all(name in record.series for name in names.values()):
        return None
    steps = record.series[names["error"]].steps
    if any(not np.array_equal(record.series[name].steps, steps) for name in names.values()):
        return None
    figures = {name: record.series[metric].values for name, metric in names.items()}
    held = any(record.config[f"weights.{term}"] for term in GAUSSIAN if f"weights.{term}" in record.config)
    tiny = np.finfo(np.float32).tiny
    distance = np.abs(np.log(np.maximum(figures["scale"], tiny) / (1.0 if held else max(figures["scale"][0], tiny))))
    lowest_first = (figures["error"], distance, -figures["rank"])
    places = np.mean([stats.rankdata(np.nan_to_num(x, nan=np.inf)) for x in lowest_first], axis=0)
    there = np.isin(steps, steps if kept is None else list(kept))
    if not there.any():
        return None
    best = steps[places == places.min()][-1]
    step = steps[there & (places == places[there].min())][-1]
    return Choice(int(step), int(best), steps, places, figures)


def as_text(choice: Choice) -> str:
    """The chosen step and what speaks for it, in a sentence; and the better one that is gone, if there was one."""
    at = int(np.flatnonzero(choice.steps == choice.step)[0])
    said = ", ".join(f"{name} {values[at]:.3g}" for name, values in choice.figures.items())
    gone = f"; step {choice.best} was better and is not kept" if choice.best != choice.step else ""
    evaluations = f"{len(choice.steps)} evaluations"
    return f"without labels, the checkpoint to take is step {choice.step} of {evaluations} ({said}){gone}"
