"""The rules by which `jepa.findings` judges a run: small functions of a record, and the table of them, RULES."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jepa.findings_record import Held, Record, number


class Rule(NamedTuple):
    """One row of the table. `judge` is asked only where everything that `needs` names is there."""

    name: str
    seriousness: str  # serious, warning or note
    needs: tuple[str, ...]  # metrics, by name or pattern; config:KEY for a key that is not None
    judge: Callable[[Record], Held | None]
    cause: str
    remedy: str


def non_finite(record: Record) -> Held | None:
    skipped = record.series["health/skipped"]
    if skipped.values[-1] == 0:
        return None
    first = int(skipped.steps[(skipped.values > 0).argmax()])
    return Held(first, f"health/skipped {number(skipped.values[-1])} of {record.step} steps, the first by step {first}")


RULES = (
    Rule(
        "non-finite-steps",
        "serious",
        ("health/skipped",),
        non_finite,
        "A loss or a gradient was not finite, and such steps are skipped: nothing is learned in them.",
        "lower optimizer.learning_rate or the weight of the term that the run names; compute_dtype = float32",
    ),
)
