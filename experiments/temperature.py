"""Which bounds should a learned temperature have?

    python -m jepa.ablation --suite=experiments/temperature.py --vmap_seeds

A suite of runs (`jepa.suites`); the answer is in experiments/reports/temperature/report.md.
"""

from experiments._small import CONTRAST, IN_BATCH, PROBES, RANK, WORTH
from jepa.suites import Claim, Metric, Suite


def bounds(low, first, high):
    return {"objective.tau_min": low, "objective.tau": first, "objective.tau_max": high}


SUITE = Suite(
    question="Which bounds should a learned temperature have?",
    config="configs/infonce.py:small",
    overrides=CONTRAST,
    variants={
        "0.07 to 0.15": bounds(0.07, 0.07, 0.15),
        "0.01 to 1": bounds(0.01, 0.07, 1.0),
        "fixed 0.07": bounds(0.07, 0.07, 0.07),
        "fixed 0.2": bounds(0.2, 0.2, 0.2),
    },
    metrics=[
        Metric(IN_BATCH, "val/infonce/in_batch"),
        Metric("temperature", "metric/infonce/tau", source="last", better="neither"),
        Metric("gradient norm, largest", "grad/norm_max", source="largest", better="neither"),
        RANK,
        *PROBES,
    ],
    claims=[
        Claim(
            "gentle bounds, 0.05 to 0.20, keep a rank that is a twentieth above that of 0.07 to 0.15",
            "0.07 to 0.15",
            "effective rank",
            "lower",
            threshold=0.95,
            ratio=True,
        ),
        Claim("and learn a better contrast", "0.07 to 0.15", IN_BATCH, "higher", threshold=WORTH),
        Claim(
            "a learned temperature is better than one fixed at 0.07", "fixed 0.07", IN_BATCH, "higher", threshold=WORTH
        ),
        Claim("and better than one fixed at 0.2", "fixed 0.2", IN_BATCH, "higher", threshold=WORTH),
        Claim(
            "without bounds in its way it settles above 0.05",
            "0.01 to 1",
            "temperature",
            "higher",
            against=None,
            threshold=0.05,
        ),
    ],
    curves=("metric/infonce/tau", "val/infonce/in_batch"),
    remarks="The base has the documents' gentle bounds, 0.05 to 0.20 from 0.07. A model of width 32 and one layer, 200 "
    "steps of 64 examples; chance in the batch is ln 64 = 4.16.",
)
