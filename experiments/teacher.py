"""Does LeJEPA need a teacher, and how much of a predictor?

    python -m jepa.ablation --suite=experiments/teacher.py --vmap_seeds

A suite of runs (`jepa.suites`); the answer is in experiments/reports/teacher/report.md.
"""

from experiments._small import EDIT, PROBES, RANK, length
from jepa.suites import Claim, Metric, Suite

DECAYS = {f"EMA {decay:g}": {"target_ema": decay} for decay in (0.9, 0.99, 0.996, 0.999)}

SUITE = Suite(
    question="Does LeJEPA need a teacher, and how much of a predictor?",
    config="configs/lejepa.py:small",
    overrides=length(200, 50),
    variants={
        **DECAYS,
        "stopped gradient": {"target_ema": 0.0},
        "pooled predictor": {"objective.predictor": "pooled"},
        "pooled, mean": {"objective.predictor": "pooled", "objective.context": "mean"},
    },
    metrics=[
        Metric("error / copy", "val/prediction/copy_ratio"),
        RANK,
        Metric("std", "diag/context/std", better="higher"),
        *PROBES,
    ],
    claims=[
        Claim("a teacher provides stable targets: with one the probes are better", "EMA 0.99", EDIT, "higher"),
        Claim(
            "without a teacher and without a stopped gradient nothing collapses: the std stays above a half",
            "base",
            "std",
            "higher",
            against=None,
            threshold=0.5,
        ),
        Claim("a slower teacher keeps a higher rank", "EMA 0.999", "effective rank", "higher", against="EMA 0.9"),
        Claim(
            "a stopped gradient alone does what a teacher does",
            "stopped gradient",
            EDIT,
            "within",
            against="EMA 0.99",
            margin=0.03,
        ),
        Claim(
            "reading tokens predicts better than reading pooled frames", "pooled predictor", "error / copy", "higher"
        ),
    ],
    curves=("val/prediction/copy_ratio", "diag/context/effective_rank"),
    remarks="The documents keep an EMA target encoder at 0.99 for stable targets, and ask what is lost without. "
    "`stopped gradient` is a teacher of decay 0: the online encoder itself, held constant. The error of copying is "
    "between the context of the one network and the target of the other: two networks that are far apart, as with a "
    "slow teacher, make it large, and error / copy small. A model of width 32 and one layer, 200 steps of 64 examples.",
)
