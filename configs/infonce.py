"""Contrastive prediction on ARC grids: three grids of an analogy (x_i, y_i, x_j) pick out the fourth, y_j.

    python -m jepa.main --config=configs/infonce.py

InfoNCE with a momentum teacher and a queue of its past targets: van den Oord et al., arXiv:1807.03748; He et al., MoCo,
arXiv:1911.05722. `:production` is the run whose design this follows, on the sizes it had: queue 8192, a learned
temperature in [0.05, 0.20] from 0.07, EMA 0.99, three relational layers of width 384 with 8 heads, projection 256,
relational weights 0.025 (context to target) and 0.01 (within the context), batch 512, gradient norm 0.5, AdamW at 5e-5
after 1000 steps of warm-up. Its discrete codes, and a Gaussianity term on unit vectors, which no set of unit vectors
can satisfy, are left out; its relational term, quartic in the scale of the embeddings, is scale-free here.

Expected, over seeds 0 to 2, the quickest in 7 minutes on two CPU cores: in-batch InfoNCE on held-out tasks 0.99 [0.54,
1.44], where chance is 4.85 (1.20 of 2.14 over grids near in size in the target's colours, 2.73 of 1.49 over other
outputs of the task); relational term at most 1.4 times what it is at the end of the warm-up; effective rank 18 to 24
of 127; temperature at its lower bound. `python experiments/infonce.py` repeats it.

Variants, after a colon and comma-separated: `tiny` (seconds, for tests), `small` (a minute, for suites of many
runs), `production` (a GPU), `tokens` (predict from the tokens of all frames instead of aggregated embeddings).
"""

from ml_collections import ConfigDict

from configs import base, lejepa


def get_config(variant: str = "") -> ConfigDict:
    words = base.words(variant, ("tiny", "small", "production", "tokens"))
    config = lejepa.get_config()
    config.target_ema = 0.99
    config.best_metric = "val/infonce/in_batch"  # the whole loss falls with easy negatives from the queue alone
    config.data.num_negatives = 8  # at validation, of the same task and of the same palette
    config.encoder.depth = 3
    config.objective = ConfigDict(
        dict(
            name="infonce",
            predictor="none",
            predictor_dim=64,  # read by the predictors "pooled" and "tokens", and so is the depth
            predictor_depth=2,
            num_heads=4,  # read by the predictor "tokens" and by the context "transformer"
            num_readouts=8,  # read by the predictor "tokens"
            context="attention",  # how the predictors "none" and "pooled" put the frames together
            projector_dim=64,
            queue_size=8192,
            tau=0.07,
            tau_min=0.05,
            tau_max=0.20,
            symmetric=False,
            relation_pairs="all",
            relation_normalize="mean",
            invariance_group=("d4", "palette", "translation"),
            invariance_stop_gradient="original",
            statistic="epps_pulley",
            num_slices=256,
            num_knots=17,
            t_max=3.0,
            unit_sigreg=False,  # True: SIGReg on unit rows, where it cannot work; a control
        )
    )
    config.weights = ConfigDict(
        dict(infonce=1.0, relational=0.025, relational_context=0.01, sigreg=0.0)
        | base.off("prediction", "invariance", "weak_sigreg", "visreg", "vicreg_variance", "vicreg_covariance")
        | base.off("bhep", "norm_anchor", "quantizer")
    )

    if "production" in words:
        config.num_steps = 20_000
        config.batch_size = 512
        config.compute_dtype = "bfloat16"
        config.max_grad_norm = 0.5
        config.eval_every = config.checkpoint_every = config.diagnose_every = 1000
        config.abort = (  # the floors that the documented run set itself, an eighth of the way
            "diag/context/effective_rank < 3 after 2500",
            "diag/target/effective_rank < 5 after 2500",
        )
        config.optimizer.update(learning_rate=5e-5, warmup_steps=1000, weight_decay=1e-6)
        config.encoder.update(dim=384, num_heads=8, readout_dim=48)
        config.objective.update(projector_dim=256, num_heads=8)
    if "small" in words:
        base.make_small(config)
        config.objective.update(predictor_dim=32, predictor_depth=1, projector_dim=32, queue_size=1024)
    if "tiny" in words:
        base.make_tiny(config)
        config.objective.update(predictor_dim=16, predictor_depth=1, num_heads=2, num_readouts=2, num_slices=32)
        config.objective.update(projector_dim=8, queue_size=24)
        config.data.num_negatives = 2
    if "tokens" in words:
        config.objective.predictor = "tokens"
    return config
