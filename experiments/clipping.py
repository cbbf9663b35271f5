"""Does clipping the gradient slow AdamW down?

    python -m jepa.ablation --suite=experiments/clipping.py --vmap_seeds

A suite of runs (`jepa.suites`); the answer is in experiments/reports/clipping/report.md.
"""

from experiments._small import CONTRAST, IN_BATCH, PROBES, RANK, WORTH
from jepa.suites import Claim, Metric, Suite


def slows(text, variant):
    return Claim(text, variant, IN_BATCH, "higher", threshold=WORTH)


SUITE = Suite(
    question="Does clipping the gradient slow AdamW down?",
    config="configs/infonce.py:small",
    overrides=CONTRAST,
    variants={
        "clip 0.5": {"max_grad_norm": 0.5},
        "clip 0.01": {"max_grad_norm": 0.01},
        "none": {"max_grad_norm": 1e9},
    },
    metrics=[
        Metric(IN_BATCH, "val/infonce/in_batch"),
        Metric("share of clipped steps", "grad/clipped_share", source="last", better="neither"),
        Metric("gradient norm, largest", "grad/norm_max", source="largest", better="neither"),
        RANK,
        *PROBES,
    ],
    claims=[
        slows("a clip at 0.5 slows learning against one at 1.0", "clip 0.5"),
        slows("a clip at a hundredth, the rate that the documents say 0.5 left, slows it", "clip 0.01"),
        Claim("without a clip the contrast is as good", "none", IN_BATCH, "within", margin=WORTH),
    ],
    curves=("val/infonce/in_batch", "grad/norm"),
    remarks="The documents clip at 0.5, see norms of 7 to 82 before that, and conclude that the learning rate fell by "
    "a factor of 100; under Adam a constant factor of the gradient nearly cancels. The base clips at 1.0. A model of "
    "width 32 and one layer, 200 steps of 64 examples.",
)
