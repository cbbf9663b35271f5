"""Does the relational loss explode, does normalising it stop that, and does it help at all?

    python -m jepa.ablation --suite=experiments/relational.py --vmap_seeds

A suite of runs (`jepa.suites`); the answer is in experiments/reports/relational/report.md.
"""

from experiments._small import EDIT, IN_BATCH, PROBES, RANK, RETRIEVAL, WORTH, length
from jepa.suites import Claim, Metric, Suite

GROWTH = "growth since the warm-up"


def weighted(weight):
    """The documented proportion of the two terms: 0.025 to the target, 0.01 within the context."""
    return {"weights.relational": weight, "weights.relational_context": 0.4 * weight}


def grows(text, variant, expects, times):
    """A claim that the term grows to more, or less, than so many times what it is after the warm-up."""
    return Claim(text, variant, GROWTH, expects, against=None, threshold=times, ratio=True)


SUITE = Suite(
    question="Does the relational loss explode, does normalising it stop that, and does it help at all?",
    config="configs/infonce.py:small",
    overrides=length(300, 100),
    variants={
        "none": {"weights.relational": None, "weights.relational_context": None},
        "raw": {"objective.relation_normalize": "none"},
        "raw, only reported": {"objective.relation_normalize": "none", **weighted(0.0)},
        "by variance": {"objective.relation_normalize": "variance"},
        "only reported": weighted(0.0),
        "weight 0.0025": weighted(0.0025),
        "weight 0.05": weighted(0.05),
        "weight 1": weighted(1.0),
    },
    metrics=[
        Metric(GROWTH, "loss/relational", source="growth", better="neither"),
        Metric("relational, last", "loss/relational", source="last", better="neither"),
        Metric("share of the loss", "share/relational", source="last", better="neither"),
        Metric(IN_BATCH, "val/infonce/in_batch"),
        RANK,
        *PROBES,
    ],
    claims=[
        grows("raw distances explode: the term grows threefold", "raw", "higher", 3.0),
        grows("they explode although nothing trains on them", "raw, only reported", "higher", 3.0),
        grows("division by the mean distance stops it: at most one and a half", "base", "lower", 1.5),
        grows("division by the variance stops it", "by variance", "lower", 1.5),
        Claim(
            "the raw term costs what the contrast learns", "raw", IN_BATCH, "higher", against="none", threshold=WORTH
        ),
        Claim("the normalised term helps a probe of rules", "base", EDIT, "higher", against="none"),
        Claim("and same-task retrieval", "base", RETRIEVAL, "higher", against="none"),
        Claim("nothing is lost without it", "none", IN_BATCH, "lower", threshold=WORTH),
    ],
    curves=("loss/relational", "val/infonce/in_batch"),
    remarks="The document's term compares squared distances under a squared error, so it is quartic in the scale of "
    "the embeddings; it saw it rise from 0.35 to 1.10 of a total of 8.5, over 7600 steps. The base divides distances "
    "by their mean. A model of width 32 and one layer, 300 steps of 64 examples.",
)
