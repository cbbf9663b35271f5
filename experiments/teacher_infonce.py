"""Does contrastive prediction need a slow teacher, and does it need a predictor?

    python -m jepa.ablation --suite=experiments/teacher_infonce.py --vmap_seeds

A suite of runs (`jepa.suites`); the answer is in experiments/reports/teacher_infonce/report.md.
"""

from experiments._small import CONTRAST, EDIT, IN_BATCH, PROBES, RANK, WORTH
from jepa.suites import Claim, Metric, Suite

SUITE = Suite(
    question="Does contrastive prediction need a slow teacher, and does it need a predictor?",
    config="configs/infonce.py:small",
    overrides=CONTRAST,
    variants={
        **{f"EMA {decay:g}": {"target_ema": decay} for decay in (0.9, 0.999)},
        "stopped gradient": {"target_ema": 0.0},
        "pooled predictor": {"objective.predictor": "pooled"},
        "predictor of tokens": {"objective.predictor": "tokens"},
        "no queue": {"objective.queue_size": 1},
    },
    metrics=[
        Metric(IN_BATCH, "val/infonce/in_batch"),
        RANK,
        *PROBES,
    ],
    claims=[
        Claim("a teacher of decay 0.99 is better than none", "stopped gradient", IN_BATCH, "higher", threshold=WORTH),
        Claim("and its probes are", "stopped gradient", EDIT, "lower"),
        Claim("a slower one is better still", "EMA 0.999", IN_BATCH, "lower", threshold=-WORTH),
        Claim("a predictor helps", "predictor of tokens", IN_BATCH, "lower", threshold=-WORTH),
        Claim("a queue of past targets helps", "no queue", IN_BATCH, "higher", threshold=WORTH),
    ],
    curves=("val/infonce/in_batch", "diag/context/effective_rank"),
    remarks="The base has the documented teacher, EMA 0.99, no predictor and a queue of 1024. `stopped gradient` is a "
    "teacher of decay 0; a queue of one row is as good as none. A model of width 32 and one layer, 200 steps of 64 "
    "examples, chance in the batch ln 64 = 4.16.",
)
