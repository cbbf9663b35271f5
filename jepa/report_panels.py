"""The panels of the report: the curves of each, their title, and what is good or bad in them.

A panel names metrics that a run may not have; `jepa.report_curves` picks those that it has.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations
from typing import NamedTuple

ROLES = ("context", "target", "predicted", "projected", "views")
TOTALS = ("total", "total_max")


class Curve(NamedTuple):
    """One metric. `beside` is drawn dashed in its colour; `low` and `high` bound a band around it."""

    label: str
    metric: str
    beside: str | None = None
    low: str | None = None
    high: str | None = None

    def metrics(self) -> list[str]:
        return [name for name in (self.metric, self.beside, self.low, self.high) if name is not None]


class Panel(NamedTuple):
    """One figure. `at` are levels to hold the curves against; `log` asks for a logarithmic axis where it helps."""

    title: str
    caption: str
    curves: tuple[Curve, ...]
    log: bool = False
    at: tuple[float, ...] = ()
    zero: bool = False  # the axis starts at 0


# What is good or bad in the value of a term; any other is lower, the better, and says no more.
TERMS = {
    "prediction": "Mean squared error per dimension in latent space. Low is good only while scale and rank hold.",
    "sigreg": "Distance from N(0, I), T/N. About 1.05/N is as good as it gets; 0.402 is collapse to a point.",
    "infonce": "Nats, queue included. It can fall below chance with nothing matched: read the in-batch loss too.",
    "relational": "Difference of the distances between objects, in units of their mean; low is good.",
    "quantizer": "What the quantizer asks for itself, such as commitment; it should stay small.",
    "norm_anchor": "Relative distance of the norms from their target; low is good.",
}


def terms_of(names: Collection[str]) -> list[str]:
    """The loss terms of a record, in its order."""
    found = (name.removeprefix("loss/") for name in names if name.startswith("loss/"))
    return [term for term in found if term not in TOTALS]


def loss(names: Sequence[str]) -> list[Panel]:
    total = Curve("largest since the last", "loss/total_max"), Curve("of the logged step", "loss/total")
    panels = [Panel("Total loss", "The weighted sum that is trained on. Twice the level before is a spike.", total)]
    for term in terms_of(names):
        caption = TERMS[term] if term in TERMS else "As it is, without its weight; low is good."
        curves = (Curve("training", f"loss/{term}"), Curve("held out", f"val/{term}"))
        panels.append(Panel(f"Term {term}", f"{caption} Held out rising alone is overfitting.", curves))
    share = "What each term is of the total, 0 to 1. A term near 1 has the loss, not always the gradient, to itself."
    return [
        *panels,
        Panel("Weighted terms", "Each term times its weight: what the total is the sum of.", _all("weighted/", names)),
        Panel("Share of the loss", share, _all("share/", names), zero=True),
    ]


def prediction() -> list[Panel]:
    copy = "Mean error over that of copying the last context embedding: 1 is no better than copying, 0 exact."
    ratios = Curve("training", "metric/prediction/copy_ratio"), Curve("held out", "val/prediction/copy_ratio")
    errors = Curve("prediction", "val/prediction"), Curve("copying", "val/prediction/copy")
    gain = Curve("demonstration gain", "diag/demo_gain", None, "diag/demo_gain_low", "diag/demo_gain_high")
    return [
        Panel("Error over copying", copy, ratios, at=(1.0,), zero=True),
        Panel("Error beside copying", "Held-out errors. Copying falling to 0 is collapse, not progress.", errors),
        Panel("How far it moves", "Distance of the prediction from the last context embedding, over the error of "
              "copying: 0 is a predictor that is the identity.",
              (Curve("moved", "val/prediction/moved_ratio"),), zero=True),
        Panel("Worth of the demonstration", "Share of the error that the task's own demonstration takes away, against "
              "another task's; band: 95 % over tasks. 0 is a predictor that ignores it.", (gain,), at=(0.0,)),
    ]  # fmt: skip


def contrast(names: Sequence[str]) -> list[Panel]:
    """Panels of a contrastive objective, and of the kinds of negatives that its validation lists."""
    both = (("training", "metric"), ("held out", "val"))
    in_batch = (Curve(label, f"{of}/infonce/in_batch", f"{of}/infonce/in_batch_chance") for label, of in both)
    accuracy = (Curve(label, f"{of}/infonce/in_batch_accuracy") for label, of in both)
    gain = Curve("with the queue", "metric/infonce/gain"), Curve("in the batch", "metric/infonce/in_batch_gain")
    kinds = [name.split("/")[1] for name in names if name.startswith("val/") and name.endswith("/chance")]
    against = "Held out, nats, against listed negatives; dashed: chance. At chance they are not told apart."
    return [
        Panel("Contrast in the batch", "Nats; dashed: chance. At chance nothing is matched.", tuple(in_batch)),
        Panel("Matched in the batch", "Share of rows whose target is ranked first; 1 over the batch by chance.",
              tuple(accuracy), zero=True),
        Panel("Gain over chance", "Nats. A gain with the queue and none in the batch: only old rows are told apart.",
              gain, at=(0.0,)),
        _one("Temperature", "metric/infonce/tau", "A temperature that stays at its bound is not learned."),
        *(Panel(f"Contrast: {kind.replace('_', ' ')}", against,
                (Curve("loss", f"val/{kind}/infonce", f"val/{kind}/chance"),))
          for kind in kinds if kind != "infonce"),
    ]  # fmt: skip


def rollouts(names: Sequence[str]) -> list[Panel]:
    """Panels of a world model, held out, a curve for each step of a rollout that is measured."""

    def by_step(figure: str) -> tuple[Curve, ...]:
        found = [name.removeprefix(f"{figure}_") for name in names if name.startswith(f"{figure}_")]
        steps = sorted(int(step) for step in found if step.isdecimal())
        return tuple(Curve(f"step {step}", f"{figure}_{step}") for step in steps)

    of, decoded = "val/rollout", by_step("val/decoder/error")
    copies = tuple(Curve(c.label, c.metric, c.metric.replace("/error_", "/copy_")) for c in decoded)
    return [
        Panel("Rollout over copying", "Latent error of a rollout over that of its first latent: 1 is no better than "
              "standing still.", by_step(f"{of}/copy_ratio"), at=(1.0,), zero=True),
        Panel("Rollout over the mean", "The same over the error of the batch's mean: 1 knows nothing of the row.",
              by_step(f"{of}/mean_ratio"), at=(1.0,), zero=True),
        Panel("Rollout error", "Latent error per dimension.", by_step(f"{of}/error"), log=True),
        Panel("Length of a rollout", "Length of predicted over that of true latents: away from 1, what reads them is "
              "shown what it was not trained on.", by_step(f"{of}/norm_ratio"), at=(1.0,)),
        Panel("Direction of a rollout", "Cosine of predicted and true latents.", by_step(f"{of}/cosine"), at=(1.0,)),
        Panel("Rank of a rollout", "Directions that predicted latents fill over those of true ones, by participation: "
              "below 1, a rollout forgets what tells states apart.", by_step(f"{of}/rank_ratio"), at=(1.0,), zero=True),
        _one("Raw length", "val/latent/raw_norm", "Mean length of what the encoder makes, before the policy. A steady "
             "climb is drift.", zero=True),
        Panel("Decoded frames", "Error of what is decoded of true latents: squared per pixel, or the share of wrong "
              "cells.",
              (Curve("of true latents", "val/decoder/error"),), log=True),
        Panel("Decoded rollouts", "The same of a rollout; dashed: of showing its first frame.", copies, log=True),
    ]  # fmt: skip


def _by_role(name: str, **options) -> tuple[Curve, ...]:
    """A curve for each set of embeddings; options are the names of what is drawn with it."""
    return tuple(
        Curve(role, f"diag/{role}/{name}", **{key: f"diag/{role}/{other}" for key, other in options.items()})
        for role in ROLES
    )


def latents() -> list[Panel]:
    spread = "Over dimensions: mean, band from smallest to largest. 1 is N(0, I); 0 is collapse."
    one_of = "1 is what N(0, I) scores for this N and D; near 0 few directions carry all."
    return [
        Panel("Effective rank", "Directions in use; dashed: what N(0, I) scores for this N and D.",
              _by_role("effective_rank", beside="effective_rank_expected"), zero=True),
        Panel("Rank over expectation", one_of, _by_role("rank_ratio"), zero=True),
        *(Panel(f"Standard deviation, {curve.label}", spread, (curve,), at=(1.0,), zero=True)
          for curve in _by_role("std", low="std_min", high="std_max")),
        Panel("Norm", "Mean length of an embedding: sqrt(D) for N(0, I). A steady climb or fall is drift.",
              _by_role("norm")),
        Panel("Spread of the norm", "Standard deviation of the lengths over their mean; 0 is points on a sphere.",
              _by_role("norm_spread"), zero=True),
        Panel("Offset of the mean", "Length of the mean embedding: 0 for N(0, I).", _by_role("mean_norm"), zero=True),
        Panel("RankMe", "The published form, by singular values: higher is more directions; compare like with like.",
              _by_role("rankme"), zero=True),
        Panel("Participation ratio", "Directions in use by squared eigenvalues: D/(1 + D/N) for N(0, I).",
              _by_role("participation_ratio"), zero=True),
        Panel("Decay of the spectrum", "Exponent alpha of the eigenvalues' power law: about 1 is rich, far above 1 "
              "few directions.", _by_role("alpha")),
        Panel("Condition number", "Largest over smallest eigenvalue; high is a nearly flat cloud.",
              _by_role("condition"), log=True),
        Panel("Dead dimensions", "Directions without variance; 0 is good.", _by_role("dead_dims"), zero=True),
        Panel("Gaussianity T", "About 1.05 when N(0, I) holds, at any N; above 4.6 it does not (99 %).",
              _by_role("sigreg_T"), log=True, at=(1.05,)),
        Panel("T over N", "The same per row, as it is trained on: 0.402 at collapse to a point, 1.27 at wide spread.",
              _by_role("sigreg_T_over_N"), zero=True),
        Panel("Skewness", "0 for a Gaussian.", _by_role("skew"), at=(0.0,)),
        Panel("Excess kurtosis", "0 for a Gaussian; high is a few far outliers.", _by_role("excess_kurtosis"),
              at=(0.0,)),
        Panel("Uniformity", "Of unit rows: 0 when all point one way, about -4 + 8/D when they fill the sphere evenly.",
              _by_role("uniformity")),
        _one("Alignment", "diag/alignment", "Mean squared distance of pairs of unit rows, 0 to 4; 0 is all alike, "
             "which collapse is too."),
        _one("Online accuracy", "val/online_accuracy", "Held-out accuracy of a linear probe that is trained beside the "
             "run and has no say in it.", zero=True),
        _one("LiDAR", "diag/views/lidar", "Rank of what tells scenes apart across views; higher is better.",
             zero=True),
        _one("Teacher's lag", "diag/target_drift", "Relative distance of the teacher's parameters from the online "
             "ones; small and shrinking is good.", zero=True),
    ]  # fmt: skip


def codes(names: Sequence[str]) -> list[Panel]:
    usage = Curve("usage", "codes/usage"), Curve("alive", "codes/alive")
    agree = Curve("training", "metric/codes/agreement"), Curve("held out", "val/codes/agreement")
    quantizer = tuple(c for c in _all("metric/codes/", names) if c.label != "agreement")
    return [
        Panel("Usage", "Share of the codes that occur over a fixed window; alive: above a tenth of the mean count. "
              "Below 0.15 most of the codebook is gone.", usage, zero=True),
        _one("Perplexity", "codes/perplexity", "How many evenly used codes would say as much; higher is better.",
             zero=True),
        _one("Dead codes", "codes/dead", "Codes that do not occur in the window; the fewer the better.", zero=True),
        Panel("Jump and drift", "Largest change of quantised values in one step over their variance: jump by the "
              "quantizer alone, which should stay near 0, drift by the whole step.",
              (Curve("drift", "codes/drift"), Curve("jump", "codes/jump")), log=True, zero=True),
        _one("Churn", "codes/churn", "Share of held-out codes that changed since the last evaluation.", zero=True),
        Panel("Agreement", "Share of tokens to which online encoder and teacher give one code; 1 is full agreement.",
              agree, zero=True),
        *(Panel(f"Quantizer: {c.label}", "Of the logged training step.", (c,)) for c in quantizer),
    ]  # fmt: skip


def gradients(names: Sequence[str]) -> list[Panel]:
    terms = terms_of(names)
    norms = (
        Curve("largest", "grad/norm_max"),
        Curve("before clipping", "grad/norm"),
        Curve("after", "grad/norm_clipped"),
    )
    by_module: dict[str, list[Curve]] = {}
    for term in terms:
        for name in names:
            if name.startswith(f"grad/{term}/"):
                by_module.setdefault(name.removeprefix(f"grad/{term}/"), []).append(Curve(term, name))
    pairs = (pair for a, b in combinations(sorted(terms), 2) for pair in ((a, b), (b, a)))
    updates = Curve("all", "update_ratio"), *_below("update_ratio/", names)
    return [
        Panel("Gradient norm", "Of the whole gradient. After clipping it is at most max_grad_norm; the largest is that "
              "of the steps since the last log.", norms, log=True),
        _one("Share of steps clipped", "grad/clipped_share", "1: every step is clipped, and the clip sets its length.",
             zero=True),
        Panel("Gradient on the trunk", "Norm of each weighted term's gradient on the shared trunk.",
              tuple(Curve(term, f"grad/{term}") for term in terms), log=True),
        Panel("Share of the gradient", "Of the sum of those norms; a term of a few per cent does not shape the trunk.",
              tuple(Curve(term, f"grad_share/{term}") for term in terms), zero=True),
        Panel("Cosine between gradients", "On the trunk: 1 pull alike, 0 independent, -1 against each other.",
              tuple(Curve(f"{a} · {b}", f"grad_cosine/{a}/{b}") for a, b in pairs), at=(0.0,)),
        *(Panel(f"Gradient on {module}", "Norm of each weighted term's gradient there.", tuple(curves), log=True)
          for module, curves in by_module.items()),
        Panel("Update over parameters", "Relative length of one update; around 0.001 is usual, 0.1 tears.",
              updates, log=True),
    ]  # fmt: skip


def pace() -> list[Panel]:
    waits = [
        Curve(label, f"time/{name}")
        for label, name in (
            ("data", "input_share"),
            ("evaluation", "evaluation_share"),
            ("diagnosis", "diagnosis_share"),
        )
    ]
    skipped = Curve("so far", "health/skipped"), Curve("in a row", "health/consecutive")
    return [
        _one("Learning rate", "optimizer/learning_rate", "Of the logged step; still rising at the end, warm-up is too "
             "long.", zero=True),
        _one("Decay of the teacher", "target_ema", "Share of itself that the teacher keeps at each step."),
        Panel("Skipped steps", "Steps that were not finite and changed nothing; 0 is good.", skipped, zero=True),
        _one("Seconds per step", "time/step_seconds", "Wall time of one training step.", zero=True),
        Panel("Share of the time", "Of the wall time since the last log. Much waiting for data starves the device.",
              tuple(waits), zero=True),
    ]  # fmt: skip


def _all(prefix: str, names: Sequence[str]) -> tuple[Curve, ...]:
    """A curve for every metric directly below a prefix."""
    below = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    return tuple(Curve(label, prefix + label) for label in below if "/" not in label)


def _one(title: str, metric: str, caption: str, **options) -> Panel:
    return Panel(title, caption, (Curve(title.lower(), metric),), **options)


def _below(prefix: str, names: Sequence[str]) -> list[Curve]:
    """A curve for every metric below a prefix, at any depth."""
    return [Curve(name.removeprefix(prefix), name) for name in names if name.startswith(prefix)]
