"""Rules about embeddings and codes. Each returns since when it holds and what shows it, or None.

What a threshold comes from is said beside it; those without a source lie between records of healthy and broken runs.
"""

from __future__ import annotations

import math

import numpy as np

from jepa.findings_record import Held, Record, Series, from_to, judged, lasting, late, number, rising, since

ROLES = ("context", "target", "projected", "views")  # predictions may well vary less than what they predict
FREE_ROLES = ("context", "target", "views")  # projections may be of unit length by construction
SPREAD = 0.02  # 1 - (norm of the mean / mean norm)^2: 0.2 to 1 in healthy runs
# A collapse is an effective rank below 2 (0.3 of what N(0, I) has for that N and D, where it has little), or below 0.04
# of that (healthy runs: 0.09 and more), or a fall to 0.35 of its own peak at a rank_ratio below 0.2.
RANK, RANK_SMALL, RANK_SHARE, RANK_FALL, RANK_LOW = 2.0, 0.3, 0.04, 0.35, 0.2
DRIFT = 1.5  # times, over the second half of a run and steadily
USAGE = 0.15  # the documents' alert
# Squared change of quantised values by one step of the quantizer, over their variance: 0.04 with a careful refresh,
# 0.44 to 0.52 with one that overwrites living codes.
JUMP, LEAP = 0.1, 0.4
FINDS_ITS_PLACE = 0.2  # of a run: what leaps in it is a codebook that starts, and a warning only
USAGE_LEAP = 1.5  # times the evaluations before and after
AGREEMENT = 0.5  # of the tokens


def point_collapse(record: Record) -> Held | None:
    """Embeddings that differ from their mean by a small share of its norm."""
    for role in ROLES:
        names = [f"diag/{role}/{name}" for name in ("std", "norm", "mean_norm")]
        if not all(name in record.series for name in names):
            continue
        std, norm, mean_norm = (judged(record, name) for name in names)
        share = mean_norm.values / np.where(norm.values > 0, norm.values, 1.0)
        start = lasting(norm, np.where(norm.values > 0, 1 - np.square(share), 0.0) < SPREAD)
        if start is not None:
            return Held(start, f"{from_to(names[0], std)}; {names[2]} is {number(share[-1])} of {names[1]}")
    return None


def dimensional_collapse(record: Record) -> Held | None:
    """An effective rank near 1, far below its expectation, or fallen from its own peak: of the lowest role."""
    worst: tuple[float, Held] | None = None
    for role in ROLES:
        name = f"diag/{role}/effective_rank"
        rank, expectation = judged(record, name), judged(record, f"{name}_expected")
        if len(rank.steps) < 3:
            continue
        expected = float(expectation.values[-1]) if len(expectation.steps) else math.nan
        floor = max(min(RANK, RANK_SMALL * expected), RANK_SHARE * expected) if expected > 0 else RANK
        peak = np.maximum.accumulate(rank.values)
        fallen = (rank.values < RANK_FALL * peak) & ~(rank.values > RANK_LOW * expected)
        start = lasting(rank, (rank.values < floor) | fallen)
        if start is not None and (worst is None or rank.values[-1] < worst[0]):
            of = f", where N(0, I) has {number(expected)}" if math.isfinite(expected) else ""
            said = f"{name} {number(peak[-1])} at most and {number(rank.values[-1])} at step {rank.steps[-1]}{of}"
            worst = float(rank.values[-1]), Held(start, said)
    return None if worst is None else worst[1]


def norm_drift_up(record: Record) -> Held | None:
    return norm_drift(record, 1)


def norm_drift_down(record: Record) -> Held | None:
    return norm_drift(record, -1)


def norm_drift(record: Record, sign: int) -> Held | None:
    """A norm that keeps growing (1) or shrinking (-1) over the second half, at nearly every evaluation."""
    for role in FREE_ROLES:
        norm = late(record, f"diag/{role}/norm")
        if norm is None or not norm.values.min() > 0:
            continue
        if (norm.values[-1] / norm.values[0]) ** sign > DRIFT and sign * rising(norm) > 0.8:
            return Held(int(norm.steps[0]), from_to(f"diag/{role}/norm", norm))
    return None


def num_codes(record: Record) -> float:
    """How many codes there are, where the config tells; else infinity."""
    config = record.config
    if "quantizer.num_codes" in config:
        return float(config["quantizer.num_codes"])
    return float(np.prod(config["quantizer.levels"])) if "quantizer.levels" in config else math.inf


def reachable(record: Record) -> float:
    """The usage that as many uniform tokens as were counted show: 1 - exp(-tokens / codes)."""
    window = judged(record, "codes/window")
    if not len(window.steps) or not math.isfinite(num_codes(record)):
        return 1.0
    return -math.expm1(-float(window.values[-1]) / num_codes(record))


def codebook_collapse(record: Record) -> Held | None:
    """Usage below the alert at three evaluations or more, and a tenth of them, the second half not without one."""
    usage, alert = judged(record, "codes/usage"), USAGE * reachable(record)
    low = usage.values < alert
    if low.sum() < max(3, len(low) / 10) or not low[len(low) // 2 :].any():
        return None
    return Held(
        int(usage.steps[np.argmax(low)]),
        f"codes/usage below {number(alert)} at {low.sum()} of {len(low)} evaluations since step {usage.steps[0]}, "
        f"{number(usage.values.min())} at least and {number(usage.values[-1])} at step {usage.steps[-1]}",
    )


def codebook_discontinuity(record: Record) -> Held | None:
    """A leap of the quantised values; or of the usage, up and back."""
    usage, jump = judged(record, "codes/usage"), judged(record, "codes/jump")
    jump = since(jump, FINDS_ITS_PLACE * record.num_steps)
    if len(jump.steps) and jump.values.max() > LEAP:
        return leap(jump)
    for i in range(1, len(usage.values) - 1):
        before, here, after = usage.values[i - 1 : i + 2]
        if here > USAGE_LEAP * max(before, after) and here > USAGE:
            values = f"{number(before)}, {number(here)} and {number(after)}"
            steps = ", ".join(str(step) for step in usage.steps[i - 1 : i + 2])
            return Held(int(usage.steps[i]), f"codes/usage {values} at steps {steps}")
    return None


def codebook_jumps(record: Record) -> Held | None:
    """Jumps that are no such leaps."""
    jump = judged(record, "codes/jump")
    late_ones = since(jump, FINDS_ITS_PLACE * record.num_steps).values
    leaps = len(late_ones) and late_ones.max() > LEAP
    return leap(jump) if len(jump.steps) and jump.values.max() > JUMP and not leaps else None


def leap(jump: Series) -> Held:
    largest, above = int(np.argmax(jump.values)), jump.values > JUMP
    return Held(
        int(jump.steps[np.argmax(above)]),
        f"codes/jump {number(jump.values[largest])} at step {jump.steps[largest]}, of the variance of the quantised "
        f"values; above {JUMP} at {above.sum()} of {len(above)} readings since step {jump.steps[0]}",
    )


def codebooks_disagree(record: Record) -> Held | None:
    """Few tokens with equal codes, and not more and more of them, as while a teacher catches up."""
    agreement = judged(record, "val/codes/agreement")
    start = lasting(agreement, agreement.values < AGREEMENT, 6)
    if start is None or rising(agreement) > 0.5:
        return None
    return Held(start, f"val/codes/agreement {number(agreement.values[-1])} at step {agreement.steps[-1]}")
