"""Rules about embeddings and codes. Each returns since when it holds and what shows it, or None.

What a threshold is is said beside it. Those without a source are set between records of healthy and of broken runs.
"""

from __future__ import annotations

import math

import numpy as np

from jepa.findings_record import Held, Record, Series, lasting, named, number, rising, settled, since

ROLES = ("context", "target", "projected", "views")  # predictions may well vary less than what they predict
FREE_ROLES = ("context", "target", "views")  # projections may be of unit length by construction
SPREAD = 0.02  # share of the mean square of embeddings that is not that of their mean
RANK, RANK_SHARE = 2.0, 0.04  # an effective rank below both of these (the larger) is a collapse ...
RANK_FALL, RANK_LOW = 0.35, 0.2  # ... and so is a fall to this share of its own peak, at this rank_ratio
DRIFT = 1.5  # of the norm over the second half of a run, steadily
USAGE = 0.15  # the documents' alert, over 8192 tokens
# Squared change of quantised values by one step of the quantizer, over their variance: 0.04 with a careful refresh, 0.44
# to 0.52 with one that overwrites living codes.
JUMP, LEAP = 0.1, 0.4


def point_collapse(record: Record) -> Held | None:
    for role in ROLES:
        names = [f"diag/{role}/{name}" for name in ("norm", "mean_norm", "std")]
        if not all(name in record.series for name in names):
            continue
        norm, mean_norm, std = (record.series[name] for name in names)
        spread = 1 - np.square(mean_norm.values / np.where(norm.values > 0, norm.values, np.inf))
        spread = np.where(norm.values > 0, spread, 0.0)
        start = lasting(norm, spread < SPREAD)
        if start is None:
            continue
        return Held(
            start,
            f"diag/{role}/std {number(std.values[0])} at step {std.steps[0]} and {number(std.values[-1])} at step "
            f"{std.steps[-1]}, where the mean embedding has {number(mean_norm.values[-1])} of a norm of "
            f"{number(norm.values[-1])}",
        )
    return None


def dimensional_collapse(record: Record) -> Held | None:
    worst = None
    for role in ROLES:
        name = f"diag/{role}/effective_rank"
        if name not in record.series:
            continue
        rank = since(record.series[name], settled(record))
        if len(rank.steps) < 3:
            continue
        expected = record.series[f"{name}_expected"].values[-1] if f"{name}_expected" in record.series else math.nan
        floor = max(RANK, RANK_SHARE * expected) if expected > 2 * RANK else RANK
        peak = np.maximum.accumulate(rank.values)
        fallen = (rank.values < RANK_FALL * peak) & ~(rank.values > RANK_LOW * expected)
        start = lasting(rank, (rank.values < floor) | fallen)
        if start is not None and (worst is None or rank.values[-1] < worst[0]):
            of = f", where N(0, I) has {number(expected)}" if math.isfinite(expected) else ""
            worst = (
                rank.values[-1],
                Held(
                    start,
                    f"{name} {number(peak[-1])} at most and {number(rank.values[-1])} at step {rank.steps[-1]}{of}",
                ),
            )
    return None if worst is None else worst[1]


def norm_drift_up(record: Record) -> Held | None:
    return norm_drift(record, 1)


def norm_drift_down(record: Record) -> Held | None:
    return norm_drift(record, -1)


def norm_drift(record: Record, sign: int) -> Held | None:
    """A norm that keeps growing (1) or shrinking (-1): over the second half, at nearly every evaluation."""
    for role in FREE_ROLES:
        name = f"diag/{role}/norm"
        if name not in record.series:
            continue
        norm = since(record.series[name], max(settled(record), record.step / 2))
        if len(norm.steps) < 3 or norm.values.min() <= 0:
            continue
        change = float(norm.values[-1] / norm.values[0]) ** sign
        if change > DRIFT and sign * rising(norm) > 0.8:
            return Held(
                int(norm.steps[0]),
                f"{name} {number(norm.values[0])} at step {norm.steps[0]} and {number(norm.values[-1])} at step "
                f"{norm.steps[-1]}, {number(rising(norm))} of the way monotone",
            )
    return None


def num_codes(record: Record) -> float:
    """How many codes there are, where the config tells; else infinity."""
    config = record.config
    if "quantizer.num_codes" in config:
        return float(config["quantizer.num_codes"])
    return float(np.prod(config["quantizer.levels"])) if "quantizer.levels" in config else math.inf


def reachable(record: Record) -> float:
    """The usage that as many uniform tokens as were counted would show: 1 - exp(-tokens / codes)."""
    if "codes/window" not in record.series or not math.isfinite(num_codes(record)):
        return 1.0
    return -math.expm1(-float(record.series["codes/window"].values[-1]) / num_codes(record))


def codebook_collapse(record: Record) -> Held | None:
    """Usage below the alert at three evaluations or more, and a tenth of them, once the run has settled."""
    usage = since(record.series["codes/usage"], settled(record))
    low = usage.values < USAGE * reachable(record)
    if low.sum() < max(3, len(low) / 10):
        return None
    return Held(
        int(usage.steps[np.argmax(low)]),
        f"codes/usage below {number(USAGE * reachable(record))} at {low.sum()} of {len(low)} evaluations since step "
        f"{usage.steps[0]}, {number(usage.values.min())} at least and {number(usage.values[-1])} at step {usage.steps[-1]}",
    )


def codebook_discontinuity(record: Record) -> Held | None:
    """A leap of the quantised values, or usage that leaps up and falls back, once the run has settled."""
    if "codes/jump" in record.series:
        jump = since(record.series["codes/jump"], settled(record))
        if len(jump.steps) and jump.values.max() > LEAP:
            return leap(jump)
    usage = since(record.series["codes/usage"], settled(record)) if "codes/usage" in record.series else None
    if usage is None:
        return None
    for i in range(1, len(usage.values) - 1):
        before, here, after = usage.values[i - 1 : i + 2]
        if here > 1.5 * max(before, after) and here > 0.1:
            return Held(
                int(usage.steps[i]),
                f"codes/usage {number(before)}, {number(here)} and {number(after)} at steps {usage.steps[i - 1]}, "
                f"{usage.steps[i]} and {usage.steps[i + 1]}",
            )
    return None


def leap(jump: Series) -> Held:
    largest, above = int(np.argmax(jump.values)), jump.values > JUMP
    return Held(
        int(jump.steps[np.argmax(above)]),
        f"codes/jump {number(jump.values[largest])} at step {jump.steps[largest]}, of the variance of the quantised "
        f"values; above {JUMP} at {above.sum()} of {len(above)} readings since step {jump.steps[0]}",
    )


def codebook_jumps(record: Record) -> Held | None:
    jump = since(record.series["codes/jump"], settled(record))
    if not len(jump.steps) or not JUMP < jump.values.max() <= LEAP:
        return None
    return leap(jump)


def codebooks_disagree(record: Record) -> Held | None:
    agreement = since(record.series["val/codes/agreement"], settled(record))
    start = lasting(agreement, agreement.values < 0.5)
    if start is None or rising(agreement) > 0.5:
        return None
    return Held(start, f"val/codes/agreement {number(agreement.values[-1])} at step {agreement.steps[-1]}")


def decoder_out_of_distribution(record: Record) -> Held | None:
    """Norms that differ by a quarter, where something is decoded."""
    if not any(named(record, pattern) for pattern in ("loss/decoder*", "loss/reconstruction*", "detached/decoder*")):
        return None
    predicted, target = record.series["diag/predicted/norm"], record.series["diag/target/norm"]
    if len(predicted.values) != len(target.values):
        return None
    gap = np.abs(np.log(np.maximum(predicted.values, 1e-30) / np.maximum(target.values, 1e-30)))
    start = lasting(predicted, gap > math.log(1.25))
    if start is None:
        return None
    return Held(
        start,
        f"diag/predicted/norm {number(predicted.values[-1])} and diag/target/norm {number(target.values[-1])} at step {predicted.steps[-1]}",
    )
