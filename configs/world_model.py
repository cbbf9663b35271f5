"""A latent world model with one policy for the length of z, on episodes of worlds that are made here.

    python -m jepa.main --config=configs/world_model.py

An episode is a program of eight steps on a drawn scene, shown cell by cell; the action of a step is its primitive with
its parameters. Six families of primitives and a tenth of the ordered pairs of families are never trained on: held-out
sources of their own. `val/rollout/exact_4` is the share of episodes whose decoded rollout of four steps is the true
grid in every cell, beside `exact_copy_4`, the first grid unchanged, and `exact_seen_4`, the decoded true latent.

Variants, after a colon and comma-separated: `tiny` (seconds, for tests), `two_rooms` (the size of the public benchmark,
a GPU), `two_rooms_tiny` (minutes on two CPU cores), `two_rooms,tiny` (seconds).
"""

from ml_collections import ConfigDict, config_dict

from configs import base

VARIANTS = ("tiny", "two_rooms", "two_rooms_tiny")


def get_config(variant: str = "") -> ConfigDict:
    words = base.words(variant, VARIANTS)
    config = base.get_config()
    config.probes = ()
    config.objective = ConfigDict(
        dict(
            name="world_model",
            latent_norm="none",  # or "loss_only", "global", "anchor"
            target_norm=config_dict.placeholder(float),  # of "anchor"; sqrt(D) unless given
            dynamics="gru",  # or "mlp", "transformer"
            hidden=256,
            depth=1,
            num_heads=4,  # read by "transformer", and so is the window
            window=8,
            horizon=8,
            discount=1.0,
            inverse_hidden=128,
            decoder="cells",  # or "pixels", "none": what shows a latent, and has no say in it
            decoder_hidden=512,
            decoder_frames=0,  # of an episode that it learns from at an update; 0 for all
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
    if "two_rooms" in words or "two_rooms_tiny" in words:
        make_two_rooms(config, is_small="two_rooms_tiny" in words or "tiny" in words)
    else:
        make_programs(config)
    if "tiny" in words:
        make_tiny(config)
    return config


def make_programs(config: ConfigDict) -> None:
    config.data = ConfigDict(
        dict(
            name="programs",
            stream="transition",
            canvas=12,  # the side of a frame, and the largest of any grid
            families="all",  # or "geometry", "cells", "lines", "objects", joined by "+"
            length=8,  # steps of an episode
            objects=8,  # of a scene, at most
            side=12,  # of a scene, at most
            held_out_families=("wrap", "outline", "hollow", "sort", "half", "copy"),
            held_out_share=0.1,  # of ordered pairs of families
            d4=False,  # actions would not mean what they say
            palette=False,
            translation=False,
            num_workers=1,  # processes that draw ahead of the step
            batches_per_block=20,
            blocks_ahead=2,
        )
    )
    config.encoder = ConfigDict(dict(name="grid", dim=128, cell_dim=32, depth=2, stride=2))
    config.num_steps = 1200


def make_two_rooms(config: ConfigDict, *, is_small: bool) -> None:
    config.data = ConfigDict(
        dict(name="episodes", world="two_rooms", length=16, num_episodes=100_000, crossing_share=0.35)
    )
    config.encoder = ConfigDict(
        dict(name="conv", dim=32, channels=(16, 32, 32), patch=0, scale=(28.0, 3.3))  # one over what channels vary by
    )
    config.objective.update(hidden=64, inverse_hidden=64, decoder="pixels", decoder_hidden=256)
    config.probes = ("planning",)
    config.planning = ConfigDict(  # read where config.probes names "planning"
        dict(
            methods=("mppi", "cem"),
            num_tasks=100,
            num_steps=200,
            every_step=True,  # of the cost: the distance to the goal at every step of a plan, or at its last alone
            horizon=60,
            num_samples=200,
            num_elites=20,
            num_iterations=8,
            replan_every=4,  # actions taken of a plan
            std=1.5,
            max_norm=2.45,
            temperature=1.0,
            correlation=0.0,  # of two actions in a row as they are drawn
        )
    )
    config.num_steps = 3100
    config.batch_size = 384
    config.eval_every = config.checkpoint_every = config.diagnose_every = 310
    if is_small:
        config.num_steps = 600
        config.batch_size = 64
        config.eval_every = config.checkpoint_every = 100
        config.diagnose_every = 300
        config.final_examples = 1024
        config.optimizer.update(learning_rate=3e-3, warmup_steps=50)
        config.data.length = 8
        config.encoder.update(dim=16, channels=(16, 16), patch=5)
        config.objective.update(decoder_hidden=64, decoder_frames=2)
        config.planning.update(num_steps=100, horizon=24, num_samples=64, num_elites=8, num_iterations=3)


def make_tiny(config: ConfigDict) -> None:
    """Seconds, to see that everything runs."""
    config.num_steps = 20
    config.batch_size = 16
    config.steps_per_call = config.log_every = 5
    config.eval_every = config.checkpoint_every = config.diagnose_every = 10
    config.eval_examples = config.final_examples = 16
    config.optimizer.warmup_steps = 5
    config.data.length = 3
    config.objective.update(hidden=16, horizon=2, inverse_hidden=8, decoder_hidden=16, num_slices=32)
    if config.data.name == "programs":
        config.data.update(num_workers=0, batches_per_block=10)
        config.encoder.update(dim=8, cell_dim=8, depth=1)
    else:
        config.encoder.update(dim=8, channels=(4, 4), patch=5)
        config.probes = ()
        config.planning.update(
            num_tasks=4, num_steps=20, horizon=4, num_samples=8, num_elites=2, num_iterations=1, replan_every=2
        )
