"""What a world model imagines, in pictures: held-out episodes, what is decoded of their latents, and of rollouts.

A rollout starts at the first latent and is told the actions; nothing else of the episode is shown to it. Episodes are
chosen by their place among the held-out ones, never by their result.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jepa import backend, checkpoint, config_checks, evaluation, report_strips, run_folder
from jepa.context import with_target
from jepa.latent_norm import at
from jepa.parts import build_objective, build_source
from jepa.report_page import escape, table
from jepa.types import Objective, PyTree, Source

EPISODES = 4  # of the first held-out source where it is the only one, ...
OF_EACH = 2  # ... and else of each of the first few
SOURCES = 3


class Episode(NamedTuple):
    """One held-out episode of T steps, on the host. Frames are observations, leaves [T + 1, ...]."""

    source: str  # the held-out one it is from, "" where there is one alone
    true: Mapping[str, np.ndarray]
    decoded: Mapping[str, np.ndarray]  # of true latents
    rolled: Mapping[str, np.ndarray]  # of the rollout; its first is that of the first latent
    norm_ratio: np.ndarray  # [T + 1]: length of imagined over that of true latents
    cosine: np.ndarray  # [T + 1]: of the two


class Shown(NamedTuple):
    """A run's rollouts, or why there are none, in a sentence."""

    episodes: list[Episode]
    horizon: int  # steps of the rollouts it was trained on
    step: int  # of the checkpoint
    missing: str = ""


def collect(workdir: Path, step: checkpoint.Step) -> Shown | None:
    """The rollouts of the run in `workdir`; None where it is no world model."""
    config = ConfigDict(run_folder.read_config(workdir))
    if "objective" not in config or config.objective.name != "world_model":
        return None
    try:
        return read(workdir, config, step)
    except (ValueError, OSError, RuntimeError) as error:  # the last where memory is short
        said = (str(error).splitlines() or [""])[0].rstrip(".").replace(f"{workdir.absolute()}/", "")
        return Shown([], 0, 0, f"There are no rollouts to see: {said}.")


def read(workdir: Path, config: ConfigDict, step: checkpoint.Step) -> Shown:
    """Raises ValueError or OSError for a run without a decoder, a readable checkpoint or its data."""
    saved = checkpoint.read(workdir, step)
    config_checks.check_latent_norm(config, saved.host, workdir.name)
    backend.use_compile_cache(config.cache_dir)
    objective = build_objective(config)
    if objective.world.show is None:
        raise ValueError("this run has no decoder (config.objective.decoder)")
    state = saved.state["objective_state"] if "objective_state" in saved.state else {}
    source = build_source(config)
    try:
        names = list(source.validation)[:SOURCES]
        num = EPISODES if len(names) == 1 else OF_EACH
        episodes = [
            episode
            for name in names
            for episode in imagined(
                objective,
                saved.state["params"],
                state,
                source.validation[name],
                num,
                "" if len(names) == 1 else evaluation.kind(source, name),
            )
        ]
    finally:
        source.close()
    return Shown(episodes, config.objective.horizon if "horizon" in config.objective else 0, saved.step)


def imagined(objective: Objective, params: PyTree, state: PyTree, source: Source, num: int, name: str) -> list[Episode]:
    """`num` episodes of the first batch of a source, evenly apart, with what the model makes of them."""
    world = objective.world

    @jax.jit
    def of(params: PyTree, state: PyTree, tables: PyTree, rows: PyTree):
        batch = source.gather(tables, rows, jax.random.key(0), False)
        frames = with_target(batch)
        z = world.see(params, state, frames)
        start = at(z, 0)
        ahead = world.imagine(params, start, batch.actions)
        rolled = jax.tree.map(lambda a, b: jax.numpy.concatenate([a[:, None], b], axis=1), start, ahead)
        return frames, z, rolled, world.show(params, z, frames), world.show(params, rolled, frames)

    rows = source.indices(0)
    size = len(jax.tree.leaves(rows)[0])
    chosen = sorted({i * size // num for i in range(num)})
    rows = jax.tree.map(lambda leaf: leaf[np.array(chosen)], rows)
    frames, z, rolled, shown, shown_rolled = jax.device_get(of(params, state, source.tables, rows))
    (kind,) = [key for key in ("cells", "image") if key in frames]
    lengths = [np.linalg.norm(latent.value, axis=-1) + 1e-12 for latent in (rolled, z)]
    cosine = np.sum(rolled.value * z.value, axis=-1) / (lengths[0] * lengths[1])
    return [
        Episode(
            name,
            {kind: frames[kind][i]},
            {kind: shown[i]},
            {kind: shown_rolled[i]},
            lengths[0][i] / lengths[1][i],
            cosine[i],
        )
        for i in range(len(chosen))
    ]


def error(frames: Mapping[str, np.ndarray], true: Mapping[str, np.ndarray]) -> np.ndarray:
    """[T + 1]: the share of wrong cells, or the root of the mean squared error of pixels."""
    ((kind, guess),) = frames.items()
    if kind == "cells":
        return np.mean(guess != true[kind], axis=(-2, -1))
    return np.sqrt(np.mean(np.square(guess - true[kind]), axis=(-3, -2, -1)))


def animation(shown: Shown) -> bytes | None:
    """The moving picture of a run: of each episode the true frames, and beside them the decoded rollout."""
    if not shown.episodes:
        return None
    return report_strips.moving(
        [[report_strips.coloured(frames) for frames in (each.true, each.rolled)] for each in shown.episodes]
    )


def section(shown: Shown) -> str:
    """The rollouts of a run as HTML; the page needs nothing beside it."""
    if shown.missing:
        return f'<p class="soft">{escape(shown.missing)}</p>'
    num = len(shown.episodes[0].cosine) - 1
    beyond = f"; it was trained on rollouts of {shown.horizon}" if shown.horizon else ""
    legend = (
        f'<p class="soft">Step {shown.step:,}. Held-out episodes, chosen by their place. A rollout is shown the first '
        f"frame and told the actions of all {num} steps{beyond}. What is decoded of true latents is what the decoder "
        "can do; where the rollout looks otherwise, the model errs, or the decoder is shown latents unlike those that "
        "it was trained on, as where their length over the true one leaves 1.</p>"
    )
    picture = base64.b64encode(animation(shown)).decode()
    moving = (
        f'<figure class="moving"><img src="data:image/png;base64,{picture}" alt="the episodes in motion">'
        "<figcaption>Of each episode, left the true frames and right the decoded rollout.</figcaption></figure>"
    )
    return legend + moving + "".join(strip(episode, i) for i, episode in enumerate(shown.episodes))


def strip(episode: Episode, index: int) -> str:
    """One episode as a table: a column for each step, a row for each kind of frame, and figures below."""
    rows = [
        [name, *(_picture(image, f"{name}, step {t}") for t, image in enumerate(report_strips.coloured(frames)))]
        for name, frames in (
            ("true frames", episode.true),
            ("decoded, true latents", episode.decoded),
            ("decoded, rollout", episode.rolled),
        )
    ]
    wrong = "wrong cells" if "cells" in episode.true else "error of pixels"
    first = {kind: leaf[:1] for kind, leaf in episode.true.items()}
    for name, values in (
        (f"{wrong}, of true latents", error(episode.decoded, episode.true)),
        (f"{wrong}, of the rollout", error(episode.rolled, episode.true)),
        (f"{wrong}, of the first frame", error(first, episode.true)),
        ("length over the true one", episode.norm_ratio),
        ("cosine with the true one", episode.cosine),
    ):
        rows.append([name, *(f"{value:.2f}" if value >= 0.1 or value <= 0 else f"{value:.3f}" for value in values)])
    title = f"Episode {index + 1}" + (f", {episode.source.replace('_', ' ')}" if episode.source else "")
    head = ["step", *(str(t) for t in range(len(episode.cosine)))]
    return f'<h3 class="run">{escape(title)}</h3>{table(head, rows, "frames")}'


def _picture(image: np.ndarray, alt: str) -> str:
    return f'<img src="{report_strips.data_uri(image)}" alt="{escape(alt)}">'
