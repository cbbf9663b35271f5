"""Which checkpoint to take where there are no labels: held-out prediction error, scale and rank, together.

Each alone is blind. The error falls as embeddings shrink or lose dimensions; rank rises with noise; neither sees a norm
that drifts. How well the three together agree with probes: `experiments/checkpoint_choice.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

from jepa.findings_record import Record

GAUSSIAN = ("sigreg", "visreg", "vicreg_variance", "bhep")  # terms that hold the standard deviation at 1


class Choice(NamedTuple):
    """The evaluated steps, the mean place [n] of each among all, 1 for the best, and the step of the lowest, the latest
    of equals. `figures` are the three that were ranked, by name, [n] each.
    """

    step: int
    steps: np.ndarray
    places: np.ndarray
    figures: dict[str, np.ndarray]


def choose(record: Record) -> Choice | None:
    """Ranks every evaluation by three figures and takes the mean of its places; None where one is not measured.

    error  prediction error over that of copying, or the error itself where nothing can be copied
    scale  |log| of the targets' (or views') standard deviation, over 1 where a term holds it there, else over that of
           the first evaluation: how far it is from where it should be
    rank   effective rank over its expectation; the higher the better
    """
    role = "views" if "diag/views/std" in record.series else "target"
    error = "val/prediction/copy_ratio" if role == "target" else "val/prediction"
    names = {"error": error, "scale": f"diag/{role}/std", "rank": f"diag/{role}/rank_ratio"}
    if not all(name in record.series for name in names.values()):
        return None
    steps = record.series[error].steps
    if any(not np.array_equal(record.series[name].steps, steps) for name in names.values()):
        return None
    figures = {name: record.series[metric].values for name, metric in names.items()}
    held = any(record.config[f"weights.{term}"] for term in GAUSSIAN if f"weights.{term}" in record.config)
    tiny = np.finfo(np.float32).tiny
    distance = np.abs(np.log(np.maximum(figures["scale"], tiny) / (1.0 if held else max(figures["scale"][0], tiny))))
    worst_first = (figures["error"], distance, -figures["rank"])
    places = np.mean([stats.rankdata(np.nan_to_num(x, nan=np.inf)) for x in worst_first], axis=0)
    best = np.flatnonzero(places == places.min())[-1]
    return Choice(int(steps[best]), steps, places, figures)


def as_text(choice: Choice) -> str:
    """The chosen step and what speaks for it, in a sentence."""
    at = int(np.flatnonzero(choice.steps == choice.step)[0])
    said = ", ".join(f"{name} {values[at]:.3g}" for name, values in choice.figures.items())
    return f"without labels, the checkpoint to take is step {choice.step} of {len(choice.steps)} evaluations ({said})"
