"""What a frozen embedding knows about programs, beside controls that learned nothing.

Every encoder and every control answers the same questions (`jepa.data._program_probes`) with the same scorers
(`jepa.program_scorers`), standardised per dimension on ARC-1 training grids and what primitives make of them; pixels
and predictions are compared as they are. Rows named `held_in` are of programs whose families were all trained on,
`held_out` of those with a family that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax
import numpy as np

from jepa import probe, program_scorers, scorers
from jepa.bootstrap import Outcome, resampled
from jepa.controls import CONTROLS, one_hot_pixels
from jepa.data import _collections, _objects, _program_probes
from jepa.data._primitives import FAMILIES, numbers
from jepa.data._program_probes import Episodes, Pairs, Questions
from jepa.data._real_grids import APPLICABLE, CLASSIFIED
from jepa.probe_rows import Answered, row
from jepa.program_scorers import Embeddings
from jepa.scorers import Table

SEEN = "programs:"  # opens the ids of the families that a run was trained on
SHOTS = (1, 5)
Masks = dict[str, dict[str, np.ndarray]]  # by probe: which questions belong to each part of it


def evaluate(
    embed: probe.Embed,
    predict: Callable | None,
    *,
    untrained: tuple[probe.Embed, Callable | None] | None,
    seen_ids: Iterable[str],
    cache_dir: str,
    seed: int = 0,
    held_out: Iterable[str] | None = None,
    questions: Questions | None = None,
) -> dict:
    """Every probe of one encoder beside its controls, as JSON-able rows; `probe_rows.lines` makes them readable.

    embed, predict and `untrained` are those of `jepa.probe.evaluate`; contexts here are three grids of an orbit.
    seen_ids: what the encoder was trained on, a family as `programs:<family>`. held_out: the families to report apart;
    those that seen_ids lack, unless given. An encoder that has seen no program has one row for both.
    Raises ValueError where a task whose inputs are asked about was trained on.
    """
    seen_ids = set(seen_ids)
    if questions is None:
        training, evaluation = probe.load_tasks()
        _collections.check_no_overlap(seen_ids, [task.id for task in evaluation["arc1"]], "the probes about programs")
        questions = _program_probes.build(training, evaluation["arc1"], seed=seed)
    table = _objects.tokenise_cached(questions.grids, questions.backgrounds, cache_dir)
    seen = {name for name in FAMILIES if f"{SEEN}{name}" in seen_ids}
    apart = (set(FAMILIES) - seen if seen else set()) if held_out is None else set(held_out)
    masks, episodes = _masks(questions, apart), _episodes(questions, apart, seed)
    answered = {}
    for name, encoder in {"trained": (embed, predict), "untrained": untrained}.items():
        if encoder is not None:
            answered[name] = answer(*encoder, table, questions, masks, episodes)
    for name, control in CONTROLS.items():
        answered[name] = answer(jax.jit(control), None, table, questions, masks, episodes)
    noise = np.random.default_rng(seed).normal(size=(len(questions.grids), 256)).astype(np.float32)
    plain = {"pixels": _pixels(questions.grids), "no_information": noise.__getitem__}
    answered |= {name: answers(z, questions, masks, episodes) for name, z in plain.items()}
    asked = {name: c for name, c in chances(questions, masks, episodes).items() if name in answered["trained"]}
    return {
        "seed": seed,
        "num_tasks": {"arc1": len(np.unique(questions.evaluation.groups))},
        "held_out": sorted(apart),
        "rows": [_row(name, chance, answered) for name, chance in asked.items()],
        "resampled": {name: resampled(answered["trained"][name]) for name in asked},
    }


def answer(
    embed: probe.Embed,
    predict: Callable | None,
    table: Table,
    questions: Questions,
    masks: Masks,
    episodes: dict[str, Episodes],
) -> dict[str, Outcome]:
    """The outcomes of an encoder: its predictor's in the metric it was trained in, all others standardised."""
    raw = scorers.in_chunks(embed, table, np.arange(len(table["size"])))
    mean, std = scorers.moments(raw[questions.training.rows.reshape(-1)])
    outcomes = answers(((raw - mean) / std).__getitem__, questions, masks, episodes)
    if predict is not None:
        z_hat = scorers.in_chunks(predict, table, questions.orbits.shown)
        predicted = program_scorers.predicted(raw.__getitem__, z_hat, questions.orbits)
        outcomes |= _parts("orbit", {"predictor_l2": predicted}, masks)
    return outcomes


def answers(z: Embeddings, questions: Questions, masks: Masks, episodes: dict[str, Episodes]) -> dict[str, Outcome]:
    """The outcomes that need nothing but embeddings, by `<probe>/<part>/<scorer>`."""
    test = _classified(questions.evaluation)
    outcomes = _parts("family", program_scorers.families(z, questions.training, test), masks)
    # The mean over the families, however many pairs of each there are.
    for name, part in masks["family"].items():
        _, kind, count = np.unique(test.families[part], return_inverse=True, return_counts=True)
        weight = len(kind) / (len(count) * count[kind])
        for form in program_scorers.FORMS:
            path = f"family/{name}/{form}"
            outcomes[path] = outcomes[path]._replace(values=outcomes[path].values * weight)
    outcomes |= _parts("orbit", program_scorers.orbits(z, questions.orbits), masks)
    for length, q in questions.first_steps.items():
        outcomes |= _parts(f"first_step_{length}", program_scorers.first_steps(z, q), masks)
    for part, asked in episodes.items():
        for shots in SHOTS:
            found = program_scorers.few_shot(z, questions.evaluation, asked, shots=shots)
            outcomes |= {f"few_shot_{shots}/{part}/{form}": outcome for form, outcome in found.items()}
    return outcomes


def chances(questions: Questions, masks: Masks, episodes: dict[str, Episodes]) -> dict[str, float]:
    """The probes in the order they are printed, with what a blind guess scores."""
    chance = {f"family/{part}/{form}": 1 / len(CLASSIFIED) for part in masks["family"] for form in ("pair", "delta")}
    for part, mask in masks["orbit"].items():
        blind = program_scorers.chance(questions.orbits.right[mask])
        chance |= {f"orbit/{part}/{scorer}": blind for scorer in ("extrapolation", "delta_cosine", "predictor_l2")}
    for length, q in questions.first_steps.items():
        for part, mask in masks[f"first_step_{length}"].items():
            chance[f"first_step_{length}/{part}/nearest"] = program_scorers.chance(q.right[mask])
    for shots in SHOTS:
        chance |= {f"few_shot_{shots}/{part}/delta": 1 / asked.support.shape[1] for part, asked in episodes.items()}
    return chance


def _classified(pairs: Pairs) -> Pairs:
    kept = np.isin(pairs.families, numbers(CLASSIFIED))
    return Pairs(*(field[kept] for field in pairs))


def _masks(questions: Questions, apart: set[str]) -> Masks:
    """Which questions are about held-in families alone and which about a held-out one, where there are both."""
    programs = {"family": _classified(questions.evaluation).families[:, None], "orbit": questions.orbits.programs}
    programs |= {f"first_step_{length}": q.programs for length, q in questions.first_steps.items()}
    masks = {}
    for name, families in programs.items():
        novel = np.isin(families, numbers(sorted(apart))).any(axis=1)
        parts = {"all": novel | True, "held_in": ~novel, "held_out": novel}
        masks[name] = parts if novel.any() and not novel.all() else {"all": parts["all"]}
    single = questions.orbits.programs[:, 0] == questions.orbits.programs[:, 1]
    masks["orbit"] |= {"one_primitive": single}
    return masks


def _episodes(questions: Questions, apart: set[str], seed: int) -> dict[str, Episodes]:
    """Episodes of held-in and of held-out families, where there are two or more of each, else of all together."""
    parts = {"held_in": [name for name in APPLICABLE if name not in apart]}
    parts["held_out"] = [name for name in APPLICABLE if name in apart]
    parts = parts if parts["held_out"] and parts["held_in"] else {"all": list(APPLICABLE)}
    return {
        part: _program_probes.episodes(questions.evaluation, names, seed=seed)
        for part, names in parts.items()
        if len(names) > 1
    }


def _parts(probe_name: str, outcomes: dict[str, Outcome], masks: Masks) -> dict[str, Outcome]:
    return {
        f"{probe_name}/{part}/{scorer}": Outcome(outcome.values[mask], outcome.groups[mask])
        for part, mask in masks[probe_name].items()
        for scorer, outcome in outcomes.items()
    }


def _pixels(grids: list[np.ndarray]) -> Embeddings:
    """The one-hot cells of any rows of grids, made when they are asked for."""

    def z(rows: np.ndarray) -> np.ndarray:
        flat = one_hot_pixels([grids[row] for row in rows.reshape(-1)])
        return flat.reshape(*rows.shape, flat.shape[-1])

    return z


def _row(name: str, chance: float, answered: Answered) -> dict:
    """One probe of the table; a control has no predictor, so it extrapolates."""
    probe_name, part, scorer = name.split("/")
    of_controls = f"orbit/{part}/extrapolation" if scorer == "predictor_l2" else name
    shown = "input_only" if probe_name.startswith(("family", "few_shot")) else "copy"
    return row(name, chance, answered, of_controls=of_controls, baselines={shown: f"{probe_name}/{part}/{shown}"})
