"""A latent world model with one policy for the length of z, on episodes of worlds that are made here.

    python -m jepa.main --config=configs/world_model.py:two_rooms

Variants, after a colon and comma-separated: `two_rooms` (the size of the public benchmark, a GPU), `two_rooms_tiny`
(minutes on two CPU cores), `tiny` (seconds, for tests).
"""

from ml_collections import ConfigDict, config_dict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
    words = base.words(variant, ("tiny", "two_rooms", "two_rooms_tiny"))
    config = base.get_config()
    config.probes = ()
    config.data = ConfigDict(
        dict(name="episodes", world="two_rooms", length=16, num_episodes=100_000, crossing_share=0.35)
    )
    config.encoder = ConfigDict(dict(name="conv", dim=32, channels=(16, 32, 32)))
    config.objective = ConfigDict(
        dict(
            name="world_model",
            latent_norm="none",  # or "loss_only", "global", "anchor"
            target_norm=config_dict.placeholder(float),  # of "anchor"; sqrt(D) unless given
            dynamics="gru",  # or "mlp", "transformer"
            hidden=64,
            depth=1,
            num_heads=4,  # read by "transformer", and so is the window
            window=8,
            horizon=8,
            discount=1.0,
            inverse_hidden=64,
            decoder="pixels",  # or "cells", "none": what shows a latent, and has no say in it
            decoder_hidden=256,
            statistic="epps_pulley",
            num_slices=256,
            num_knots=17,
            t_max=3.0,
            unit_sigreg=False,
        )
    )
    config.weights = ConfigDict(
        dict(prediction=1.0, rollout=1.0, sigreg=10.0, inverse=1.0)
        | base.off("similarity", "sigreg_predicted", "norm_anchor", "weak_sigreg", "visreg", "vicreg_variance")
        | base.off("vicreg_covariance", "bhep", "quantizer")
    )
    config.planning = ConfigDict(  # read where config.probes names "planning", which asks for the way in two rooms
        dict(
            methods=("mppi", "cem"),
            num_tasks=100,
            num_steps=200,
            every_step=True,  # of the cost: the distance to the goal at every step of a plan, or at its last alone
            horizon=20,
            num_samples=100,
            num_elites=10,
            num_iterations=3,
            std=1.5,
            max_norm=2.45,
            temperature=1.0,
            correlation=0.0,  # of two actions in a row as they are drawn
        )
    )
    config.num_steps = 3100
    config.batch_size = 384
    config.eval_every = config.checkpoint_every = config.diagnose_every = 310
    if "two_rooms" in words or "two_rooms_tiny" in words:
        config.probes = ("planning",)
    if "two_rooms_tiny" in words or "tiny" in words:
        config.num_steps = 600
        config.batch_size = 64
        config.eval_every = config.checkpoint_every = 100
        config.diagnose_every = 300
        config.final_examples = 1024
        config.data.length = 8
        config.encoder.update(dim=16, channels=(8, 16, 16))
        config.planning.update(num_steps=100, horizon=16, num_samples=64, num_elites=8, num_iterations=2)
    if "tiny" in words:
        config.num_steps = 20
        config.batch_size = 16
        config.steps_per_call = config.log_every = 5
        config.eval_every = config.checkpoint_every = config.diagnose_every = 10
        config.eval_examples = config.final_examples = 16
        config.optimizer.warmup_steps = 5
        config.data.length = 3
        config.encoder.update(dim=8, channels=(4, 4))
        config.planning.update(num_tasks=4, num_steps=20, horizon=4, num_samples=8, num_elites=2, num_iterations=1)
        config.objective.update(hidden=16, horizon=2, inverse_hidden=8, decoder_hidden=16, num_slices=32)
    return config
