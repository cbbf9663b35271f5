"""Rules about steps, terms and checkpoints. Each returns since when it holds and what shows it, or None.

What a threshold is is said beside it. Those without a source are set between records of healthy and of broken runs.
"""

from __future__ import annotations

import math

import numpy as np

from jepa.findings_record import Held, Record, Series, lasting, late, named, number, rising, settled, since

REGULARISERS = ("sigreg", "weak_sigreg", "visreg", "vicreg_variance", "vicreg_covariance", "bhep", "norm_anchor")
# Norm of an update over that of the parameters: 0.0002 to 0.002 in healthy runs, 0.01 to 0.03 at 100 times their rate.
UPDATE_STALLED, UPDATE_ANYWAY = 0.006, 0.012
FALLEN = 0.6  # of its first value: a loss that learns is below
# Relations: growth over the term's least that counts at this share of the total; or a share above the documents' alert
# with values above any that scale-free relations have (0.1 to 0.7).
EXPLODED, COUNTS, DOCUMENTED_SHARE, SCALE_FREE = 2.0, 0.05, 0.13, 3.0
# T / N for rows of length 1: 0.396 in 256 dimensions, 0.31 in 16, 0.25 in 8; 0.402 at a point. Wide clouds go to 1.27.
INERT_LOW, INERT_HIGH, SATURATED = 0.24, 0.45, 1.15
STARVED = 0.02
CLIPPED = 0.95  # share of steps
INPUT_SHARE = 0.2


def median(series: Series) -> float:
    return float(np.median(series.values))


def weight(record: Record, term: str) -> float:
    """Of a term in the loss; 0 where it is off or unknown."""
    key = f"weights.{term}"
    return float(record.config[key] or 0.0) if key in record.config else 0.0


def non_finite(record: Record) -> Held | None:
    """Any skipped step: a healthy run has none."""
    skipped = record.series["health/skipped"]
    if not skipped.values[-1] > 0:
        return None
    first = int(skipped.steps[np.argmax(skipped.values > 0)])
    return Held(first, f"health/skipped {number(skipped.values[-1])} of {record.step} steps, the first by step {first}")


def learning_rate_too_high(record: Record) -> Held | None:
    """Updates that are large while the rate is, and a loss that does not fall."""
    ratio = since(record.series["update_ratio"], settled(record))
    ratio = Series(*(column[ratio.steps <= 0.6 * record.num_steps] for column in ratio))
    loss = record.series["loss/total"]
    if len(ratio.steps) < 2 or len(loss.steps) < 4:
        return None
    middle, first = median(ratio), float(np.max(loss.values[:2]))
    now = float(np.median(loss.values[-max(len(loss.values) // 4, 2) :]))
    stalled = not now < FALLEN * first
    if not (middle > UPDATE_ANYWAY or (middle > UPDATE_STALLED and stalled)):
        return None
    return Held(
        int(ratio.steps[0]),
        f"update_ratio {number(middle)} in the median of steps {ratio.steps[0]} to {ratio.steps[-1]}, where 0.001 to "
        f"0.005 is usual; loss/total {number(first)} at the start and {number(now)} at step {loss.steps[-1]}",
    )


def relational_explosion(record: Record) -> Held | None:
    """A relational term that grows beyond its own least, or whose values and share only raw distances reach."""
    for term in (name.removeprefix("loss/") for name in named(record, "loss/relational*")):
        if f"share/{term}" not in record.series:
            continue
        value, share = late(record, f"loss/{term}", 4), late(record, f"share/{term}", 4)
        if value is None or share is None:
            continue
        most = float(share.values.max())
        whole = since(record.series[f"loss/{term}"], settled(record))
        grown = Series(*(column[np.argmin(whole.values) :] for column in whole))
        least = float(grown.values[0])
        trend = len(grown.steps) >= 4 and rising(grown) > 0.5
        if trend and median(value) > EXPLODED * least and most > COUNTS:
            start = int(grown.steps[np.argmax(grown.values > EXPLODED * least)])
            growth = (
                f"loss/{term} {number(least)} at step {grown.steps[0]} and {number(value.values.max())} at most since"
            )
            return Held(start, f"{growth}, with a share of {number(most)} at most{ranks(record)}")
        if median(share) > DOCUMENTED_SHARE and median(value) > SCALE_FREE:
            medians = f"loss/{term} {number(median(value))} and its share {number(median(share))}"
            return Held(
                int(value.steps[0]),
                f"{medians} in the median since step {value.steps[0]}: relations without a scale cost less than 1",
            )
    return None


def ranks(record: Record) -> str:
    """How the effective rank of the context went meanwhile, where it is known."""
    if "diag/context/effective_rank" not in record.series:
        return ""
    rank = record.series["diag/context/effective_rank"]
    return f", while the effective rank went from {number(rank.values[0])} to {number(rank.values[-1])}"


def sigreg_inert(record: Record) -> Held | None:
    """T / N that lies where unit rows, a point or a cloud far too wide leave it, and does not move."""
    if weight(record, "sigreg") <= 0:
        return None
    series = late(record, "loss/sigreg", 4)
    if series is None:
        return None
    middle = median(series)
    early = float(np.median(record.series["loss/sigreg"].values[:2]))
    on_sphere = INERT_LOW < middle < INERT_HIGH and middle > 0.75 * min(early, INERT_HIGH)
    if not on_sphere and middle < SATURATED:
        return None
    if np.std(series.values) > 0.1 * middle:
        return None
    level = "what rows of unit length or a point score (0.40; less in few dimensions)" if on_sphere else "far too wide"
    return Held(
        int(record.series["loss/sigreg"].steps[0]),
        f"loss/sigreg (T / N) {number(early)} at step {record.series['loss/sigreg'].steps[0]} and {number(middle)} in "
        f"the median from step {series.steps[0]} to {series.steps[-1]}: {level}, at weights.sigreg "
        f"{number(weight(record, 'sigreg'))}; N(0, I) scores 1.05 / N",
    )


def temperature_too_high(record: Record) -> Held | None:
    """The loss of a perfect match among orthogonal negatives, ln(1 + K exp(-1 / tau)), is most of chance, ln(1 + K)."""
    tau, chance = late(record, "metric/infonce/tau"), late(record, "metric/infonce/chance")
    if tau is None or chance is None:
        return None
    count = math.expm1(chance.values[-1])
    floors = np.log1p(count * np.exp(-1 / tau.values)) / chance.values[-1]
    start = lasting(tau, floors > 0.48)
    if start is None:
        return None
    return Held(
        start,
        f"metric/infonce/tau {number(tau.values[-1])} at step {tau.steps[-1]}: among {count:.0f} negatives at right "
        f"angles a perfect match still costs {number(floors[-1] * chance.values[-1])} of {number(chance.values[-1])} nats",
    )


def stale_negatives(record: Record) -> Held | None:
    names = ("in_batch", "in_batch_chance", "gain")
    found = [late(record, f"metric/infonce/{name}") for name in names]
    if any(series is None for series in found):
        return None
    loss, chance, gain = (median(series) for series in found)
    if not (loss > chance - 0.05 and gain > 0.3):
        return None
    return Held(
        int(found[0].steps[0]),
        f"metric/infonce/in_batch {number(loss)} against a chance of {number(chance)} in the median from step "
        f"{found[0].steps[0]}, while metric/infonce/gain over batch and queue is {number(gain)} nats",
    )


def temperature_at_bound(record: Record) -> Held | None:
    tau = late(record, "metric/infonce/tau")
    low, high = (float(record.config[f"objective.{name}"]) for name in ("tau_min", "tau_max"))
    if tau is None or low == high:
        return None
    for bound, name in ((low, "tau_min"), (high, "tau_max")):
        start = lasting(tau, np.isclose(tau.values, bound, rtol=1e-3))
        if start is not None:
            return Held(start, f"metric/infonce/tau {number(tau.values[-1])} since step {start}: objective.{name}")
    return None


def regulariser_dominates(record: Record) -> Held | None:
    for term in REGULARISERS:
        share = late(record, f"share/{term}") if f"share/{term}" in record.series else None
        if share is None or weight(record, term) <= 0:
            continue
        if np.median(share.values) > 0.95:
            return Held(
                int(share.steps[0]), f"share/{term} {number(median(share))} in the median since step {share.steps[0]}"
            )
    return None


def regulariser_dominated(record: Record) -> Held | None:
    on = [term for term in REGULARISERS if weight(record, term) > 0 and f"share/{term}" in record.series]
    shares = [late(record, f"share/{term}") for term in on]
    ratios = [record.series[name].values[-1] for name in named(record, "diag/*/rank_ratio")]
    if not on or any(share is None for share in shares) or min(ratios) > 0.05:
        return None
    together = sum(median(share) for share in shares)
    if together > 0.02:
        return None
    return Held(
        int(shares[0].steps[0]),
        f"{' + '.join(f'share/{term}' for term in on)} {number(together)} in the median since step {shares[0].steps[0]}, at a rank_ratio of {number(min(ratios))}",
    )


def term_starved(record: Record) -> Held | None:
    """A trained term that is not a regulariser (which has no gradient once it is met), nor small by its own weight."""
    for name in named(record, "grad_share/*"):
        term, share = name.removeprefix("grad_share/"), late(record, name)
        if share is None or term in REGULARISERS or share.values.max() > STARVED:
            continue
        return Held(
            int(share.steps[0]),
            f"{name} {number(share.values.max())} at most since step {share.steps[0]}, at weights.{term} {number(weight(record, term))}",
        )
    return None


def loss_spike(record: Record) -> Held | None:
    """A loss above twice the largest of the readings around it, once the run has settled."""
    name = "loss/total_max" if "loss/total_max" in record.series else "loss/total"
    spikes = doublings(since(record.series[name], settled(record)), window=5)
    if spikes is None:
        return None
    step, before, after = spikes
    return Held(step, f"{name} {number(after)} at step {step}, at most {number(before)} in the five readings before")


def validation_spike(record: Record) -> Held | None:
    """The documents' alert: a held-out figure of more than twice the previous one."""
    name = record.config["best_metric"]
    if name not in record.series:
        return None
    spikes = doublings(since(record.series[name], settled(record)), window=1)
    if spikes is None:
        return None
    step, before, after = spikes
    return Held(step, f"{name} {number(after)} at step {step}, {number(before)} at the evaluation before")


def doublings(series: Series, *, window: int) -> tuple[int, float, float] | None:
    """The largest reading that is twice all of the `window` before it: step, largest before, reading."""
    found = None
    for i in range(window, len(series.values)):
        before, here = series.values[i - window : i].max(), series.values[i]
        if before > 0 and here > 2 * before and (found is None or here > found[2]):
            found = int(series.steps[i]), float(before), float(here)
    return found


def best_past(record: Record) -> Held | None:
    """The best of a held-out figure lies a tenth of the run back, and the last is over 2 % above it."""
    name = record.config["best_metric"]
    if name not in record.series:
        return None
    series = record.series[name]
    best = int(np.nanargmin(series.values)) if np.isfinite(series.values).any() else 0
    step, least, last = int(series.steps[best]), float(series.values[best]), float(series.values[-1])
    if len(series.values) < 4 or record.step - step < 0.1 * record.num_steps or not last > least + 0.02 * abs(least):
        return None
    return Held(step, f"{name} {number(least)} at step {step}, {number(last)} at step {series.steps[-1]}")


def divergence(record: Record) -> Held | None:
    """The training loss falls over the second half of the run while the held-out figure rises by a tenth.

    A prediction error is measured by that of copying: it also rises where embeddings spread.
    """
    name = record.config["best_metric"]
    if name == "val/prediction" and f"{name}/copy_ratio" in record.series:
        name = f"{name}/copy_ratio"
    if name not in record.series:
        return None
    held_out, total = late(record, name, 4), late(record, "loss/total", 8)
    if held_out is None or total is None:
        return None
    half = len(total.values) // 2
    falls = np.median(total.values[half:]) < 0.98 * np.median(total.values[:half])
    least, last = float(np.min(held_out.values)), float(np.median(held_out.values[-2:]))
    if not (falls and rising(held_out) > 0.5 and last > 1.1 * least):
        return None
    step = int(held_out.steps[np.argmin(held_out.values)])
    return Held(
        step,
        f"{name} {number(least)} at step {step} and {number(last)} at the last evaluations, while loss/total fell from "
        f"{number(float(np.median(total.values[:half])))} to {number(float(np.median(total.values[half:])))}",
    )


def predictor_copies(record: Record) -> Held | None:
    """Predictions that lie within a tenth of the change to be predicted from the last context embedding."""
    if "val/prediction/moved_ratio" in record.series:
        moved = record.series["val/prediction/moved_ratio"]
        start = lasting(moved, moved.values < 0.1)
        if start is None:
            return None
        return Held(
            start, f"val/prediction/moved_ratio {number(moved.values[-1])} at step {moved.steps[-1]}: 0 is a copy"
        )
    ratio = record.series["val/prediction/copy_ratio"]
    start = lasting(ratio, np.abs(ratio.values - 1) < 0.01, 4)
    if start is None:
        return None
    return Held(start, f"val/prediction/copy_ratio between 0.99 and 1.01 since step {start}")


def clipping_saturated(record: Record) -> Held | None:
    """Nearly every step of the second half was clipped. Under Adam a constant factor cancels: healthy runs do it too."""
    norms, bound = late(record, "grad/norm", 4), float(record.config["max_grad_norm"])
    if norms is None:
        return None
    shares = late(record, "grad/clipped_share", 4) if "grad/clipped_share" in record.series else None
    share = float(np.mean(norms.values > bound if shares is None else shares.values))
    if not share >= CLIPPED:
        return None
    middle, name = median(norms), "grad/norm_max" if "grad/norm_max" in record.series else "grad/norm"
    start = lasting(record.series["grad/norm"], record.series["grad/norm"].values > bound)
    return Held(
        int(norms.steps[0]) if start is None else start,
        f"{share:.0%} of the steps since {norms.steps[0]} were clipped; grad/norm {number(middle)} in the median, "
        f"{number(middle / bound)} times max_grad_norm {number(bound)}; {name} "
        f"{number(since(record.series[name], settled(record)).values.max())} at most",
    )


def warmup_unfinished(record: Record) -> Held | None:
    """Judged by the plan, so that it is said before the end."""
    warmup = int(record.config["optimizer.warmup_steps"])
    if warmup < 0.9 * record.num_steps:
        return None
    return Held(0, f"optimizer.warmup_steps {warmup} of {record.num_steps} steps")


def data_starved(record: Record) -> Held | None:
    share = late(record, "time/input_share")
    if share is None or np.median(share.values) < INPUT_SHARE:
        return None
    return Held(
        int(share.steps[0]), f"time/input_share {number(median(share))} in the median since step {share.steps[0]}"
    )
