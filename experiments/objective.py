"""Which objective, and how little of it, is enough?

    python -m jepa.ablation --suite=experiments/objective.py --vmap_seeds

A suite of runs (`jepa.suites`); the answer is in experiments/reports/objective/report.md.
"""

from configs import infonce
from configs.lejepa_codes import QUANTIZERS
from experiments._small import EDIT, PROBES, RANK, RETRIEVAL, length
from jepa.suites import Claim, Metric, Suite

CONTRASTIVE = infonce.get_config("small")
HARD = "hard, delta-cosine"
DOCUMENTED_CODES = {"decay": 0.95, "commitment": 0.15, "initialise": "documented", "smoothing": 1e-5}


def contrastive(objective=(), weights=(), **keys):
    """The sections of configs/infonce.py, with changes: the documents' objective and its teacher."""
    return {
        "objective": CONTRASTIVE.objective.to_dict() | dict(objective),
        "weights": CONTRASTIVE.weights.to_dict() | dict(weights),
        "target_ema": 0.99,
        "best_metric": "val/infonce/in_batch",
        "max_grad_norm": 0.5,
    } | keys


def codes(quantizer, **fields):
    return {"quantizer": {"name": quantizer, **QUANTIZERS[quantizer], **fields}, "init_batches": 2}


AS_IT_WAS = contrastive(
    objective={"unit_sigreg": True, "relation_normalize": "none"},
    weights={"sigreg": 0.1, "invariance": 0.1, "quantizer": 0.0},
    **codes("vq_ema", **DOCUMENTED_CODES, refresh="documented", refresh_every=50),
)
AS_INTENDED = contrastive(
    objective={"relation_normalize": "mean"},
    weights={"sigreg": 10.0, "invariance": 0.1, "quantizer": 1.0},
    **codes("vq_ema", commitment=0.15),
)
WITHOUT_CODES = contrastive(objective={"relation_normalize": "mean"}, weights={"sigreg": 10.0, "invariance": 0.1})

SUITE = Suite(
    question="Which objective, and how little of it, is enough?",
    config="configs/lejepa.py:small",
    overrides=length(300, 100),
    variants={
        "documented, as it was": AS_IT_WAS,
        "documented, as intended": AS_INTENDED,
        "documented, without codes": WITHOUT_CODES,
        "InfoNCE alone": contrastive(weights={"relational": None, "relational_context": None, "sigreg": None}),
        "LeJEPA, FSQ": codes("fsq") | {"weights.quantizer": 1.0},
        "LeJEPA, EMA VQ": codes("vq_ema") | {"weights.quantizer": 1.0},
        "LeJEPA, one vector": {"encoder.pooling": "mean"},
        "LeJEPA, pooled": {"objective.predictor": "pooled"},
    },
    metrics=[
        RANK,
        Metric("usage of codes", "codes/usage", better="higher"),
        PROBES[0],
        Metric("edit, L2", "pooled: rule/arc1/edit/analogy_l2", source="probe", better="higher"),
        Metric(HARD, "pooled: rule/arc1/hard/delta_cosine", source="probe", better="higher"),
        PROBES[1],
        Metric("diagonal symmetry", "pooled: facts/diagonal", source="probe", better="higher"),
    ],
    claims=[
        Claim(
            "the documented run, as it was, keeps a higher rank than LeJEPA",
            "documented, as it was",
            "effective rank",
            "higher",
            threshold=1 / 0.95,
            ratio=True,
        ),
        Claim(
            "its faults cost its probes: as intended it matches rules better",
            "documented, as intended",
            EDIT,
            "higher",
            against="documented, as it was",
        ),
        Claim(
            "codes cost the documented run its probes",
            "documented, without codes",
            EDIT,
            "higher",
            against="documented, as intended",
        ),
        Claim(
            "LeJEPA, with one weight, matches rules no worse than the documented run as intended",
            "documented, as intended",
            EDIT,
            "lower",
            threshold=0.03,
        ),
        Claim("and finds tasks again no worse", "documented, as intended", RETRIEVAL, "lower", threshold=0.05),
        Claim(
            "a contrast alone is no worse than the documents' sum of terms",
            "InfoNCE alone",
            EDIT,
            "higher",
            against="documented, without codes",
            threshold=-0.03,
        ),
        Claim("codes cost LeJEPA same-task retrieval", "LeJEPA, FSQ", RETRIEVAL, "lower"),
    ],
    curves=("diag/context/effective_rank",),
    remarks="The documented run as it was: InfoNCE with a teacher and a queue, SIGReg at 0.1 on unit vectors, raw "
    "relations, a quantizer whose loss is not in the total, its start and its refresh rule, clip 0.5. As intended: "
    "SIGReg at 10 on raw embeddings, scale-free relations, a quantizer that starts from data and trains. Controls that "
    "learn nothing are in the probes of every run, and in experiments/reports/lejepa. A model of width 32 and one "
    "layer, 300 steps of 64 examples.",
)
