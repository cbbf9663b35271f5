"""What keeps the length of a latent from drifting, and what becomes of rollouts where it is not kept everywhere?

    python -m jepa.ablation --suite=experiments/z_normalization.py --vmap_seeds

A suite of runs (`jepa.suites`); the answer is in experiments/reports/z_normalization/report.md.
"""

from jepa.suites import Claim, Metric, Suite

GROWTH, LENGTH, DECODED, SEEN, PLANS = (
    "growth of the length",
    "length, last",
    "decoded, 8 steps",
    "decoded, seen",
    "solved by MPPI",
)
WEIGHTS = (0.01, 0.1, 1.0)  # of SIGReg on T / N, beside the base's 10
DRIFTS = 1.1  # times what it is after the warm-up: a length that has drifted
BREAKS = 1.2  # times the error of another decoded rollout: a broken one


def policy(name, sigreg):
    anchored = {"weights.norm_anchor": 1.0} if name == "anchor" else {}
    return {"objective.latent_norm": name, "weights.sigreg": sigreg, **anchored}


def drifts(text, variant, expects):
    """A claim that the raw length grows, or does not, by a tenth after the warm-up."""
    return Claim(text, variant, GROWTH, expects, against=None, threshold=DRIFTS, ratio=True)


def falls(text, variant):
    """A claim that the raw length ends below half of sqrt(16), which N(0, I) has."""
    return Claim(text, variant, LENGTH, "lower", against=None, threshold=2.0)


SUITE = Suite(
    question="What keeps the length of z from drifting, and what becomes of rollouts where it is not kept everywhere?",
    config="configs/world_model.py:two_rooms_tiny",
    overrides={
        "num_steps": 300,
        "batch_size": 32,
        "eval_every": 50,
        "diagnose_every": 6000,
        "planning.methods": ("mppi",),
    },
    variants={
        **{f"none, {weight:g}": policy("none", weight) for weight in WEIGHTS},
        **{f"loss only, {weight:g}": policy("loss_only", weight) for weight in (*WEIGHTS, 10.0)},
        **{f"global, {weight:g}": policy("global", weight) for weight in (0.1, 10.0)},
        **{f"anchor, {weight:g}": policy("anchor", weight) for weight in (0.1, 10.0)},
        "encoder only, 10": policy("encoder_only", 10.0),
    },
    metrics=[
        Metric(GROWTH, "metric/latent/raw_norm", source="growth", better="neither"),
        Metric(LENGTH, "metric/latent/raw_norm", source="last", better="neither"),
        Metric("length of a rollout / true", "val/rollout/norm_ratio_8", better="neither"),
        Metric(SEEN, "val/decoder/error"),
        Metric("decoded, 1 step", "val/decoder/error_1"),
        Metric(DECODED, "val/decoder/error_8"),
        Metric("decoded, copy of 8", "val/decoder/copy_8", better="neither"),
        Metric(PLANS, "planning: mppi", source="probe", better="higher"),
    ],
    claims=[
        drifts("a normalised loss alone does not stop the drift, SIGReg at 0.01", "loss only, 0.01", "higher"),
        drifts("... nor with SIGReg at 0.1", "loss only, 0.1", "higher"),
        drifts("SIGReg at 0.01 does not pin the length", "none, 0.01", "higher"),
        drifts("SIGReg at 0.1 does not pin the length", "none, 0.1", "higher"),
        falls("SIGReg at 0.01 leaves the length to fall", "none, 0.01"),
        falls("and so does 0.1", "none, 0.1"),
        falls("behind a normalised loss too, at 0.01", "loss only, 0.01"),
        falls("and at 0.1", "loss only, 0.1"),
        drifts("SIGReg at 10 pins it", "base", "lower"),
        drifts("an anchor pins it, with SIGReg at 0.1", "anchor, 0.1", "lower"),
        Claim(
            "an encoder that is normalised alone breaks decoded rollouts",
            "encoder only, 10",
            DECODED,
            "higher",
            against="base",
            threshold=BREAKS,
            ratio=True,
        ),
        Claim(
            "the policy that holds everywhere repairs them",
            "encoder only, 10",
            DECODED,
            "higher",
            against="global, 10",
            threshold=BREAKS,
            ratio=True,
        ),
        Claim(
            "plans are better where the policy holds everywhere", "global, 10", PLANS, "higher", against="loss only, 10"
        ),
    ],
    curves=("metric/latent/raw_norm", "val/decoder/error_8", "val/rollout/norm_ratio_8"),
    remarks="The base has the policy `none` and SIGReg at 10; growth is the most after the warm-up over the first. "
    "The documented world model compared unit vectors in its loss, with SIGReg at 0.01 and 0.1, and saw the "
    "length of z grow; scaling what the encoder makes then broke its rollouts. `encoder only` is that: its "
    "error compares directions too. Weights are on T / N; a weight w on T, as papers give it, is 32 w here, with 32 "
    "examples a step: 0.01 and 0.1 of T are 0.3 and 3 of T / N. Decoded errors are squared, per pixel; `copy` is "
    "the first frame, eight steps later. The claims that a length falls were added when the first runs were known: the "
    "documents saw it grow. Two rooms, z of 16 dimensions, 300 steps of 32 episodes.",
)
