"""What the reports on discrete codes share: how a run's codes fared over its steps."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from jepa import metrics


def health(workdir: Path) -> dict[str, float]:
    """What a run says of its codes from the first tenth of its steps on: at the end, at worst, and on average."""
    rows = metrics.read_record(workdir / "metrics.jsonl")
    first = rows[-1]["step"] / 10
    evaluated = [row for row in rows if "codes/usage" in row and row["step"] >= first]
    usage = [row["codes/usage"] for row in evaluated]
    last, logged = evaluated[-1], [row for row in rows if "codes/jump" in row and row["step"] > first]
    found = {
        "usage": usage[-1],
        "usage_min": min(usage),
        "usage_drop": max(0.0, *(before - after for before, after in itertools.pairwise(usage))),
        "perplexity": last["codes/perplexity"],
        "alive": last["codes/alive"],
        "jump_max": max(row["codes/jump"] for row in logged),
        "jump": float(np.mean([row["codes/jump"] for row in logged])),
        "drift": float(np.mean([row["codes/drift"] for row in logged])),
        "drift_max": max(row["codes/drift"] for row in logged),
        "churn": last["codes/churn"],
        "rank": last["diag/context/effective_rank"],
        "copy_ratio": last["val/prediction/copy_ratio"],
    }
    return found | {name: last[f"val/codes/{name}"] for name in ("error", "agreement") if f"val/codes/{name}" in last}
