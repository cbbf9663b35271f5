"""The rules by which `jepa.findings` judges a run: the table RULES, causes before symptoms.

The functions that judge are in `findings_training` (steps, gradients, checkpoints), `findings_losses` (the terms),
`findings_latents` (embeddings and codes) and `findings_rollouts` (of world models), each with what its thresholds come
from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jepa import findings_latents as latents
from jepa import findings_losses as losses
from jepa import findings_rollouts as rollouts
from jepa import findings_training as training
from jepa.findings_record import Held, Record


class Rule(NamedTuple):
    """One row of the table. `judge` is asked only where everything that `needs` names is there."""

    name: str
    seriousness: str  # serious, warning or note
    needs: tuple[str, ...]  # metrics, by name or pattern; see `findings_record.has`
    judge: Callable[[Record], Held | None]
    cause: str
    remedy: str


RULES = (
    Rule(
        "non-finite-steps",
        "serious",
        ("health/skipped",),
        training.non_finite,
        "A loss or a gradient was not finite; such steps are skipped, and nothing is learned in them.",
        "lower optimizer.learning_rate, or the weight of the term that the run names; compute_dtype = float32",
    ),
    Rule(
        "learning-rate-too-high",
        "serious",
        ("update_ratio", "loss/total"),
        training.learning_rate_too_high,
        "Every step moves the parameters by a share of their norm that leaves nothing of what was learned before.",
        "optimizer.learning_rate 10 to 100 times lower; optimizer.warmup_steps",
    ),
    Rule(
        "relational-explosion",
        "serious",
        ("loss/relational*", "share/relational*"),
        losses.relational_explosion,
        "Raw squared distances, compared by squared error, are quartic in the scale of the embeddings: the term grows "
        "as they spread, and pays for shrinking them.",
        'objective.relation_normalize = "mean"; a lower weights.relational and weights.relational_context',
    ),
    Rule(
        "sigreg-inert",
        "serious",
        ("loss/sigreg", "config:weights.sigreg"),
        losses.sigreg_inert,
        "SIGReg sees embeddings it cannot pull towards N(0, I): rows of unit length, or a scale so small or large that "
        "the test has no gradient.",
        "give SIGReg embeddings that are not normalised; for a drifted scale weights.norm_anchor = 0.1",
    ),
    Rule(
        "temperature-too-high",
        "serious",
        ("metric/infonce/tau", "metric/infonce/chance"),
        losses.temperature_too_high,
        "At this temperature unit vectors cannot tell the positive from so many negatives: the loss is bounded from "
        "below however well they match.",
        "objective.tau, tau_min and tau_max as in configs/infonce.py: 0.07, 0.05 and 0.20",
    ),
    Rule(
        "stale-negatives",
        "serious",
        ("metric/infonce/in_batch", "metric/infonce/in_batch_chance", "metric/infonce/gain"),
        losses.stale_negatives,
        "The gain over chance comes from the queue alone, whose old rows are told apart by their age: nothing is "
        "matched.",
        "a smaller objective.queue_size; a target_ema nearer to 1; judge by best_metric = val/infonce/in_batch",
    ),
    Rule(
        "codebook-discontinuity",
        "serious",
        ("codes/*",),
        latents.codebook_discontinuity,
        "The codebook moves at once, as by a refresh that takes living codes for dead ones: what the codes meant is "
        "lost, and the encoder has to follow.",
        'quantizer.refresh = "split" or "none"; quantizer.name = "fsq", which has no codebook',
    ),
    Rule(
        "point-collapse",
        "serious",
        ("diag/*/std", "diag/*/norm", "diag/*/mean_norm"),
        latents.point_collapse,
        "All inputs are given nearly the same embedding, which is easy to predict: nothing holds them apart.",
        "weights.sigreg = 10, or 2 to 30; or a teacher by target_ema = 0.996",
    ),
    Rule(
        "dimensional-collapse",
        "serious",
        ("diag/*/effective_rank",),
        latents.dimensional_collapse,
        "The embeddings vary along a few directions only: the others are lost to what is predicted and to any probe.",
        "a larger weights.sigreg (2 to 30); weights.vicreg_covariance; a lower optimizer.learning_rate",
    ),
    Rule(
        "codebook-collapse",
        "serious",
        ("codes/usage",),
        latents.codebook_collapse,
        "A few codes stand for everything: the others lost their tokens early and no gradient reaches them.",
        'quantizer.name = "fsq" (configs/lejepa_codes.py); with vq_ema quantizer.initialise = "data" and '
        'quantizer.refresh = "split"; fewer quantizer.num_codes',
    ),
    Rule(
        "regulariser-dominates",
        "warning",
        ("share/*",),
        losses.regulariser_dominates,
        "Nearly all of the loss is a regulariser, which is not met all the same: the prediction hardly counts.",
        "a lower weight of that term in weights, such as weights.sigreg = 2",
    ),
    Rule(
        "regulariser-dominated",
        "warning",
        ("share/*", "diag/*/rank_ratio"),
        losses.regulariser_dominated,
        "The regularisers are too weak against the other terms to hold scale and rank.",
        "a larger weight of that term in weights, such as weights.sigreg = 10",
    ),
    Rule(
        "norm-drift-up",
        "warning",
        ("diag/*/norm",),
        latents.norm_drift_up,
        "Nothing holds the length of the embeddings, as where the loss only sees unit vectors: it grows, and the "
        "effective step shrinks with its square.",
        "weights.norm_anchor = 0.1, or weights.sigreg = 10",
    ),
    Rule(
        "norm-drift-down",
        "warning",
        ("diag/*/norm",),
        latents.norm_drift_down,
        "The embeddings shrink towards the origin, where every prediction is right.",
        "weights.sigreg = 10, or weights.norm_anchor = 0.1",
    ),
    Rule(
        "codebook-jumps",
        "warning",
        ("codes/jump",),
        latents.codebook_jumps,
        "Single updates of the quantizer move what it decodes to: codes are reassigned while they are in use.",
        'a larger quantizer.decay (0.99); quantizer.refresh_every; quantizer.name = "fsq"',
    ),
    Rule(
        "codebooks-disagree",
        "warning",
        ("val/codes/agreement",),
        latents.codebooks_disagree,
        "Online encoder and teacher give the same object different codes: they are two vocabularies.",
        "a lower target_ema, so that the teacher follows; a lower optimizer.learning_rate; one codebook for both",
    ),
    Rule(
        "term-starved",
        "warning",
        ("grad_share/*",),
        training.term_starved,
        "A term with a weight contributes next to nothing to the gradient of the shared trunk: it is reported, not "
        "trained on.",
        "a larger weight of that term in weights, or none to take it out",
    ),
    Rule(
        "loss-spike",
        "warning",
        ("loss/total",),
        training.loss_spike,
        "A step or a batch threw the run back.",
        "a lower optimizer.learning_rate or max_grad_norm; see the events of the run folder",
    ),
    Rule(
        "validation-spike",
        "warning",
        ("metric:best_metric",),
        training.validation_spike,
        "The held-out figure more than doubled from one evaluation to the next.",
        "a lower optimizer.learning_rate or max_grad_norm; with codes see their jumps",
    ),
    Rule(
        "train-validation-divergence",
        "warning",
        ("metric:best_metric", "loss/total"),
        training.divergence,
        "The run fits its training tasks at the expense of others.",
        "fewer num_steps; a larger optimizer.weight_decay; a smaller encoder; data.d4, data.palette, data.translation",
    ),
    Rule(
        "temperature-at-upper-bound",
        "warning",
        ("metric/infonce/tau", "config:objective.tau_min", "config:objective.tau_max"),
        losses.temperature_at_upper_bound,
        "The learned temperature would rise further than it may: the loss asks for softer comparisons, as where the "
        "positives cannot be told.",
        "a larger objective.tau_max, or a lower optimizer.learning_rate; see metric/infonce/in_batch",
    ),
    Rule(
        "predictor-copies",
        "warning",
        ("val/prediction/copy_ratio",),
        training.predictor_copies,
        "The predictor returns the last context embedding: it predicts that nothing changes.",
        'objective.predictor = "tokens"; a larger objective.predictor_dim or predictor_depth',
    ),
    Rule(
        "rollout-norm-gap",
        "warning",
        ("val/rollout/norm_ratio_*",),
        rollouts.rollout_norm_gap,
        "Predicted latents are not of the length of encoded ones: step by step a rollout leaves what the dynamics, the "
        "decoder and the planner were trained on.",
        'objective.latent_norm = "global", which holds both alike; or "anchor" with weights.norm_anchor = 0.1',
    ),
    Rule(
        "latent-norm-drift",
        "warning",
        ("val/latent/raw_norm", "config:objective.latent_norm"),
        rollouts.latent_norm_drift,
        "The length of what the encoder makes keeps growing, and the policy of this run does not hold it.",
        'objective.latent_norm = "global"; or "anchor" with weights.norm_anchor = 0.1; or weights.sigreg = 10',
    ),
    Rule(
        "decoder-out-of-distribution",
        "warning",
        ("*/decoder*", "diag/predicted/norm", "diag/target/norm"),
        rollouts.decoder_out_of_distribution,
        "The decoder is trained on encoded latents and fed predicted ones unlike them, in length or otherwise: what it "
        "shows of a rollout is not what the rollout says.",
        'objective.latent_norm = "global", so that both are of one length; weights.sigreg_predicted = 1; meanwhile '
        "judge rollouts by their latents, not by their pictures",
    ),
    Rule(
        "warmup-unfinished",
        "warning",
        ("config:optimizer.warmup_steps",),
        training.warmup_unfinished,
        "The learning rate is still being raised when the run ends, and never reaches its value or its decay.",
        "fewer optimizer.warmup_steps (a tenth of num_steps), or more num_steps",
    ),
    Rule(
        "data-starved",
        "warning",
        ("time/input_share",),
        training.data_starved,
        "The device waits for data.",
        "a larger steps_per_call; a cache_dir on a fast disk; a smaller batch_size",
    ),
    Rule(
        "clipping-saturated",
        "note",
        ("grad/norm", "config:max_grad_norm"),
        training.clipping_saturated,
        "Nearly every gradient is longer than max_grad_norm; under Adam a constant factor cancels, so this alone is "
        "harmless.",
        "a larger max_grad_norm, if clipping is to be for outliers",
    ),
    Rule(
        "temperature-at-lower-bound",
        "note",
        ("metric/infonce/tau", "config:objective.tau_min", "config:objective.tau_max"),
        losses.temperature_at_lower_bound,
        "The learned temperature would fall further than it may: usual where the positives are easy to tell.",
        "a smaller objective.tau_min, if the bound is not meant",
    ),
    Rule(
        "best-checkpoint-past",
        "note",
        ("metric:best_metric",),
        training.best_past,
        "The held-out figure was better earlier and has not come back.",
        "take the best checkpoint, which is kept; fewer num_steps",
    ),
)
