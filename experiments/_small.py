"""What the suites of small runs share: how long they are, and the figures that most of them compare."""

from jepa.suites import Metric

EDIT, RETRIEVAL, IN_BATCH = "edit, delta-cosine", "retrieval, delta", "InfoNCE in the batch"
WORTH = 0.05  # nats of it that are worth a claim: paired seeds tell apart what is a millionth of that
RANK = Metric("effective rank", "diag/context/effective_rank", better="higher")
PROBES = (
    Metric(EDIT, "pooled: rule/arc1/edit/delta_cosine", source="probe", better="higher"),
    Metric(RETRIEVAL, "pooled: retrieval/delta", source="probe", better="higher"),
)


def length(num_steps: int, eval_every: int) -> dict[str, int]:
    """Runs of so many steps, evaluated so often and saved every 100; the gradients of single terms, which take as long
    to compile as the steps to run, are left out."""
    return {
        "num_steps": num_steps,
        "eval_every": eval_every,
        "checkpoint_every": 100,
        "diagnose_every": 10 * num_steps,
    }


# Of the three suites about the contrast, which have their base in common; the temperature and the clip are asked about
# through gradients, so those are not left out.
CONTRAST = length(200, 50) | {"diagnose_every": 200}
