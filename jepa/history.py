"""What every step since the last line of the record measured. The device keeps it; the host reads it late.

A history is a mapping from metrics to arrays [n] of n consecutive steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

History = dict[str, np.ndarray]

LARGEST = ("codes/jump", "codes/drift")  # of these a line shows the largest step, of all else the last one


def join(parts: Sequence[Mapping[str, Any]]) -> History:
    """Consecutive histories as one."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def line(history: History, *, max_grad_norm: float) -> dict[str, float]:
    """A line of the record: the last step, and what single steps did in between.

    `loss/total_max` and `grad/norm_max` are the largest of any step, `grad/clipped_share` is the share of the steps
    whose gradient was clipped. A NaN among the steps shows in the largest.
    """
    last = {name: values[-1] for name, values in history.items()}
    last |= {name: np.max(history[name]) for name in LARGEST if name in history}
    norms = history["grad/norm"]
    return last | {
        "loss/total_max": np.max(history["loss/total"]),
        "grad/norm_max": np.max(norms),
        "grad/clipped_share": np.mean(norms > max_grad_norm),
    }


def as_json(parts: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Histories that no line shows yet, to be kept in a checkpoint; {} for none."""
    if not parts:
        return {}
    return {name: {"dtype": str(x.dtype), "values": x.tolist()} for name, x in join(parts).items()}


def from_json(saved: Mapping[str, Mapping[str, Any]]) -> list[History]:
    """What `as_json` was given, as at most one history."""
    return [{name: np.array(x["values"], x["dtype"]) for name, x in saved.items()}] if saved else []
