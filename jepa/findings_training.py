"""Rules about steps, gradients and checkpoints. Each returns since when it holds and what shows it, or None.

What a threshold comes from is said beside it; those without a source lie between records of healthy and broken runs.
"""

from __future__ import annotations

import numpy as np

from jepa.findings_record import (
    Held,
    Record,
    Series,
    from_to,
    judged,
    lasting,
    late,
    median,
    named,
    number,
    rising,
    spoken,
    weight,
)

REGULARISERS = ("sigreg", "weak_sigreg", "visreg", "vicreg_variance", "vicreg_covariance", "bhep", "norm_anchor")
# Norm of an update over that of the parameters: 0.0002 to 0.003 in healthy runs, 0.01 to 0.03 at 100 times their rate.
# Between the two only a loss that does not fall below this part of its start tells.
UPDATE_STALLED, UPDATE_ANYWAY, FALLEN = 0.005, 0.008, 0.6
STARVED = 0.03  # of the gradient on the trunk: "a few per cent"
CLIPPED = 0.95  # of the steps
SPIKE = 2.0  # times the readings before: the documents' alert
WORSE, DIVERGED = 0.02, 0.1  # above the best held-out figure, as a share of it
COPIED = 0.1  # of the distance between last context and target: how far a prediction moves
INPUT_SHARE = 0.2  # of the wall time


def non_finite(record: Record) -> Held | None:
    """Any skipped step: a healthy run has none."""
    skipped = record.series["health/skipped"]
    if not skipped.values[-1] > 0:
        return None
    first = int(skipped.steps[np.argmax(skipped.values > 0)])
    return Held(first, f"health/skipped {number(skipped.values[-1])} of {record.step} steps, the first by step {first}")


def learning_rate_too_high(record: Record) -> Held | None:
    """Updates that are large while the rate has not decayed; where they are only suspect, a loss that does not fall."""
    ratio = judged(record, "update_ratio")
    ratio = Series(*(column[ratio.steps <= 0.7 * record.num_steps] for column in ratio))
    loss = record.series["loss/total"]
    if not len(ratio.steps) or len(loss.steps) < 4:
        return None
    first = float(np.max(loss.values[:2]))
    now = float(np.median(loss.values[-max(len(loss.values) // 4, 2) :]))
    if not (median(ratio) > UPDATE_ANYWAY or (median(ratio) > UPDATE_STALLED and not now < FALLEN * first)):
        return None
    return Held(
        int(ratio.steps[0]),
        f"{spoken('update_ratio', ratio)}, where 0.0002 to 0.003 is usual; loss/total {number(first)} at the start and "
        f"{number(now)} in the last quarter",
    )


def term_starved(record: Record) -> Held | None:
    """Trained terms without a share of the gradient; not regularisers, which have none once they are met."""
    starved: list[str] = []
    since = record.step
    for name in named(record, "grad_share/*"):
        term, share = name.removeprefix("grad_share/"), late(record, name, 2)
        if share is None or term in (*REGULARISERS, "quantizer") or not share.values.max() < STARVED:
            continue
        since = min(since, int(share.steps[0]))
        most = f"{name} {number(share.values.max())} at most since step {share.steps[0]}"
        starved.append(f"{most}, at weights.{term} {number(weight(record, term))}")
    return Held(since, "; ".join(starved)) if starved else None


def clipping_saturated(record: Record) -> Held | None:
    """Nearly every step of the second half was clipped."""
    norms, bound = late(record, "grad/norm", 4), float(record.config["max_grad_norm"])
    if norms is None:
        return None
    shares = late(record, "grad/clipped_share", 4)
    share = float(np.mean(norms.values > bound if shares is None else shares.values))
    if not share >= CLIPPED:
        return None
    largest = "grad/norm_max" if "grad/norm_max" in record.series else "grad/norm"
    start = lasting(record.series["grad/norm"], record.series["grad/norm"].values > bound)
    return Held(
        int(norms.steps[0]) if start is None else start,
        f"{share:.0%} of the steps since {norms.steps[0]} were clipped: {spoken('grad/norm', norms)}, "
        f"{number(median(norms) / bound)} times max_grad_norm {number(bound)}; {largest} "
        f"{number(judged(record, largest).values.max())} at most",
    )


def warmup_unfinished(record: Record) -> Held | None:
    """Judged by the plan, so that it is said before the end."""
    warmup = int(record.config["optimizer.warmup_steps"])
    if warmup < 0.9 * record.num_steps:
        return None
    return Held(0, f"optimizer.warmup_steps {warmup} of {record.num_steps} steps")


def data_starved(record: Record) -> Held | None:
    share = late(record, "time/input_share")
    if share is None or not median(share) > INPUT_SHARE:
        return None
    return Held(int(share.steps[0]), spoken("time/input_share", share))


def loss_spike(record: Record) -> Held | None:
    """A loss above twice the largest of the five readings before it."""
    name = "loss/total_max" if "loss/total_max" in record.series else "loss/total"
    return spike(name, judged(record, name), window=5)


def validation_spike(record: Record) -> Held | None:
    """A held-out figure above twice the one before it."""
    name = record.config["best_metric"]
    return spike(name, judged(record, name), window=1)


def spike(name: str, series: Series, *, window: int) -> Held | None:
    """The largest reading that exceeds twice every one of the `window` before it."""
    found = None
    for i in range(window, len(series.values)):
        before, here = series.values[i - window : i].max(), series.values[i]
        if before > 0 and here > SPIKE * before and (found is None or here > series.values[found]):
            found = i
    if found is None:
        return None
    step, before = int(series.steps[found]), series.values[found - window : found].max()
    return Held(
        step,
        f"{name} {number(series.values[found])} at step {step}, {number(before)} at most at the {window} before"
        if window > 1
        else f"{name} {number(series.values[found])} at step {step}, {number(before)} at the evaluation before",
    )


def best_past(record: Record) -> Held | None:
    """The best of the held-out figure lies a tenth of the run back, and the last is worse.

    A prediction error is measured by that of copying as well: it also rises where embeddings spread.
    """
    name = record.config["best_metric"]
    series = record.series[name]
    if len(series.values) < 4 or not np.isfinite(series.values).any():
        return None
    best = int(np.nanargmin(series.values))
    least, last, step = series.values[best], series.values[-1], int(series.steps[best])
    if record.step - step < 0.1 * record.num_steps or not last > least + WORSE * abs(least):
        return None
    if name == "val/prediction" and f"{name}/copy_ratio" in record.series:
        ratio = record.series[f"{name}/copy_ratio"].values
        if len(ratio) == len(series.values) and not ratio[-1] > (1 + WORSE) * ratio[best]:
            return None
    return Held(step, f"{name} {number(least)} at step {step} and {number(last)} at step {series.steps[-1]}")


def divergence(record: Record) -> Held | None:
    """The training loss falls over the second half of the run while the held-out figure rises.

    A prediction error is measured by that of copying: it also rises where embeddings spread.
    """
    name = record.config["best_metric"]
    if name == "val/prediction" and f"{name}/copy_ratio" in record.series:
        name = f"{name}/copy_ratio"
    held_out, total = late(record, name, 4), late(record, "loss/total", 8)
    if held_out is None or total is None:
        return None
    half = len(total.values) // 2
    before, after = float(np.median(total.values[:half])), float(np.median(total.values[half:]))
    least, last = int(np.argmin(held_out.values)), float(np.median(held_out.values[-2:]))
    if not (after < 0.98 * before and rising(held_out) > 0.5 and last > (1 + DIVERGED) * held_out.values[least]):
        return None
    best = Series(*(column[least:] for column in held_out))
    return Held(
        int(best.steps[0]), f"{from_to(name, best)}, while loss/total fell from {number(before)} to {number(after)}"
    )


def predictor_copies(record: Record) -> Held | None:
    """Predictions that hardly move from the last context embedding, or else an error equal to that of copying."""
    moved = "val/prediction/moved_ratio"
    name = moved if moved in record.series else "val/prediction/copy_ratio"
    if name not in record.series:
        return None
    ratio = judged(record, name)
    start = lasting(ratio, ratio.values < COPIED if name == moved else np.abs(ratio.values - 1) < 0.01, 4)
    if start is None:
        return None
    return Held(start, f"{name} {number(ratio.values[-1])} at step {ratio.steps[-1]}; a copy has {int(name != moved)}")
