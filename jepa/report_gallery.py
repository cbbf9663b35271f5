"""What a run makes of grids it never saw: their objects, their neighbours in latent space, and rules to match.

What is shown is chosen by its place in the collection, never by its result: every so-many-th grid, every so-many-th
question.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jepa import backend, checkpoint, codes, evaluation, run_folder, scorers
from jepa.data import _objects, _probes
from jepa.parts import build_objective, context_window
from jepa.types import PyTree

OBJECTS = 12  # grids shown with their objects
QUERIES = 10  # grids shown with their neighbours
NEIGHBOURS = 6
RULES = 8
DEMOS = 3  # pairs shown of those whose predictions are averaged
EDITS = tuple(f"edit: {edit.__name__.replace('_', ' ')}" for edit in _probes.EDITS)
CANDIDATES = ("true output", "the input", *EDITS, "another output")  # the columns of `_probes.RuleQueries.candidates`

Place = Callable[[np.ndarray, int, str, dict[str, np.ndarray]], int]


class Weights(NamedTuple):
    """What `evaluation.make_embedders` reads of a training state."""

    params: PyTree
    objective_state: PyTree


class Latents(NamedTuple):
    """Held-out tasks by name, the questions about them, and what the run makes of their grids."""

    title: str
    task_ids: list[str]
    questions: _probes.Questions
    table: dict[str, np.ndarray]  # of `questions.grids`
    pooled: np.ndarray  # [n, D]
    scores: np.ndarray | None  # [Q, C] of the candidates of 'training/hard'; None where nothing predicts
    missing: str  # why not, in a sentence
    step: int


def collect(workdir: Path, step: checkpoint.Step, place: Place) -> dict[str, Any]:
    """The gallery of the run in `workdir`, as JSON holds it; `missing` says in a sentence why there is none.

    place(grid, background, task, its object table) -> where the page keeps that grid.
    """
    config = run_folder.read_config(workdir)
    if "objective" in config and config["objective"]["name"] == "world_model":
        return {"missing": "There is no gallery of grids: what a world model imagines is shown by its rollouts."}
    try:
        latents = read(workdir, step)
    except (ValueError, OSError, RuntimeError) as error:  # the last where memory is short
        said = (str(error).splitlines() or [""])[0].rstrip(".").replace(f"{workdir.absolute()}/", "")
        return {"missing": f"There is no gallery, since the run cannot be rebuilt: {said}."}

    def put(row: int, task: int) -> int:
        table = {key: leaf[row] for key, leaf in latents.table.items()}
        asked = latents.questions
        return place(asked.grids[row], int(asked.backgrounds[row]), latents.task_ids[task], table)

    return {
        "about": f"{latents.title[0].upper()}{latents.title[1:]}, step {latents.step:,}",
        "objects": objects(latents, put),
        "neighbours": neighbours(latents, put),
        "rules": {"missing": latents.missing} if latents.scores is None else rules(latents, put),
    }


def read(workdir: Path, step: checkpoint.Step) -> Latents:
    """Raises ValueError or OSError for a run without a readable checkpoint, without its data, or of another version."""
    config = ConfigDict(run_folder.read_config(workdir))
    saved = checkpoint.read(workdir, step)
    title, tasks = codes.choose_tasks(config, saved.host["validation_ids"], codes.HELD_OUT)
    backend.use_compile_cache(config.cache_dir)
    try:
        objective = build_objective(config)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"its config is not one that this version writes ({error})") from error
    params = {"heads": {}} | saved.state["params"]  # a checkpoint has no entry for what has no arrays
    state = saved.state["objective_state"] if "objective_state" in saved.state else {}
    embedders = evaluation.make_embedders(objective, window=context_window(config))(Weights(params, state))
    questions = _probes.build(tasks, {})
    table = _objects.tokenise(questions.grids, questions.backgrounds)
    spaces = {
        name: scorers.in_chunks(embed, table, np.arange(len(questions.grids))) for name, (embed, _) in embedders.items()
    }
    scores, missing = None, "Rule matching is left out: this run has no predictor."
    if "stream" in config.data and config.data.stream == "views":
        missing = "Rule matching is left out: a multi-view run predicts between views and has no context."
    else:
        for name, (_, predict) in embedders.items():
            if predict is not None:
                asked = questions.rule["training/hard"]
                z_hat = scorers.predictions(predict, table, asked)
                scores = scorers.nearest(spaces[name][asked.candidates], z_hat)
    ids = [task.id for task in tasks]
    return Latents(title, ids, questions, table, spaces["pooled"], scores, missing, saved.step)


def spread(total: int, num: int) -> list[int]:
    """`num` of `total` places, evenly apart; all where there are fewer."""
    return sorted({i * total // min(num, total) for i in range(min(num, total))})


def objects(latents: Latents, put: Callable[[int, int], int]) -> list[int]:
    facts = latents.questions.facts["training"]
    return [put(int(facts.rows[i]), int(facts.groups[i])) for i in spread(len(facts.rows), OBJECTS)]


def neighbours(latents: Latents, put: Callable[[int, int], int]) -> list[dict[str, Any]]:
    """Of some held-out grids the nearest others: Euclidean, over the mean distance between two grids."""
    facts = latents.questions.facts["training"]
    rows, first = np.unique(facts.rows, return_index=True)  # a grid that two tasks show is there once
    groups, z = facts.groups[first], latents.pooled[rows]
    squared = np.sum(z**2, axis=1)
    distance = np.sqrt(np.maximum(squared[:, None] + squared[None] - 2 * z @ z.T, 0))
    mean = distance.sum() / max(len(z) * (len(z) - 1), 1)
    found = []
    for i in spread(len(rows), QUERIES):
        order = [int(j) for j in np.argsort(distance[i], kind="stable") if j != i][:NEIGHBOURS]
        near = [
            [put(int(rows[j]), int(groups[j])), _short(distance[i, j] / max(mean, 1e-12)), bool(groups[i] == groups[j])]
            for j in order
        ]
        found.append({"grid": put(int(rows[i]), int(groups[i])), "near": near})
    return found


def rules(latents: Latents, put: Callable[[int, int], int]) -> dict[str, Any]:
    """Questions with their candidates, the best first, and how often the true output is the first."""
    asked, scores = latents.questions.rule["training/hard"], latents.scores
    top1 = scorers.expected_top1(scores, asked.candidate_mask)
    shown = []
    for q in spread(len(asked.groups), RULES):
        task = int(asked.groups[q])
        there = np.flatnonzero(asked.candidate_mask[q])
        ranked = there[np.argsort(-scores[q, there], kind="stable")]
        best = max(float(-scores[q, ranked[0]]), 1e-12)
        demos = np.flatnonzero(asked.demo_mask[q])
        shown.append(
            {
                "task": latents.task_ids[task],
                "demos": [[put(int(row), task) for row in asked.demos[q, i]] for i in demos[:DEMOS]],
                "numDemos": len(demos),
                "input": put(int(asked.inputs[q]), task),
                "candidates": [
                    [put(int(asked.candidates[q, c]), task), CANDIDATES[c], _short(np.sqrt(-scores[q, c] / best))]
                    for c in ranked
                ],
            }
        )
    chance = float(np.mean(1 / asked.candidate_mask.sum(1)))
    return {"shown": shown, "top1": _short(top1.mean()), "chance": _short(chance), "num": len(top1)}


def _short(value: float) -> float:
    return float(f"{float(value):.3g}")
