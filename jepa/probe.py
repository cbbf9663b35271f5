"""What a frozen embedding knows about ARC, beside controls that learned nothing.

An encoder is a function `embed(table) -> [n, D]`; every encoder answers the same questions (`jepa.data._probes`) with
the same scorers (`jepa.scorers`), standardised per dimension on ARC-1 training grids. A score means something only
beside the level of no information, the controls (`jepa.controls`) and an interval over tasks (`jepa.bootstrap`), so
they always come together.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import joblib
import numpy as np

from jepa import run_folder, scorers
from jepa.bootstrap import Outcome, resampled
from jepa.controls import CONTROLS, one_hot_pixels
from jepa.data import _collections, _objects, _probes
from jepa.probe_rows import Answered, row
from jepa.scorers import Table

COLLECTIONS = ("arc1", "arc2")
SCORERS = ("delta_cosine", "analogy_l2", "predictor_l2")
BASELINES = ("copy", "prototype", "demo_free")  # of the same encoder, and each scorer under foreign demonstrations
Embed = Callable[[Table], np.ndarray]


@functools.cache
def load_tasks() -> tuple[list, dict[str, list]]:
    """ARC-1 training without near twins, to fit on; ARC-1 evaluation and what ARC-2 evaluation adds to it."""
    evaluation = {name: _collections.load(f"{name}-eval") for name in COLLECTIONS}
    shared = {task.id for task in evaluation["arc1"]}
    evaluation["arc2"] = [task for task in evaluation["arc2"] if task.id not in shared]
    return _collections.load("arc1-clean"), evaluation


def check(trained_ids: Iterable[str], evaluation: dict[str, list] | None = None) -> None:
    """Raises ValueError where a task of `trained_ids` would be evaluated; worth knowing before a run, not after it."""
    trained_ids = set(trained_ids)
    for name, collection in (load_tasks()[1] if evaluation is None else evaluation).items():
        _collections.check_no_overlap(trained_ids, [task.id for task in collection], f"the probes on {name} evaluation")


def evaluate(
    embed: Embed,
    predict: Callable | None,
    *,
    trained_ids: Iterable[str],
    cache_dir: str,
    untrained: tuple[Embed, Callable | None] | None = None,
    tasks: tuple[list, dict[str, list]] | None = None,
    seed: int = 0,
) -> dict:
    """Every probe of one encoder beside its controls, as JSON-able rows; `probe_rows.lines` makes them readable.

    embed: table of CHUNK grids (`jepa.scorers`) -> [CHUNK, D]; predict: contexts (x_i, y_i, x), leaves [CHUNK, 3, ...]
    -> the embedding of the output, [CHUNK, D], or None where nothing predicts in this space. `untrained` is the same
    pair at initialisation. `tasks` (those to fit on, those to evaluate by collection) are `load_tasks` unless given.
    Raises ValueError where a task of `trained_ids` would be evaluated.
    """
    evaluation = (load_tasks() if tasks is None else tasks)[1]
    check(trained_ids, evaluation)
    of_tasks = _of_all_tasks_cached if tasks is None else functools.partial(_controls, tasks)
    questions, table, answered = of_tasks(seed, cache_dir)
    encoders = {"trained": (embed, predict)} | ({} if untrained is None else {"untrained": untrained})
    answered = answered | {name: answer(*encoder, table, questions) for name, encoder in encoders.items()}
    asked = {name: chance for name, chance in chances(questions).items() if name in answered["trained"]}
    return {
        "seed": seed,
        "num_tasks": {name: len(collection) for name, collection in evaluation.items()},
        "rows": [_row(name, chance, answered) for name, chance in asked.items()],
        "resampled": {name: resampled(answered["trained"][name]) for name in asked},
    }


def _controls(
    tasks: tuple[list, dict[str, list]], seed: int, cache_dir: str
) -> tuple[_probes.Questions, Table, dict[str, dict[str, Outcome]]]:
    """The questions about tasks, their grids, and what the controls answer."""
    questions = _probes.build(*tasks, seed=seed)
    table = _objects.tokenise_cached(questions.grids, questions.backgrounds, cache_dir)
    answered = {name: answer(jax.jit(control), None, table, questions) for name, control in CONTROLS.items()}
    answered["pixels"] = answers(one_hot_pixels(questions.grids), table, questions)
    noise = np.random.default_rng(seed).normal(size=(len(questions.grids), 256)).astype(np.float32)
    return questions, table, answered | {"no_information": answers(noise, table, questions)}


def _of_all_tasks(code: str, seed: int, cache_dir: str) -> tuple[_probes.Questions, dict[str, dict[str, Outcome]]]:
    """`_controls` of `load_tasks`, less the grids, which have a cache of their own. code: what else the answers depend
    on; another one is another cache entry."""
    questions, _, answered = _controls(load_tasks(), seed, cache_dir)
    return questions, answered


@functools.cache
def _of_all_tasks_cached(seed: int, cache_dir: str) -> tuple[_probes.Questions, Table, dict[str, dict[str, Outcome]]]:
    """`_controls` of `load_tasks`, the same for every encoder that a process asks: the answers are kept in `cache_dir`
    until this package or its libraries change."""
    memory = joblib.Memory(Path(cache_dir).expanduser() / "controls", verbose=0)
    questions, answered = memory.cache(_of_all_tasks, ignore=["cache_dir"])(_code(), seed, cache_dir)
    return questions, _objects.tokenise_cached(questions.grids, questions.backgrounds, cache_dir), answered


def _code() -> str:
    """A digest of the package's source and of the versions it computes with."""
    digest = hashlib.sha256(f"{sys.version} {run_folder.versions()}".encode())
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def answer(embed: Embed, predict: Callable | None, table: Table, questions: _probes.Questions) -> dict[str, Outcome]:
    """The outcomes of an encoder: its predictor's in the metric it was trained in, all others standardised."""
    raw = scorers.in_chunks(embed, table, np.arange(len(table["size"])))
    mean, std = scorers.moments(raw[questions.facts["training"].rows])
    z = (raw - mean) / std
    outcomes, guess = answers(z, table, questions), scorers.demo_free(z, questions.rule["training/edit"])
    for name, q in _evaluated(questions):
        outcomes[f"rule/{name}/demo_free"] = guess(q)
        for suffix in ("", "_foreign") if predict is not None else ():
            z_hat = scorers.predictions(predict, table, q, foreign=bool(suffix))
            top1 = scorers.expected_top1(scorers.nearest(raw[q.candidates], z_hat), q.candidate_mask)
            outcomes[f"rule/{name}/predictor_l2{suffix}"] = Outcome(top1, q.groups)
    return outcomes


def answers(z: np.ndarray, table: Table, questions: _probes.Questions) -> dict[str, Outcome]:
    """The outcomes that need nothing but embeddings, [n, D]; retrieval and facts of the first collection."""
    outcomes = {}
    for name, q in _evaluated(questions):
        outcomes |= {f"rule/{name}/{scorer}": outcome for scorer, outcome in scorers.rule_matching(z, q).items()}
    train, test = list(questions.facts)[:2]
    found = scorers.retrieval(z, questions.retrieval[train], questions.retrieval[test])
    facts = scorers.grid_facts(z, table, questions.facts[train], questions.facts[test])
    outcomes |= {f"retrieval/{form}": outcome for form, outcome in found.items()}
    return outcomes | {f"facts/{name}": outcome for name, outcome in facts.items()}


def chances(questions: _probes.Questions) -> dict[str, float]:
    """The probes in the order they are printed, with what a blind guess scores."""
    chance = {}
    for name, q in _evaluated(questions):
        for scorer in SCORERS:
            chance[f"rule/{name}/{scorer}"] = float(np.mean(1 / q.candidate_mask.sum(1)))
    blind = 1 / len(list(questions.retrieval.values())[1].groups)
    chance |= {"retrieval/delta": blind, "retrieval/input_only": blind, "retrieval/gain": 0.0}
    return chance | {f"facts/{name}": 0.5 for name in scorers.FACTS}


def _evaluated(questions: _probes.Questions) -> list[tuple[str, _probes.RuleQueries]]:
    return [(name, q) for name, q in questions.rule.items() if not name.startswith("training/")]


def _row(name: str, chance: float, answered: Answered) -> dict:
    """One probe of the table; a control has no predictor, so it is scored by the distance to the analogy."""
    path, scorer = name.rsplit("/", 1)
    shown = (f"{scorer}_foreign", *BASELINES) if path.startswith("rule/") else ()
    of_controls = f"{path}/analogy_l2" if scorer == "predictor_l2" else name
    return row(name, chance, answered, of_controls=of_controls, baselines={key: f"{path}/{key}" for key in shown})
