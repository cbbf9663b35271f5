"""Does contrastive prediction need a slow teacher, and does it need a predictor?

    python -m jepa.ablation --suite=experiments/teacher_infonce.py --vmap_seeds

A suite of runs (`jepa.suites`); the answer is in experiments/reports/teacher_infonce/report.md.
"""

from jepa.suites import Claim, Metric, Suite

EDIT, RETRIEVAL = "edit, delta-cosine", "retrieval, delta"

SUITE = Suite(
    question="Does contrastive prediction need a slow teacher, and does it need a predictor?",
    config="configs/infonce.py:small",
    overrides={"num_steps": 200, "eval_every": 50, "checkpoint_every": 100, "diagnose_every": 200},
    variants={
        **{f"EMA {decay:g}": {"target_ema": decay} for decay in (0.9, 0.999)},
        "stopped gradient": {"target_ema": 0.0},
        "pooled predictor": {"objective.predictor": "pooled"},
        "predictor of tokens": {"objective.predictor": "tokens"},
        "no queue": {"objective.queue_size": 1},
    },
    metrics=[
        Metric("InfoNCE in the batch", "val/infonce/in_batch"),
        Metric("effective rank", "diag/context/effective_rank", better="higher"),
        Metric(EDIT, "pooled: rule/arc1/edit/delta_cosine", source="probe", better="higher"),
        Metric(RETRIEVAL, "pooled: retrieval/delta", source="probe", better="higher"),
    ],
    claims=[
        Claim("a teacher of decay 0.99 is better than none", "stopped gradient", "InfoNCE in the batch", "higher"),
        Claim("and its probes are", "stopped gradient", EDIT, "lower"),
        Claim("a slower one is better still", "EMA 0.999", "InfoNCE in the batch", "lower"),
        Claim("a predictor helps", "predictor of tokens", "InfoNCE in the batch", "lower"),
        Claim("a queue of past targets helps", "no queue", "InfoNCE in the batch", "higher"),
    ],
    curves=("val/infonce/in_batch", "diag/context/effective_rank"),
    remarks="The base has the documented teacher, EMA 0.99, no predictor and a queue of 1024. `stopped gradient` is a "
    "teacher of decay 0; a queue of one row is as good as none. A model of width 32 and one layer, 200 steps of 64 "
    "examples, chance in the batch ln 64 = 4.16.",
)
