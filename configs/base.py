"""Values shared by the runs of this folder. Every default of a run is here, in its own file, or in a signature."""

from ml_collections import ConfigDict, config_dict


def words(variant: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """The comma-separated words after the colon of `--config=file.py:words`; ValueError for an unknown one."""
    chosen = tuple(word for word in variant.split(",") if word)
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise ValueError(f"unknown config variant {unknown}; this file knows {list(known)}")
    return chosen


def off(*names: str) -> dict[str, config_dict.FieldReference]:
    """Loss terms that are not part of the run unless they are given a weight."""
    return {name: config_dict.placeholder(float) for name in names}


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.platform = "cpu"  # or "gpu"
    config.compute_dtype = "float32"  # or "bfloat16": encoder and token predictor; all else is float32

    config.num_steps = 1200
    config.batch_size = 128
    config.steps_per_call = 10  # training steps per dispatch, scanned on the device
    config.max_grad_norm = 1.0
    config.target_ema = config_dict.placeholder(float)  # a decay such as 0.996 adds an EMA target encoder ...
    config.target_ema_final = config_dict.placeholder(float)  # ... which rises to this one on a cosine, if given
    config.best_metric = "val/prediction"  # the held-out figure, lower is better, that the best checkpoint is kept by
    config.max_bad_steps = 20  # stop after so many non-finite steps in a row
    config.early_stopping = ConfigDict(
        dict(
            metric=config.get_oneway_ref("best_metric"),  # a held-out figure
            patience=config_dict.placeholder(int),  # stop after so many evaluations without a better one
            min_delta=0.0,  # by more than which a better one differs
            mode="min",  # or "max"
            warmup_steps=0,  # evaluations before do not count
        )
    )
    config.curriculum = ConfigDict(  # for data of several levels of difficulty; a new one begins at given steps ...
        dict(
            starts=(),
            patience=config_dict.placeholder(int),  # ... or after as many evaluations
            min_delta=0.01,  # whose error at the level is not lower by this share
        )
    )
    config.abort = ()  # held-out figures that end the run, such as ("codes/usage < 0.08 after 1000",)

    config.log_every = 10
    config.eval_every = 200
    config.eval_examples = 512  # validation examples at each evaluation
    config.final_examples = 4096  # and at the end
    config.checkpoint_every = 200
    config.keep_checkpoints = 2  # the newest so many, besides the best and those that an event needs
    config.diagnose_every = 200  # gradients of single terms, compiled apart from the step
    config.cache_dir = "~/.cache/jepa"  # tokenised grids

    config.optimizer = ConfigDict(
        dict(learning_rate=1e-3, warmup_steps=100, final_rate=0.01, weight_decay=0.05, b1=0.9, b2=0.95)
    )

    config.init_from = config_dict.placeholder(str)  # a run folder whose weights to start from ...
    config.init_parts = ("trunk",)  # ... and which of them
    config.init_batches = 1  # from so many first batches codebooks and their statistics start
    config.freeze = ()  # parameter paths that do not train

    config.quantizer = ConfigDict(dict(name="identity"))  # no discrete codes; configs/lejepa_codes.py has some

    config.probes = ("arc",)  # what frozen features are asked at the end, with floors and controls; () for nothing
    return config


def make_small(config: ConfigDict) -> None:
    """A size at which a question can be asked with many seeds: the learning is real, and far from its end."""
    config.num_steps = 300
    config.batch_size = 64
    config.eval_every = config.diagnose_every = 100
    config.checkpoint_every = 100
    config.eval_examples = 256
    config.final_examples = 1024
    config.optimizer.warmup_steps = 30
    config.encoder.update(dim=32, depth=1, num_readouts=8, readout_dim=8)


def make_tiny(config: ConfigDict) -> None:
    """Seconds instead of minutes, on an object encoder, to see that everything runs."""
    config.num_steps = 20
    config.batch_size = 16
    config.steps_per_call = 5
    config.log_every = 5
    config.eval_every = config.checkpoint_every = config.diagnose_every = 10
    config.eval_examples = config.final_examples = 16
    config.optimizer.warmup_steps = 5
    config.encoder.update(dim=16, depth=1, num_heads=2, num_readouts=2, readout_dim=8)
    config.probes = ()
