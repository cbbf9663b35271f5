"""The rules that judge a run: silent on a healthy record, each named by its own signature, and on documented runs."""

import json

import numpy as np
import pytest

from jepa import findings, findings_record, findings_rules, run_folder
from jepa.findings import examine, record_of
from jepa.findings_record import Series

NAMES = [rule.name for rule in findings_rules.RULES]

CONFIG = {
    "num_steps": 1000,
    "max_grad_norm": 1.0,
    "best_metric": "val/prediction",
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 100},
    "objective": {"tau_min": 0.05, "tau_max": 0.2, "latent_norm": "none"},
    "quantizer": {"num_codes": 768},
    "weights": {"prediction": 1.0, "infonce": 1.0, "relational": 0.025, "sigreg": 10.0, "quantizer": None},
}


def falling(first, last):
    """A curve over the share of the run that is done, straight in the logarithm."""
    return lambda t: first * (last / first) ** np.minimum(2 * t, 1)


def constant(value):
    return lambda t: np.full_like(t, value)


# A healthy run that has every metric a rule reads: logged every 10 steps, evaluated every 50.
LOGGED = {
    "loss/total": falling(4.0, 0.5),
    "loss/total_max": falling(4.4, 0.55),
    "loss/sigreg": falling(0.22, 0.03),
    "loss/relational": falling(0.3, 0.2),
    "loss/decoder": falling(0.5, 0.1),
    "share/prediction": constant(0.4),
    "share/relational": constant(0.02),
    "share/sigreg": constant(0.5),
    "grad/norm": lambda t: 0.8 + 0.4 * np.sin(40 * t),
    "grad/norm_max": constant(3.0),
    "grad/clipped_share": constant(0.4),
    "grad_share/prediction": constant(0.6),
    "grad_share/relational": constant(0.1),
    "grad_share/sigreg": constant(0.3),
    "health/skipped": constant(0.0),
    "update_ratio": falling(0.002, 0.0001),
    "metric/infonce/tau": falling(0.07, 0.06),
    "metric/infonce/chance": constant(np.log(128 + 8192)),
    "metric/infonce/gain": lambda t: 5 * t,
    "metric/infonce/in_batch": falling(4.8, 1.0),
    "metric/infonce/in_batch_chance": constant(np.log(128)),
    "codes/jump": falling(0.02, 0.004),
    "time/input_share": constant(0.01),
}
EVALUATED = {
    "val/prediction": falling(0.9, 0.25),
    "val/prediction/copy_ratio": falling(1.2, 0.35),
    "val/prediction/moved_ratio": falling(0.8, 0.6),
    "val/codes/agreement": constant(0.8),
    "val/latent/raw_norm": falling(3.0, 4.0),
    "val/rollout/norm_ratio_1": constant(1.0),
    "val/rollout/norm_ratio_8": falling(0.9, 1.05),
    "val/rollout/copy_ratio_8": falling(0.9, 0.2),
    "val/decoder/error": falling(0.1, 0.001),
    "val/decoder/error_1": falling(0.1, 0.001),
    "val/decoder/error_8": falling(0.1, 0.003),
    "val/decoder/copy_8": constant(0.004),
    "codes/usage": falling(0.6, 0.8),
    "codes/window": constant(8192.0),
}
for role in ("context", "target", "predicted", "projected"):
    EVALUATED |= {
        f"diag/{role}/std": falling(0.5, 0.9),
        f"diag/{role}/norm": falling(9.0, 10.5),
        f"diag/{role}/mean_norm": falling(3.0, 1.5),
        f"diag/{role}/effective_rank": falling(8.0, 15.0),
        f"diag/{role}/effective_rank_expected": constant(112.0),
        f"diag/{role}/rank_ratio": falling(8 / 112, 15 / 112),
    }


def record(changes, config=None):
    """The healthy record with other curves for some metrics, and other values in its config."""
    rows = {step: {"step": step} for step in range(10, 1001, 10)}
    for curves, every in ((LOGGED, 10), (EVALUATED, 50)):
        steps = np.arange(every, 1001, every)
        for name, curve in (curves | {name: changes[name] for name in changes if name in curves}).items():
            values = curve(steps / 1000)
            for step, value in zip(steps, values, strict=True):
                rows[int(step)][name] = float(value)
    assert set(changes) <= {*LOGGED, *EVALUATED}
    return record_of(list(rows.values()), run_folder.flatten(CONFIG) | (config or {}))


def named(found):
    return [finding.name for finding in found]


def at(step, value, elsewhere):
    """A curve that has `value` at one step."""
    return lambda t: np.where(np.isclose(1000 * t, step), value, elsewhere(t))


FAULTS = {
    "non-finite-steps": ({"health/skipped": lambda t: np.where(t > 0.5, 2.0, 0.0)}, {}),
    "learning-rate-too-high": ({"update_ratio": constant(0.02), "loss/total": constant(4.0)}, {}),
    "relational-explosion": (
        {"loss/relational": lambda t: 7 + 40 * t**2, "share/relational": lambda t: 0.02 + 0.08 * t},
        {},
    ),
    "sigreg-inert": ({"loss/sigreg": falling(0.405, 0.401)}, {}),
    "temperature-too-high": (
        {"metric/infonce/tau": constant(0.5)},
        {"objective.tau_min": 0.5, "objective.tau_max": 0.5},
    ),
    "stale-negatives": ({"metric/infonce/in_batch": constant(4.9)}, {}),
    "codebook-discontinuity": ({"codes/jump": at(600, 0.5, falling(0.02, 0.004))}, {}),
    "point-collapse": (
        {
            "diag/target/mean_norm": constant(9.98),
            "diag/target/norm": constant(10.0),
            "diag/target/std": constant(0.05),
        },
        {},
    ),
    "dimensional-collapse": ({"diag/context/effective_rank": falling(12.0, 1.4)}, {}),
    "codebook-collapse": ({"codes/usage": falling(0.24, 0.017)}, {}),
    "regulariser-dominates": ({"share/sigreg": constant(0.99)}, {}),
    "regulariser-dominated": ({"share/sigreg": constant(0.01), "diag/context/rank_ratio": constant(0.03)}, {}),
    "norm-drift-up": ({"diag/context/norm": lambda t: 10 * np.exp(2 * t)}, {}),
    "norm-drift-down": ({"diag/target/norm": lambda t: 10 * np.exp(-1.5 * t)}, {}),
    "codebook-jumps": ({"codes/jump": at(600, 0.2, falling(0.02, 0.004))}, {}),
    "codebooks-disagree": ({"val/codes/agreement": constant(0.3)}, {}),
    "term-starved": ({"grad_share/relational": constant(0.01)}, {}),
    "loss-spike": ({"loss/total_max": at(700, 2.0, LOGGED["loss/total_max"])}, {}),
    "validation-spike": ({"val/prediction": at(600, 0.8, EVALUATED["val/prediction"])}, {}),
    "train-validation-divergence": (
        {"val/prediction/copy_ratio": lambda t: 0.25 + 0.3 * np.abs(t - 0.5), "loss/total": lambda t: 4 * 0.1**t},
        {},
    ),
    "predictor-copies": ({"val/prediction/moved_ratio": constant(0.01)}, {}),
    "rollout-norm-gap": ({"val/rollout/norm_ratio_8": lambda t: 1 + t}, {}),
    "latent-norm-drift": ({"val/latent/raw_norm": lambda t: 3 * np.exp(1.5 * t)}, {}),
    "decoder-out-of-distribution": ({"diag/predicted/norm": constant(5.0)}, {}),
    "clipping-saturated": ({"grad/clipped_share": constant(1.0), "grad/norm": constant(3.0)}, {}),
    "warmup-unfinished": ({}, {"optimizer.warmup_steps": 1000}),
    "data-starved": ({"time/input_share": constant(0.5)}, {}),
    "temperature-at-lower-bound": ({"metric/infonce/tau": constant(0.05)}, {}),
    "temperature-at-upper-bound": ({"metric/infonce/tau": constant(0.2)}, {}),
    "best-checkpoint-past": (
        {name: lambda t: 0.25 + 0.05 * np.abs(t - 0.5) for name in ("val/prediction", "val/prediction/copy_ratio")},
        {},
    ),
}


def test_a_healthy_record_has_no_finding_and_every_rule_its_metrics():
    healthy = record({})
    assert examine(healthy) == [] and findings.unjudged(healthy) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_rule_is_fired_by_its_signature(name):
    changes, config = FAULTS[name]
    found = examine(record(changes, config))
    assert name in named(found)
    assert findings.SERIOUSNESS.index(found[0].seriousness) <= findings.SERIOUSNESS.index(found[-1].seriousness)
    [finding] = [finding for finding in found if finding.name == name]
    assert finding.evidence and 0 <= finding.since <= 1000
    assert not changes or any(metric in finding.evidence for metric in changes), finding.evidence


@pytest.mark.parametrize("name", NAMES)
def test_a_fault_is_the_first_or_second_finding(name):
    assert name in named(examine(record(*FAULTS[name])))[:2]


def test_no_rule_speaks_without_its_metrics():
    bare = record({})._replace(series={}, config={"num_steps": 1000})
    assert examine(bare) == [] and findings.unjudged(bare) == NAMES


@pytest.mark.parametrize("rule", findings_rules.RULES, ids=NAMES)
def test_a_rule_asks_for_no_metric_that_may_be_missing(rule):
    whole = record(*FAULTS[rule.name])
    less = [whole._replace(series={k: v for k, v in whole.series.items() if k != name}) for name in whole.series]
    less += [whole._replace(config={k: v for k, v in whole.config.items() if k != key}) for key in whole.config]
    for partial in less:
        if findings_record.has(partial, *rule.needs):
            rule.judge(partial)


@pytest.mark.parametrize("step", [10, 50, 100, 200, 400])
def test_a_run_in_progress_is_judged_without_alarm(step):
    """What is said while the run is young, of the healthy one."""
    young = record({})
    series = {
        name: Series(s.steps[s.steps <= step], s.values[s.steps <= step])
        for name, s in young.series.items()
        if s.steps[0] <= step
    }
    assert examine(young._replace(series=series, step=step)) == []


def test_evidence_says_since_when_and_how_much():
    [finding] = examine(record({"codes/jump": at(600, 0.5, constant(0.01))}))
    assert (finding.name, finding.since) == ("codebook-discontinuity", 600)
    assert "codes/jump 0.5 at step 600" in finding.evidence
    late_point = lambda t: np.where(t > 0.7, 9.99, 3.0)  # noqa: E731
    [finding] = examine(record({"diag/context/mean_norm": late_point, "diag/context/norm": constant(10.0)}))
    assert (finding.name, finding.since) == ("point-collapse", 750)


@pytest.mark.parametrize(
    ("changes", "config"),
    [
        ({"loss/sigreg": falling(0.405, 0.401)}, {"weights.sigreg": 0.0}),  # reported, not trained on
        ({"loss/relational": falling(1480.0, 0.1)}, {}),  # raw at the start, then met
        ({"codes/jump": at(50, 5.0, constant(0.01))}, {}),  # in the first tenth a codebook finds its place
        ({"loss/sigreg": falling(0.405, 0.15)}, {}),  # slow, but moving
        ({"diag/predicted/effective_rank": constant(1.1)}, {}),  # of predictions alone
        ({"grad_share/sigreg": constant(0.001)}, {}),  # a regulariser that is met
        ({"metric/infonce/tau": constant(0.2)}, {"objective.tau_min": 0.2}),  # a fixed temperature that works
        ({"val/prediction": lambda t: 0.25 + 0.05 * np.abs(t - 0.5)}, {}),  # the embeddings spread
    ],
)
def test_what_is_no_fault_is_none(changes, config):
    assert examine(record(changes, config)) == []


def test_a_leap_is_serious_once_the_codebook_has_found_its_place():
    for step, names in ((50, []), (150, ["codebook-jumps"]), (250, ["codebook-discontinuity"])):
        assert named(examine(record({"codes/jump": at(step, 0.9, constant(0.01))}))) == names


def test_rows_of_unit_length_and_a_relation_of_raw_distances_that_fall_are_seen():
    """Both improve a little: neither gets to where it could be."""
    rows = {"loss/sigreg": lambda t: 0.328 + 0.1 * np.exp(-10 * t) + 0.01 * np.sin(999 * t)}
    assert named(examine(record(rows))) == ["sigreg-inert"]
    relations = {"loss/relational": falling(10.0, 5.5), "share/relational": falling(0.13, 0.085)}
    assert named(examine(record(relations))) == ["relational-explosion"]


def test_rank_is_judged_against_what_so_few_samples_allow():
    """An effective rank of 3 is a collapse where N(0, I) has 112, and none where it has 15."""
    low = {"diag/context/effective_rank": constant(3.2)}
    assert named(examine(record(low))) == ["dimensional-collapse"]
    small = {"diag/context/effective_rank_expected": constant(15.0), "diag/context/rank_ratio": constant(3.2 / 15)}
    assert examine(record(low | small)) == []
    narrow = {"diag/context/effective_rank": constant(1.9), "diag/context/effective_rank_expected": constant(2.9)}
    assert examine(record(narrow)) == []


@pytest.mark.parametrize(("value", "within"), [(1.3, 1.2), (0.75, 0.85)])
def test_a_rollout_of_another_length_is_seen_at_its_last_step(value, within):
    assert named(examine(record({"val/rollout/norm_ratio_8": constant(value)}))) == ["rollout-norm-gap"]
    [finding] = examine(record({"val/rollout/norm_ratio_8": constant(value)}))
    assert f"val/rollout/norm_ratio_8 {value}" in finding.evidence
    assert examine(record({"val/rollout/norm_ratio_8": constant(within)})) == []
    assert examine(record({"val/rollout/norm_ratio_1": constant(value)})) == []  # which the last step answers for


@pytest.mark.parametrize("policy", ["none", "loss_only", "encoder_only", "global", "anchor"])
def test_a_length_may_grow_where_the_policy_holds_it_and_until_it_has_found_its_place(policy):
    grows = {"val/latent/raw_norm": lambda t: 3 * np.exp(1.5 * t)}
    held = policy in ("global", "anchor")
    assert named(examine(record(grows, {"objective.latent_norm": policy}))) == ([] if held else ["latent-norm-drift"])
    placed = {"val/latent/raw_norm": lambda t: 3 * np.exp(3 * np.minimum(t, 0.4))}
    slow = {"val/latent/raw_norm": lambda t: 3 * np.exp(0.6 * t)}
    for curves in (placed, slow):
        assert examine(record(curves, {"objective.latent_norm": policy})) == []


def test_a_decoder_is_misled_where_the_latent_is_right_and_the_picture_worse_than_none():
    """Not where the picture is as wrong as a spot that has moved, where the latent is wrong too, or where the decoder
    knows nothing yet."""
    wrong = {"val/decoder/error_8": constant(0.02)}
    [finding] = examine(record(wrong))
    assert finding.name == "decoder-out-of-distribution"
    assert "val/decoder/error_8 0.02 at step 1000 where true latents have 0.001" in finding.evidence
    assert examine(record({"val/decoder/error_8": constant(0.0045)})) == []
    assert examine(record(wrong | {"val/rollout/copy_ratio_8": constant(0.7)})) == []
    assert examine(record({"val/decoder/error": constant(0.2), "val/decoder/error_8": constant(0.21)})) == []


def test_usage_is_judged_against_what_so_few_tokens_allow():
    """A hundred tokens cannot show more than 12 % of 768 codes."""
    few = {"codes/usage": constant(0.1), "codes/window": constant(100.0)}
    assert examine(record(few)) == []
    assert named(examine(record(few | {"codes/window": constant(8192.0)}))) == ["codebook-collapse"]


def test_numbers_that_are_not_finite_are_no_crash():
    for name in (*LOGGED, *EVALUATED):
        for value in (np.nan, np.inf):
            examine(record({name: constant(value)}))


def test_new_findings_are_those_not_printed_yet():
    found = examine(record({"codes/jump": constant(0.5), "health/skipped": constant(1.0)}))
    assert named(findings.new_findings(found, ["non-finite-steps"])) == ["codebook-discontinuity"]
    assert findings.new_findings(found, named(found)) == []


def test_the_text_of_a_finding_holds_all_of_it():
    [finding] = examine(record({"time/input_share": constant(0.5)}))
    text = findings.as_text(finding)
    for part in (finding.name, finding.seriousness, finding.evidence, finding.cause, finding.remedy):
        assert part in text


def test_names_and_remedies():
    """Names are unique and in kebab case; a remedy names a key that a config has."""
    assert len(set(NAMES)) == len(NAMES) and set(FAULTS) == set(NAMES)
    keys = config_keys()
    for rule in findings_rules.RULES:
        assert rule.name == rule.name.lower().replace(" ", "-").replace("_", "-")
        words = set(rule.remedy.replace(",", " ").replace(";", " ").split())
        assert words & keys or rule.name in ("sigreg-inert",), rule.remedy
        unknown = {word for word in words if "." in word.strip(".") and word[0].isalpha() and word not in keys}
        assert {word for word in unknown if not word.endswith(".py)")} <= {"configs/infonce.py:"}, unknown


def config_keys():
    """Every dotted key of the configs, and its last part."""
    from configs import infonce, lejepa_codes, world_model

    keys = set()
    for config in (infonce.get_config(), lejepa_codes.get_config("vq_ema"), world_model.get_config()):
        flat = run_folder.flatten(config.to_dict())
        keys |= {*flat, *(key.split(".")[-1] for key in flat), *config}
    return keys


def write(folder, rows, config=CONFIG, timing=()):
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"step": 3, "lo')
    if timing:
        (folder / "timing.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in timing))


def test_a_run_folder_is_read_while_it_is_written(tmp_path):
    rows = [{"step": 1, "loss/total": "NaN"}, {"step": 2, "loss/total": 0.5}, {"step": 2, "val/prediction": 0.1}]
    write(tmp_path, rows, timing=[{"step": 2, "time/input_share": 0.3}])
    read = findings.read(tmp_path)
    assert (read.num_steps, read.step) == (1000, 2)
    np.testing.assert_array_equal(read.series["loss/total"].steps, [1, 2])
    np.testing.assert_array_equal(read.series["loss/total"].values, [np.nan, 0.5])
    assert read.series["val/prediction"].values.tolist() == [0.1]
    assert read.series["time/input_share"].steps.tolist() == [2]
    assert read.config["optimizer.warmup_steps"] == 100 and read.config["weights.quantizer"] is None


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json"):
        findings.read(tmp_path)
    write(tmp_path, [])
    with pytest.raises(ValueError, match="no readable line"):
        findings.read(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match="has not logged a step yet"):
        findings.read(tmp_path)
    write(tmp_path, [{"step": 1, "loss/total": 1.0}], config={"seed": 0})
    with pytest.raises(ValueError, match="has no num_steps"):
        findings.read(tmp_path)


# ------------------------------------------------------------------------------------------- the documented runs
# Transcribed under our names from the documents of the system that this library follows. They list terms weighted.

EPOCH = 95  # steps: 7600 in 80 epochs
DOCUMENTED = {
    "max_grad_norm": 0.5,
    "best_metric": "val/infonce",
    "optimizer.warmup_steps": 1000,
    "objective.tau_min": 0.05,
    "objective.tau_max": 0.2,
    "quantizer.num_codes": 768,
    "weights.infonce": 1.0,
    "weights.relational": 0.025,
    "weights.sigreg": 0.1,
}


def documented(columns, num_epochs):
    """A record from {metric: {step: value}}."""
    rows = [{"step": step, name: value} for name, column in columns.items() for step, value in column.items()]
    return record_of(rows, DOCUMENTED | {"num_steps": num_epochs * EPOCH})


def by_epoch(epochs, values):
    return {epoch * EPOCH: value for epoch, value in zip(epochs, values, strict=True)}


def production():
    """The document "JEPA Production Run Analysis & Improvement Plan": its tables "Training Loss Components",
    "Validation Loss Trajectory", "VQ Usage Trajectory", "Effective Rank Progression" and "Gradient Norm Statistics".
    Of usage it gives ranges over steps, which the readings here go through from end to end."""
    epochs = (1, 10, 20, 30, 40, 50, 60, 70, 71, 80)
    total = (9.451, 8.570, 8.529, 8.548, 8.484, 8.469, 8.350, 8.313, 8.667, 8.469)
    infonce = (9.042, 8.325, 8.199, 7.984, 7.805, 7.624, 7.507, 7.430, 7.511, 7.567)
    sigreg = (0.0405, 0.0404, 0.0403, 0.0403, 0.0402, 0.0401, 0.0401, 0.0401, 0.0401, 0.0401)
    relational = (0.351, 0.182, 0.263, 0.499, 0.623, 0.785, 0.789, 0.831, 1.101, 0.845)
    ranges = (
        (range(100, 501, 100), (0.23, 0.25, 0.27)),
        (range(600, 2901, 100), (0.13, 0.16, 0.18)),
        (range(3000, 3001, 100), (0.30,)),
        (range(3100, 3401, 100), (0.13, 0.14, 0.15)),
        (range(3500, 5001, 100), (0.14, 0.18, 0.21)),
        (range(5100, 7601, 100), (0.22, 0.29, 0.36, 0.29)),
    )
    usage = {step: values[i % len(values)] for steps, values in ranges for i, step in enumerate(steps)}
    columns = {
        "loss/total": by_epoch(epochs, total),
        "loss/infonce": by_epoch(epochs, infonce),
        "loss/sigreg": by_epoch(epochs, np.array(sigreg) / 0.1),
        "weighted/sigreg": by_epoch(epochs, sigreg),
        "loss/relational": by_epoch(epochs, np.array(relational) / 0.025),
        "share/relational": by_epoch(epochs, np.array(relational) / total),
        "share/infonce": by_epoch(epochs, np.array(infonce) / total),
        "val/infonce": by_epoch((1, 15, 30, 50, 69, 70, 80), (9.38, 8.40, 8.59, 8.43, 8.224, 8.26, 8.487)),
        "codes/usage": usage,
        "diag/context/effective_rank": dict(
            zip((100, 1000, 3000, 5000, 7600), (3.73, 3.91, 7.25, 14.56, 15.53), strict=True)
        ),
        "diag/target/effective_rank": dict(
            zip((100, 1000, 3000, 5000, 7600), (5.22, 6.55, 8.63, 16.06, 19.34), strict=True)
        ),
        "grad/norm": by_epoch(
            (1, 10, 30, 34, 35, 37, 38, 41, 42, 70, 80),
            (6.64, 11.59, 14.91, 28.80, 29.46, 36.38, 35.80, 31.13, 17.82, 16.32, 21.25),
        ),
        "grad/norm_max": by_epoch(
            (1, 10, 30, 34, 35, 37, 38, 41, 42, 70, 80),
            (8.26, 22.33, 26.10, 54.50, 66.59, 66.68, 65.25, 81.60, 46.29, 48.37, 44.14),
        ),
    }
    return documented(columns, 80)


def test_the_documented_production_run():
    found = examine(production())
    assert named(found) == [
        "relational-explosion",
        "sigreg-inert",
        "codebook-discontinuity",
        "codebook-collapse",
        "clipping-saturated",
        "best-checkpoint-past",
    ]
    by_name = {finding.name: finding for finding in found}
    assert by_name["codebook-discontinuity"].since == 3000
    assert by_name["best-checkpoint-past"].since == 69 * EPOCH
    assert "stale-negatives" in findings.unjudged(production())  # its in-batch loss was not logged


def test_the_documented_run_without_codes():
    """The document "JEPA VQ Diagnostic Results": held out 43.0 to 7.75 in 30 epochs, ranks that grow, and gradients of
    a mean of 51 to 121 and a maximum of 115 to 252 in epochs 10 to 22. Its relational term has a first and a last value
    only, 37.1 and 0.35: not enough to say more. "Smooth" is taken as straight in the logarithm."""
    epochs = np.arange(1, 31)
    along = (epochs - 1) / 29
    clipped = range(10, 23)
    columns = {
        "val/infonce": by_epoch(epochs, 43.0 * (7.75 / 43.0) ** along),
        "diag/context/effective_rank": by_epoch(epochs, 12.7 + 20.5 * along),
        "diag/target/effective_rank": by_epoch(epochs, 24.7 + 18.4 * along),
        "loss/relational": by_epoch((1, 30), (37.1 / 0.025, 0.35 / 0.025)),
        "loss/total": by_epoch((1,), (46.38,)),
        "share/relational": by_epoch((1,), (37.09 / 46.38,)),
        "grad/norm": by_epoch(clipped, np.linspace(51, 121, 13)),
        "grad/norm_max": by_epoch(clipped, np.linspace(115, 252, 13)),
    }
    assert named(examine(documented(columns, 30))) == ["clipping-saturated"]


def test_the_documented_failed_run():
    """The run "Sixth Run (WITH VQ)" of the same document, stopped at epoch 22 of 80: a spike of 27.2 at epoch 13 and
    9.18 at the end, rank 6.4 to 1.36 and 5.96 to 2.40, usage 24 % to 1.7 %. It gives ends only; here straight lines lie
    between."""
    epochs = np.arange(1, 23)
    along = (epochs - 1) / 21
    held_out = np.where(epochs == 13, 27.2, 9.18)
    columns = {
        "val/infonce": by_epoch(epochs, held_out),
        "diag/context/effective_rank": by_epoch(epochs, 6.4 - 5.04 * along),
        "diag/target/effective_rank": by_epoch(epochs, 5.96 - 3.56 * along),
        "codes/usage": by_epoch(epochs, 0.24 - 0.223 * along),
    }
    assert named(examine(documented(columns, 80))) == ["dimensional-collapse", "codebook-collapse", "validation-spike"]


def test_the_documented_run_with_gentle_codes():
    """The document "JEPA Architectural Fixes - Before Production Run": "VQ usage: 10-17% stable", 10.9 % at the end of
    30 epochs, ranks of 7.5 and 10.0, held out 8.39."""
    epochs = np.arange(1, 31)
    columns = {
        "codes/usage": by_epoch(epochs, [*np.tile([0.10, 0.14, 0.17], 10)[:29], 0.109]),
        "diag/context/effective_rank": by_epoch((30,), (7.5,)),
        "diag/target/effective_rank": by_epoch((30,), (10.0,)),
        "val/infonce": by_epoch((30,), (8.39,)),
    }
    assert named(examine(documented(columns, 30))) == ["codebook-collapse"]


def test_the_documented_term_without_a_gradient():
    """The document "Loss Normalization": a countdown of 105 outputs beside two pointers falls from 16.0 to 15.5 in 20
    epochs, by its reckoning at 2.6 % of the pointers' effective learning rate."""
    share = 0.026 / 1.026
    columns = {
        "loss/countdown": by_epoch((1, 5, 10, 20), (16.0, 15.9, 15.7, 15.5)),
        "grad_share/countdown": by_epoch((1, 5, 10, 20), (share,) * 4),
        "grad_share/pointers": by_epoch((1, 5, 10, 20), (1 - share,) * 4),
    }
    [finding] = examine(documented(columns, 20))
    assert finding.name == "term-starved" and "countdown" in finding.evidence


# ------------------------------------------------------------------------------------------------- questions asked


def test_lasting_is_the_start_of_the_last_unbroken_stretch():
    series = Series(np.arange(10, 70, 10), np.zeros(6))
    holds = np.array([True, False, True, True, True, True])
    assert findings_record.lasting(series, holds) == 30
    assert findings_record.lasting(series, holds, 5) is None
    assert findings_record.lasting(series, ~holds) is None
    assert findings_record.lasting(series, np.ones(6, bool)) == 10


def test_rising_is_the_share_of_pairs_in_order():
    def tau(values):
        return findings_record.rising(Series(np.arange(len(values)), np.array(values, float)))

    assert tau([1, 2, 5]) == 1 and tau([3, 2, 1]) == -1 and tau([1]) == 0
    assert tau([1, 3, 2]) == pytest.approx(1 / 3)
    noisy = np.arange(20_000) / 20_000 + np.random.default_rng(0).normal(size=20_000)
    assert tau(noisy) > 0.6 and abs(tau(noisy - np.arange(20_000) / 20_000)) < 0.2


@pytest.mark.parametrize(("pattern", "expected"), [("a/b", ["a/b"]), ("a/*", ["a/b", "a/c/d"]), ("x*", [])])
def test_metrics_by_pattern(pattern, expected):
    rows = [{"step": 1, "a/b": 1.0, "a/c/d": 1.0, "b": 0.0}]
    assert sorted(findings_record.named(record_of(rows, {"num_steps": 1}), pattern)) == expected
