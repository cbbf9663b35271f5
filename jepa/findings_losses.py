"""Rules about the terms of the loss. Each returns since when it holds and what shows it, or None.

What a threshold comes from is said beside it; those without a source lie between records of healthy and broken runs.
"""

from __future__ import annotations

import math

import numpy as np

from jepa.findings_latents import ROLES
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
from jepa.findings_training import REGULARISERS

# Relations: growth over the term's least, or values above any that scale-free relations have (0.1 to 0.7); from this
# share of the total on (0.002 in healthy runs; the documents' alert is 0.13).
EXPLODED, SCALE_FREE, COUNTS = 2.0, 3.0, 0.05
# T / N of rows of length 1 is 0.396 in 256 dimensions, 0.33 in 16 and 0.25 in 8, and at a point 0.402; wide clouds go
# to 1.27. Healthy runs end below 0.2. From batch to batch theirs varies by 0.15 of itself, on a sphere by 0.04.
SPHERE, SATURATED, FLAT = (0.24, 0.45), 1.15, 0.1
WARM, FLOOR = 0.21, 0.35  # a temperature above the bounds in use (0.05 to 0.20), where a match costs a third of chance
AT_CHANCE, EASY = 0.05, 0.3  # nats
DOMINATES, DOMINATED, LOW_RANK = 0.95, 0.02, 0.05  # shares of the total; a rank_ratio below that of healthy runs (0.09)


def relational_explosion(record: Record) -> Held | None:
    """A relational term that grows beyond its own least, or whose values and share only raw distances reach."""
    for term in (name.removeprefix("loss/") for name in named(record, "loss/relational*")):
        value, share = late(record, f"loss/{term}", 4), late(record, f"share/{term}", 4)
        if value is None or share is None:
            continue
        most = float(share.values.max())
        whole = judged(record, f"loss/{term}")
        grown = Series(*(column[np.argmin(whole.values) :] for column in whole))
        least = float(grown.values[0])
        trend = len(grown.steps) >= 4 and rising(grown) > 0.5
        if trend and median(value) > EXPLODED * least and most > COUNTS:
            start = int(grown.steps[np.argmax(grown.values > EXPLODED * least)])
            growth = f"loss/{term} {number(least)} at step {grown.steps[0]}, {number(grown.values.max())} at most since"
            return Held(start, f"{growth}, with a share of {number(most)} at most{ranks(record)}")
        if median(share) > COUNTS and median(value) > SCALE_FREE:
            medians = f"{spoken(f'loss/{term}', value)}, and its share {number(median(share))}"
            return Held(int(value.steps[0]), f"{medians}: relations without a scale cost less than 1")
    return None


def ranks(record: Record) -> str:
    """How the effective rank of the context went meanwhile, where it is known."""
    name = "diag/context/effective_rank"
    return f"; {from_to(name, record.series[name])}" if name in record.series else ""


def sigreg_inert(record: Record) -> Held | None:
    """T / N that lies where unit rows, a point or a cloud far too wide leave it, and does not move."""
    series = late(record, "loss/sigreg", 4)
    if series is None or weight(record, "sigreg") <= 0:
        return None
    if "objective.statistic" in record.config and record.config["objective.statistic"] != "epps_pulley":
        return None  # the levels below are those of its T / N
    first, middle = float(np.median(record.series["loss/sigreg"].values[:2])), median(series)
    on_sphere = SPHERE[0] < middle < SPHERE[1]
    if not (on_sphere or middle > SATURATED) or not np.std(series.values) < FLAT * middle:
        return None
    where = "rows of unit length or a point score 0.40, less in few dimensions" if on_sphere else "far too wide"
    return Held(
        int(record.series["loss/sigreg"].steps[0]),
        f"{spoken('loss/sigreg', series)} and {number(first)} at the start ({where}; N(0, I) scores 1.05 / N), at "
        f"weights.sigreg {number(weight(record, 'sigreg'))}",
    )


def temperature_too_high(record: Record) -> Held | None:
    """A perfect match among K orthogonal negatives costs ln(1 + K exp(-1 / tau)), a large part of ln(1 + K)."""
    tau, chance = judged(record, "metric/infonce/tau"), judged(record, "metric/infonce/chance")
    if not len(tau.steps) or not len(chance.steps):
        return None
    count = math.expm1(min(chance.values[-1], 700.0))
    floors = np.log1p(count * np.exp(-1 / tau.values)) / chance.values[-1]
    start = lasting(tau, (tau.values > WARM) & (floors > FLOOR))
    if start is None:
        return None
    return Held(
        start,
        f"metric/infonce/tau {number(tau.values[-1])} at step {tau.steps[-1]}: among {count:.0f} negatives at right "
        f"angles a perfect match costs {number(floors[-1] * chance.values[-1])} of {number(chance.values[-1])} nats",
    )


def temperature_at_upper_bound(record: Record) -> Held | None:
    return temperature_at_bound(record, "tau_max")


def temperature_at_lower_bound(record: Record) -> Held | None:
    return temperature_at_bound(record, "tau_min")


def temperature_at_bound(record: Record, bound: str) -> Held | None:
    """A temperature that may move, and lies at this bound."""
    tau = judged(record, "metric/infonce/tau")
    low, high = record.config["objective.tau_min"], record.config["objective.tau_max"]
    if low == high:
        return None
    start = lasting(tau, np.isclose(tau.values, record.config[f"objective.{bound}"], rtol=1e-3))
    if start is None:
        return None
    return Held(start, f"metric/infonce/tau {number(tau.values[-1])} at step {tau.steps[-1]}: objective.{bound}")


def stale_negatives(record: Record) -> Held | None:
    """In the batch no better than a guess, over batch and queue better."""
    found = [late(record, f"metric/infonce/{name}") for name in ("in_batch", "in_batch_chance", "gain")]
    if any(series is None for series in found):
        return None
    loss, chance, gain = found
    if not (median(loss) > median(chance) - AT_CHANCE and median(gain) > EASY):
        return None
    return Held(
        int(loss.steps[0]),
        f"{spoken('metric/infonce/in_batch', loss)} at a chance of {number(median(chance))}, while "
        f"metric/infonce/gain over batch and queue is {number(median(gain))} nats",
    )


def regulariser_dominates(record: Record) -> Held | None:
    for term in REGULARISERS:
        share = late(record, f"share/{term}")
        if share is not None and weight(record, term) > 0 and median(share) > DOMINATES:
            return Held(int(share.steps[0]), spoken(f"share/{term}", share))
    return None


def regulariser_dominated(record: Record) -> Held | None:
    """All trained regularisers together have next to no share, at a rank below that of healthy runs."""
    on = [term for term in REGULARISERS if weight(record, term) > 0]
    shares = [late(record, f"share/{term}") for term in on]
    names = [f"diag/{role}/rank_ratio" for role in ROLES]
    ratios = {name: record.series[name].values[-1] for name in names if name in record.series}
    if not on or not ratios or any(share is None for share in shares):
        return None
    lowest, together = min(ratios, key=ratios.get), sum(map(median, shares))
    if not (together < DOMINATED and ratios[lowest] < LOW_RANK):
        return None
    names = " + ".join(f"share/{term}" for term in on)
    return Held(
        int(shares[0].steps[0]),
        f"{names} {number(together)} in the median since step {shares[0].steps[0]}, {lowest} {number(ratios[lowest])}",
    )
