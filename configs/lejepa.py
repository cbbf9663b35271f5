"""LeJEPA on ARC grids: three grids of an analogy (x_i, y_i, x_j) predict the embedding of the fourth, y_j.

    python -m jepa.main --config=configs/lejepa.py

Balestriero & LeCun, LeJEPA, arXiv:2511.08544. One weight to choose: SIGReg as T/N against a prediction error averaged
over batch and dimensions (10; the band in use is 2 to 30).

Expected, over seeds 0 to 2, each in 8 to 12 minutes on two CPU cores: validation prediction error 0.220 [0.213,
0.227], which is 0.352 of the error of copying the last context grid; standard deviation 0.82 to 0.94 on every readout;
demo_gain 0.66; effective rank 15 of 126. `python experiments/lejepa.py` repeats it.

Variants, after a colon and comma-separated: `tiny` (seconds, for tests), `small` (a minute, for suites of many
runs), `base` (a GPU), `pooled` (predict from pooled embeddings), `mean` (one mean-pooled vector instead of readouts),
`teacher` (EMA target), `views` (the paper's multi-view form on single grids; it asks for D4 and colour invariance,
which ARC rules contradict).
"""

from ml_collections import ConfigDict, config_dict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
    words = base.words(variant, ("tiny", "small", "base", "pooled", "mean", "teacher", "views"))
    config = base.get_config()

    config.data = ConfigDict(
        dict(
            name="arc",
            collection="arc2-clean",  # 623 training tasks of ARC-AGI-2 that no evaluation set contains
            folder=config_dict.placeholder(str),  # your own ARC JSON files instead
            stream="analogy",
            num_views=4,  # read by the stream "views"
            context_window=3,  # grids before y_j, 1 to 7: x_j, with y_i, with x_i, with a second demonstration, a third
            target_offset=1,  # y_j is what follows x_j
            drop_objects=0.0,  # in training, the share of the context's objects that is hidden
            drop_frames=0.0,  # ... of its demonstration grids
            noise=0.0,  # ... of its objects that are moved by a cell or have other colours
            num_negatives=0,  # other grids listed beside every target at validation, for contrastive objectives
            validation_share=0.1,
            d4=True,
            palette=True,
            translation=True,
        )
    )
    config.encoder = ConfigDict(
        dict(name="objects", dim=64, depth=2, num_heads=4, num_readouts=8, readout_dim=16, pooling="readouts")
    )
    config.objective = ConfigDict(
        dict(
            name="lejepa",
            predictor="tokens",
            predictor_dim=64,
            predictor_depth=2,
            num_heads=4,
            num_readouts=8,
            context="attention",  # read by the pooled predictor
            projector_dim=config_dict.placeholder(int),
            error="squared",
            num_global_views=2,  # read in the multi-view form
            statistic="epps_pulley",  # the univariate test that SIGReg applies to every slice
            num_slices=256,
            num_knots=17,
            t_max=3.0,
            unit_sigreg=False,  # True: SIGReg on unit rows, where it cannot work; a control
        )
    )
    config.weights = ConfigDict(
        dict(prediction=1.0, sigreg=10.0)
        | base.off("weak_sigreg", "visreg", "vicreg_variance", "vicreg_covariance", "bhep", "norm_anchor", "quantizer")
    )

    if "base" in words:
        config.num_steps = 20_000
        config.batch_size = 512
        config.compute_dtype = "bfloat16"
        config.eval_every = 1000
        config.checkpoint_every = config.diagnose_every = 1000
        config.optimizer.warmup_steps = 1000
        config.encoder.update(dim=256, depth=6, num_heads=8, readout_dim=64)
        config.objective.update(predictor_dim=256, predictor_depth=4, num_heads=8, num_slices=1024)
    if "small" in words:
        base.make_small(config)
        config.objective.update(predictor_dim=32, predictor_depth=1)
    if "tiny" in words:
        base.make_tiny(config)
        config.objective.update(predictor_dim=16, predictor_depth=1, num_heads=2, num_readouts=2, num_slices=32)
    if "pooled" in words:
        config.objective.predictor = "pooled"
    if "mean" in words:
        config.encoder.pooling = "mean"
    if "teacher" in words:
        config.target_ema = 0.996
    if "views" in words:
        config.data.stream = "views"
        config.probes = ()  # a context of three grids has no meaning for it
    return config
