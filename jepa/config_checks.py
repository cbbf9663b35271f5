"""What has to hold of a config before anything is built from it; each fault is one sentence naming the key."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jepa import early_stopping, latent_norm, planning_probe, registry, run_folder
from jepa.losses import univariate

# Keys that a resumed run may give anew: how far to go, how often to look, where the cache is. Another number of steps
# stretches the schedules of the learning rate and of the teacher to the new length.
MAY_CHANGE = (
    *("num_steps", "steps_per_call", "log_every", "eval_every", "eval_examples", "final_examples", "diagnose_every"),
    *("checkpoint_every", "keep_checkpoints", "max_bad_steps", "abort"),
    *("probes", "planning", "cache_dir", "platform"),
)
PATIENCE_MAY_CHANGE = ("early_stopping.patience", "early_stopping.min_delta", "early_stopping.warmup_steps")
AHEAD_MAY_CHANGE = ("num_workers", "blocks_ahead", "level_every")  # of a source: how data come about, not which
FIXED = (
    *("seed", "compute_dtype", "batch_size", "max_grad_norm", "target_ema", "target_ema_final", "best_metric"),
    *("init_from", "init_parts", "init_batches", "freeze", "early_stopping", "curriculum"),
    *("data", "encoder", "quantizer", "objective", "weights", "optimizer"),
)
# Keys that only some configs have: one that weights are computed from, and what the probe of that name reads.
OPTIONAL = ("lejepa_lambda", "planning")
PROBES = ("arc", "programs", "images", "planning")
HELD_OUT = ("val/", "diag/", "codes/")
COUNTS = (
    *("num_steps", "batch_size", "steps_per_call", "log_every", "eval_every", "eval_examples", "final_examples"),
    *("checkpoint_every", "keep_checkpoints", "diagnose_every", "max_bad_steps", "init_batches"),
)


def check(config: ConfigDict) -> None:
    """Raises ValueError for a key that nothing reads or that is missing, a value out of range, cadences that clash."""
    known = (*FIXED, *MAY_CHANGE, *OPTIONAL)
    for key in config:
        if key not in known:
            raise ValueError(f"config.{key} is read by nothing: {registry.nearest(key, known)}")
    missing = sorted(set(known) - set(OPTIONAL) - set(config))
    if missing:
        raise ValueError(f"the config lacks {missing}; configs/base.py has every key")
    for name in COUNTS:
        if config[name] < 1:
            raise ValueError(f"config.{name} is {config[name]}; it must be at least 1")
    if not config.max_grad_norm > 0:
        raise ValueError(f"config.max_grad_norm is {config.max_grad_norm}; it must be above 0")
    if config.target_ema is not None and not 0 <= config.target_ema < 1:
        raise ValueError(f"config.target_ema is {config.target_ema}; a decay lies in [0, 1), such as 0.996")
    if config.target_ema_final is not None:
        if config.target_ema is None:
            raise ValueError("config.target_ema_final is where config.target_ema ends: set that too, such as 0.99")
        if not config.target_ema <= config.target_ema_final <= 1:
            raise ValueError(
                f"config.target_ema_final is {config.target_ema_final}; it must lie between target_ema "
                f"{config.target_ema} and 1"
            )
    if unknown := sorted(set(config.probes) - set(PROBES)):
        raise ValueError(f"config.probes names {unknown}; there are {list(PROBES)}, and () is none")
    if "planning" in config.probes or "planning" in config:
        check_planning(config, is_asked="planning" in config.probes)
    if "lejepa_lambda" in config:
        check_lambda(config.lejepa_lambda, config.batch_size, dict(config.weights))
    early_stopping.check(**config.early_stopping)
    for key, metric in held_out_metrics(config):
        if not metric.startswith(HELD_OUT):
            raise ValueError(f"config.{key} names {metric!r}; a held-out figure starts with {' or '.join(HELD_OUT)}")
    check_cadences(config)


def check_planning(config: ConfigDict, *, is_asked: bool) -> None:
    """Raises ValueError for options of planning that make no sense, and where nobody can plan who is asked to."""
    data = config.data
    has_rooms = data.name == "episodes" and ("world" not in data or data.world == "two_rooms")
    if is_asked and not (has_rooms and config.objective.name == "world_model"):
        raise ValueError(
            "the probe 'planning' asks a world model for its way through two rooms: it takes config.objective.name "
            "'world_model', config.data.name 'episodes' and config.data.world 'two_rooms'"
        )
    if is_asked and "planning" not in config:
        raise ValueError("the probe 'planning' reads config.planning, which is missing; configs/world_model.py has it")
    planning_probe.options_of(config.planning.to_dict())


def latent_norm_of(config: ConfigDict) -> list[Any] | None:
    """The normalisation policy of a world model and its target norm, as a checkpoint's record holds them; None of any
    other run."""
    if "latent_norm" not in config.objective:
        return None
    target = config.objective.target_norm if "target_norm" in config.objective else None
    return [config.objective.latent_norm, target]


def check_latent_norm(config: ConfigDict, host: Mapping[str, Any], where: str) -> None:
    """Raises ValueError where the weights `where`, with this record, were trained under another policy: what z is, and
    all that reads it, follows from it. A record without one has nothing to differ in."""
    trained = host["latent_norm"] if "latent_norm" in host else None
    asked = latent_norm_of(config)
    if trained is not None and asked is not None and list(trained) != asked:
        raise ValueError(
            f"config.objective.latent_norm is {latent_norm.described(*asked)}, but the weights of {where} were trained "
            f"under {latent_norm.described(*trained)}: use that, or train anew"
        )


def check_lambda(share: float, batch_size: int, weights: Mapping[str, float | None]) -> None:
    """Raises ValueError unless the weights that are on are those of lambda SIGReg + (1 - lambda) prediction."""
    if not 0 <= share <= 1:
        raise ValueError(f"config.lejepa_lambda is {share}; the weights are convex, so it must lie in [0, 1]")
    for name, weight in {"prediction": 1.0 - share, "sigreg": share * batch_size}.items():
        if weights[name] is not None and not math.isclose(weights[name], weight):
            raise ValueError(
                f"config.lejepa_lambda {share:g} makes weights.{name} {weight:g}, but it is set to {weights[name]:g}: "
                "set config.lejepa_lambda alone"
            )


def check_labels(config: ConfigDict, stats: Mapping[str, float]) -> None:
    """Raises ValueError where probes, at the end or online, ask for other labels than a source with `stats` has."""
    labelled = "classes" in stats
    if "images" in config.probes and not labelled:
        raise ValueError(
            "config.probes names 'images', which asks for labelled ones: use data.name 'images', or leave it"
        )
    shown = [name for name in ("arc", "programs") if name in config.probes]
    if shown and labelled:
        raise ValueError(f"config.probes names {shown[0]!r}, which shows grids to the encoder, but this run has images")
    if labelled and "num_classes" in config.objective and config.objective.num_classes not in (None, stats["classes"]):
        raise ValueError(
            f"config.objective.num_classes is {config.objective.num_classes}, but the data has {stats['classes']:.0f} "
            "classes: set it so, or to none"
        )


def check_best_metric(name: str, terms: list[str]) -> None:
    """Raises ValueError unless the metric by which the best checkpoint is kept is a held-out one of these terms."""
    known = {"val/prediction", *(f"val/{term}" for term in terms)}
    if name not in known and not name.startswith(tuple(f"{path}/" for path in known)):
        raise ValueError(
            f"config.best_metric is {name!r}; it must be a held-out figure of what is trained: one of {sorted(known)}, "
            "or below one, such as 'val/infonce/in_batch'"
        )
    if name.endswith(("gain", "accuracy")):
        raise ValueError(f"config.best_metric is {name!r}, which is better the higher it is; the best is the lowest")


def held_out_metrics(config: ConfigDict) -> list[tuple[str, str]]:
    """The held-out figures that end a run, with the keys that name them. Raises ValueError for what is no condition."""
    conditions = early_stopping.conditions(config.abort)
    return [("early_stopping.metric", config.early_stopping.metric), *(("abort", c.metric) for c in conditions)]


def check_measured(config: ConfigDict, held_out: Mapping[str, float]) -> None:
    """Raises ValueError where an evaluation did not measure what a key of the config names after all."""
    for key, name in [("best_metric", config.best_metric), *held_out_metrics(config)]:
        if name not in held_out:
            raise ValueError(f"config.{key} names {name!r}, which is not measured: {registry.nearest(name, held_out)}")


def check_cadences(config: ConfigDict) -> None:
    """Every cadence is in steps; each must be reached at the end of a dispatch of `steps_per_call` steps."""
    for name in ("log_every", "eval_every", "diagnose_every", "num_steps"):
        if config[name] % config.steps_per_call:
            raise ValueError(
                f"config.{name} {config[name]} must be a multiple of steps_per_call {config.steps_per_call}"
            )
    if config.log_every > config.checkpoint_every:
        raise ValueError(
            f"config.log_every {config.log_every} must be at most checkpoint_every {config.checkpoint_every}, so that "
            "the checkpoint before a step that went wrong is still there when it is seen"
        )
    if config.checkpoint_every % config.eval_every:
        raise ValueError(
            f"config.checkpoint_every {config.checkpoint_every} must be a multiple of eval_every {config.eval_every}, "
            "so that every checkpoint has a held-out figure to be the best by"
        )


def check_same_run(config: ConfigDict, workdir: Path) -> None:
    """Raises ValueError listing the keys in which the run saved in `workdir` has another config."""
    ahead = [key for key in run_folder.flatten(as_json(config)) if key.endswith(AHEAD_MAY_CHANGE)]
    may_change = (*MAY_CHANGE, *PATIENCE_MAY_CHANGE, *ahead)
    changed = run_folder.config_differences(run_folder.read_config(workdir), as_json(config), may_change)
    if changed:
        raise ValueError(
            f"{workdir} holds a run of another config: {'; '.join(changed)}. Use those values, or another --workdir"
        )


def as_json(config: ConfigDict) -> dict:
    """The config as JSON holds it."""
    return json.loads(config.to_json())


def in_published_units(config: ConfigDict) -> list[str]:
    """A line for a weight that publications give in other units: of SIGReg, on T and not on T / N."""
    weights, num = config.weights, config.batch_size
    if "lejepa_lambda" in config:
        share, on = config.lejepa_lambda, {name: weight for name, weight in weights.items() if weight is not None}
        listed = ", ".join(f"weights.{name} {on[name]:g}" for name in ("prediction", "sigreg") if name in on)
        return [f"lejepa_lambda {share:g}, for T and a batch of {num}: {listed} on T / N"]
    if not weights.sigreg or config.objective.statistic not in univariate.EXTENSIVE:
        return []
    line = f"weights.sigreg {weights.sigreg:g} is on T / N: {weights.sigreg / num:.3g} on T for a batch of {num}"
    if "prediction" in weights and weights.prediction:
        share = weights.sigreg / (weights.sigreg + num * weights.prediction)
        line += f"; LeJEPA's lambda, in lambda T + (1 - lambda) prediction, {share:.3g}"
    return [line]
