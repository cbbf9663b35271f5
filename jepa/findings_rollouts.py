"""Rules about the rollouts of a world model and what is decoded of them. Each returns since when it holds and what
shows it, or None.

A policy (`jepa.latent_norm`) should let predicted and encoded latents be of one length; where it does not, whatever was
trained on the ones, the decoder first, is fed others. Thresholds lie between records of healthy and broken small runs.
"""

from __future__ import annotations

import math

import numpy as np

from jepa.findings_record import Held, Record, Series, from_to, judged, lasting, late, named, number, rising

NORM_GAP = 1.25  # times, up or down
UNHELD = ("none", "loss_only", "encoder_only")  # policies under which nothing holds the length of what is encoded
GROWTH = 2.0  # times, since the run has settled ...
STILL_GROWS = 1.1  # ... and times in its second half: a length that finds its place has stopped growing by then
LATENT_NEAR = 0.5  # of the error of copying: a rollout that is right in latent space
DECODED_FAR = 2.0  # times the error of what is decoded of true latents


def last_step(record: Record, name: str) -> int | None:
    """The largest k of the figures `name_k`, the last step of a rollout that the run measures; None without any."""
    ends = [metric.rpartition("_")[2] for metric in named(record, f"{name}_*")]
    return max((int(end) for end in ends if end.isdecimal()), default=None)


def rollout_norm_gap(record: Record) -> Held | None:
    """Predicted latents that are longer or shorter than encoded ones at the last step of a rollout."""
    k = last_step(record, "val/rollout/norm_ratio")
    if k is None:
        return None
    ratio = judged(record, f"val/rollout/norm_ratio_{k}")
    gap = np.abs(np.log(np.maximum(ratio.values, 1e-30)))
    start = lasting(ratio, gap > math.log(NORM_GAP))
    if start is None:
        return None
    return Held(start, f"val/rollout/norm_ratio_{k} {number(ratio.values[-1])} at step {ratio.steps[-1]}")


def latent_norm_drift(record: Record) -> Held | None:
    """A raw length that has grown and goes on growing, under a policy that does not hold it."""
    name, recent = "val/latent/raw_norm", late(record, "val/latent/raw_norm")
    if recent is None or record.config["objective.latent_norm"] not in UNHELD:
        return None
    norm = judged(record, name)
    if not norm.values.min() > 0:
        return None
    grown, grows = norm.values[-1] / norm.values[0], recent.values[-1] / recent.values[0]
    if grown > GROWTH and grows > STILL_GROWS and rising(recent) > 0.8:
        return Held(int(norm.steps[0]), from_to(name, norm))
    return None


def decoder_out_of_distribution(record: Record) -> Held | None:
    """Something is decoded, and predicted latents are of another length than encoded ones; or rollouts that are right
    in latent space are decoded to what is not."""
    return _of_another_length(record) or _misread(record)


def _of_another_length(record: Record) -> Held | None:
    predicted, target = judged(record, "diag/predicted/norm"), judged(record, "diag/target/norm")
    if len(predicted.values) != len(target.values) or not len(target.values):
        return None
    gap = np.abs(np.log(np.maximum(predicted.values, 1e-30) / np.maximum(target.values, 1e-30)))
    start = lasting(predicted, gap > math.log(NORM_GAP))
    if start is None:
        return None
    norms = f"diag/predicted/norm {number(predicted.values[-1])} and diag/target/norm {number(target.values[-1])}"
    return Held(start, f"{norms} at step {predicted.steps[-1]}")


def _misread(record: Record) -> Held | None:
    """A decoded rollout that is further off than the first frame would be, beyond what the decoder does to true
    latents, while the latent is nearer than the first one: a spot in a slightly wrong place is never as wrong."""
    k = last_step(record, "val/decoder/error")
    if k is None:
        return None
    names = ("val/decoder/error", f"val/decoder/error_{k}", f"val/decoder/copy_{k}", f"val/rollout/copy_ratio_{k}")
    if not all(name in record.series for name in names):
        return None
    true, rolled, copy, latent = (judged(record, name) for name in names)
    if not len(true.steps) == len(rolled.steps) == len(copy.steps) == len(latent.steps):
        return None
    far = (rolled.values > DECODED_FAR * true.values) & (rolled.values - true.values > copy.values)
    start = lasting(rolled, far & (latent.values < LATENT_NEAR))
    if start is None:
        return None
    return Held(
        start,
        f"{_at(names[1], rolled)} where true latents have {number(true.values[-1])} and the first frame "
        f"{number(copy.values[-1])}, with {_at(names[3], latent)}",
    )


def _at(name: str, series: Series) -> str:
    return f"{name} {number(series.values[-1])} at step {series.steps[-1]}"
