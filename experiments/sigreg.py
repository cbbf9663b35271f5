"""How much SIGReg, on what, and is it better than its relatives?

    python -m jepa.ablation --suite=experiments/sigreg.py --vmap_seeds

A suite of runs (`jepa.suites`); the answer is in experiments/reports/sigreg/report.md.
"""

from experiments._small import EDIT, PROBES, RANK, length
from jepa.suites import Claim, Metric, Suite

WEIGHTS = {f"weight {weight:g}": {"weights.sigreg": weight} for weight in (0.1, 1.0, 3.0, 30.0, 100.0)}
SLICES = {f"{num} slices": {"objective.num_slices": num} for num in (64, 1024, 4096)}
# As many examples in all, in larger batches: fewer steps. In T / N the weight does not know of N; in units of T, a
# published weight on T is N times as much on T / N. VICReg's weights are the paper's 25 : 25 : 1, its covariance here a
# mean over the entries.
BATCHES = {
    f"batch {size}, {units}": {
        "batch_size": size,
        "num_steps": 200 * 64 // size,
        "weights.sigreg": 10.0 if units == "T / N" else 10.0 * size / 64,
        "steps_per_call": steps,
        "log_every": steps,
        "eval_every": 200 * 64 // size,
        "checkpoint_every": 200 * 64 // size,
        "optimizer.warmup_steps": max(1, 30 * 64 // size),
    }
    for size, steps in ((256, 10), (512, 5), (1024, 4))
    for units in ("T / N", "T")
}
RELATIVES = {
    "VICReg": {"weights.sigreg": None, "weights.vicreg_variance": 1.0, "weights.vicreg_covariance": 2.5},
    "Weak-SIGReg": {"weights.sigreg": None, "weights.weak_sigreg": 0.1},
    "VISReg": {"weights.sigreg": None, "weights.visreg": 1.0},
}


def holds_scale(text, variant, expects):
    """A claim about the standard deviation, which is 1 under N(0, I): on which side of a half it is."""
    return Claim(text, variant, "std", expects, against=None, threshold=0.5)


SUITE = Suite(
    question="How much SIGReg, on what, and is it better than its relatives?",
    config="configs/lejepa.py:small",
    overrides=length(200, 50),
    variants={
        **WEIGHTS,
        **SLICES,
        "unit rows": {"objective.unit_sigreg": True},
        "behind a projector": {"objective.projector_dim": 64},
        **BATCHES,
        **RELATIVES,
    },
    metrics=[
        Metric("error / copy", "val/prediction/copy_ratio"),
        RANK,
        Metric("std", "diag/context/std", better="higher"),
        Metric("T / N", "diag/context/sigreg_T_over_N", better="neither"),
        *PROBES,
    ],
    claims=[
        Claim(
            "SIGReg on unit vectors works as intended: the rank is within a tenth of that on raw ones",
            "unit rows",
            "effective rank",
            "within",
            margin=1.1,
            ratio=True,
        ),
        Claim(
            "a weight of 0.1 is too weak to hold the rank",
            "weight 0.1",
            "effective rank",
            "lower",
            threshold=0.95,
            ratio=True,
        ),
        holds_scale("it holds the scale of unit vectors", "unit rows", "higher"),
        holds_scale("a weight of 0.1 is too weak to hold the scale", "weight 0.1", "lower"),
        Claim("the weight is flat from 3 ...", "weight 3", EDIT, "within", margin=0.03),
        Claim("... to 30", "weight 30", EDIT, "within", margin=0.03),
        Claim(
            "a weight of 100 raises the rank", "weight 100", "effective rank", "higher", threshold=1 / 0.95, ratio=True
        ),
        Claim("64 slices are enough", "64 slices", "effective rank", "within", margin=1.1, ratio=True),
        Claim("VICReg does no worse by the probes", "VICReg", EDIT, "higher", threshold=-0.03),
        Claim("VISReg does no worse by the probes", "VISReg", EDIT, "higher", threshold=-0.03),
    ],
    curves=("val/prediction/copy_ratio", "diag/context/effective_rank"),
    remarks="The documented system put SIGReg, at weight 0.1, on unit vectors, and called its constant value stable. "
    "Weights are on T / N, the statistic over the number of embeddings. A model of width 32 and one layer, 200 steps "
    "of 64 examples; larger batches see as many examples in fewer steps. The two claims about scale were added when "
    "the runs were known: where the scale collapses, the rank does not tell.",
)
