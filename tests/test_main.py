"""The command as users run it: a subprocess on the tiny config, its folder, and its answers to mistakes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import jepa
from jepa import checkpoint, main, metrics

ROOT = Path(__file__).parent.parent


def command(workdir, *overrides, config="configs/lejepa.py:tiny"):
    return [sys.executable, "-m", "jepa.main", f"--config={config}", f"--workdir={workdir}", *overrides]


def run(workdir, *overrides, config="configs/lejepa.py:tiny"):
    return subprocess.run(
        command(workdir, *overrides, config=config), cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def final_params(workdir):
    leaves = checkpoint.read(workdir).state["params"]
    return json.dumps({path: leaf.tobytes().hex() for path, leaf in flat(leaves).items()}, sort_keys=True)


def on(weights):
    return {name: weight for name, weight in weights.items() if weight is not None}


def flat(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix: np.asarray(tree)}
    return {path: leaf for name in tree for path, leaf in flat(tree[name], f"{prefix}/{name}").items()}


def rows(workdir):
    return metrics.read_record(Path(workdir) / "metrics.jsonl")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    done = run(workdir)
    assert done.returncode == 0, done.stderr
    return workdir, done


def test_the_main_job_trains_evaluates_and_says_what_it_did(finished):
    workdir, done = finished
    config = json.loads((workdir / "config.json").read_text())
    assert on(config["weights"]) == {"prediction": 1.0, "sigreg": 10.0} and config["num_steps"] == 20
    start = json.loads((workdir / "environment.json").read_text())["starts"][0]
    assert start["packages"]["jax"] and len(start["train_ids"]) + len(start["validation_ids"]) == 623
    assert not set(start["train_ids"]) & set(start["validation_ids"])
    steps = [row["step"] for row in rows(workdir) if "loss/total" in row]
    assert steps == [5, 10, 15, 20]
    for row in rows(workdir):
        if "loss/total" in row:
            weighted = row["weighted/prediction"] + row["weighted/sigreg"]
            assert row["loss/total"] == pytest.approx(weighted, rel=1e-5)
            assert row["share/prediction"] + row["share/sigreg"] == pytest.approx(1.0, rel=1e-5)
            assert row["grad/norm_clipped"] <= config["max_grad_norm"] * (1 + 1e-6)
    held_out = {row["step"]: row["val/prediction"] for row in rows(workdir) if "val/prediction" in row}
    assert f"lowest val/prediction at step {min(held_out, key=held_out.get)}" in done.stdout
    assert "step 20/20" in done.stdout and "demo_gain" in done.stdout
    assert list(workdir.glob("events.out.tfevents*"))
    result = json.loads((workdir / "probes.json").read_text())
    assert result["validation"]["val/prediction/copy_ratio"] > 0


def test_a_finished_run_says_so(finished):
    workdir, _ = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    again = run(workdir)
    assert again.returncode == 0 and "finished at step 20" in again.stdout
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_another_config_in_the_same_folder_is_refused(finished):
    workdir, _ = finished
    refused = run(workdir, "--config.optimizer.learning_rate=0.5", "--config.log_every=10")
    assert refused.returncode == 2
    assert "optimizer.learning_rate: 0.001 in the run, 0.5 now" in refused.stderr and "log_every" not in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.slow
def test_a_terminated_run_saves_and_resumes_to_the_same_bits(finished, tmp_path):
    reference, _ = finished
    workdir = tmp_path / "stopped"
    process = subprocess.Popen(command(workdir), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while (
        process.poll() is None
        and time.monotonic() < deadline
        and not ((workdir / "metrics.jsonl").is_file() and (workdir / "metrics.jsonl").read_text().count("\n"))
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert run(workdir).returncode == 0
    assert final_params(workdir) == final_params(reference)
    assert rows(workdir) == rows(reference)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(finished, tmp_path):
    reference, _ = finished
    workdir = tmp_path / "killed"
    delays = np.random.default_rng(0).uniform(0.0, 2.0, size=3)
    for delay in delays:
        process = subprocess.Popen(command(workdir), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 200
        while process.poll() is None and time.monotonic() < deadline and not (workdir / "metrics.jsonl").is_file():
            time.sleep(0.01)
        time.sleep(delay)
        process.kill()
        process.wait()
    assert run(workdir).returncode == 0
    assert final_params(workdir) == final_params(reference)
    assert rows(workdir) == rows(reference)


def test_a_second_process_is_refused_with_the_pid_of_the_first(tmp_path):
    first = subprocess.Popen(command(tmp_path / "run"), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        lock = tmp_path / "run" / ".lock"
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and not (lock.is_file() and lock.read_text()):
            time.sleep(0.01)
        second = run(tmp_path / "run")
        assert second.returncode == 2 and f"in use by process {first.pid}" in second.stderr
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()


MISTAKES = {
    "--config.encoder.dimm=3": "unknown config key 'encoder.dimm': did you mean 'encoder.dim'?",
    "--config.data.collection=arc2-claen": "did you mean 'arc2-clean'?",
    "--config.platform=gpu": "JAX finds no GPU",
    "--config.platform=tpu": "must be 'cpu' or 'gpu'",
    "--config.compute_dtype=float16": "compute_dtype",
    "--config.batch_size=0": "batch_size",
    "--config.log_every=7": "config.log_every 7 must be a multiple of steps_per_call 5",
    "--config.encoder.pooling=max": "encoder.pooling is 'max'",
    "--config.objective.predictor=mlp": "objective.predictor is 'mlp'",
    "--config.init_from=runs/nowhere": "runs/nowhere",
    "--config.num_steps=none": "config.num_steps cannot be none",
    "--config.final_examples=0": "config.final_examples is 0",
    "--config.target_ema=1.5": "config.target_ema is 1.5",
    "--config.target_ema_final=0.5": "config.target_ema_final is where config.target_ema ends",
    "--config.best_metric=val/infonce": "config.best_metric is 'val/infonce'; it must be a held-out figure",
    "--config.objective.error=square": "did you mean 'squared'",
    "--config.objective.context=max": "objective.context is 'max'",
    "--profile=20:10": "--profile is '20:10'",
}


@pytest.mark.slow
@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_is_one_sentence(override, tmp_path):
    refused = run(tmp_path / "run", override)
    assert refused.returncode == 2, refused.stdout
    assert MISTAKES[override] in refused.stderr and "Traceback" not in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr


VARIANTS = [
    *(f"configs/lejepa.py:{words},tiny" for words in ("teacher,pooled", "mean", "views")),
    *("configs/infonce.py:tiny", "configs/infonce.py:tokens,tiny"),
]


@pytest.mark.slow
@pytest.mark.parametrize("config", VARIANTS)
def test_every_variant_trains_to_its_end(config, tmp_path):
    done = run(tmp_path / "run", config=config)
    assert done.returncode == 0, done.stderr
    assert all(np.isfinite(row["loss/total"]) for row in rows(tmp_path / "run") if "loss/total" in row)


@pytest.mark.slow
def test_a_run_starts_from_the_weights_of_another_and_keeps_what_is_frozen(finished, tmp_path):
    source, _ = finished
    options = (f"--config.init_from={source}", "--config.freeze=('trunk/encoder',)", "--config.seed=5")
    done = run(tmp_path / "run", *options)
    assert done.returncode == 0, done.stderr
    before, after = (flat(checkpoint.read(folder).state["params"]) for folder in (source, tmp_path / "run"))
    trunk = [path for path in before if path.startswith("/trunk/encoder")]
    assert trunk and all(np.array_equal(before[path], after[path]) for path in trunk)
    assert any(not np.array_equal(before[path], after[path]) for path in before if path not in trunk)


@pytest.mark.slow
def test_what_an_evaluation_task_taught_is_not_probed_not_even_through_another_run(tmp_path):
    direct = run(tmp_path / "direct", "--config.data.collection=arc2-train", "--config.probes=('arc',)")
    assert (
        direct.returncode == 2
        and "were trained on" in direct.stderr
        and not (tmp_path / "direct/metrics.jsonl").exists()
    )
    assert run(tmp_path / "teacher", "--config.data.collection=arc2-eval").returncode == 0
    pupil = run(tmp_path / "pupil", f"--config.init_from={tmp_path / 'teacher'}", "--config.probes=('arc',)")
    assert pupil.returncode == 2 and "were trained on" in pupil.stderr


@pytest.mark.slow
def test_a_mistake_at_the_first_start_does_not_lock_the_folder(tmp_path):
    wrong = run(tmp_path / "run", "--config.objective.num_readouts=3")
    assert wrong.returncode == 2 and "must divide the embedding's width" in wrong.stderr
    assert run(tmp_path / "run").returncode == 0


@pytest.mark.slow
def test_a_finished_run_can_be_extended(finished, tmp_path):
    source, _ = finished
    workdir = tmp_path / "longer"
    shutil.copytree(source, workdir)
    assert run(workdir, "--config.num_steps=30").returncode == 0
    assert json.loads((workdir / "probes.json").read_text())["step"] == 30
    assert [row["step"] for row in rows(workdir) if "loss/total" in row] == [5, 10, 15, 20, 25, 30]


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["truncated", "flipped"])
def test_a_damaged_newest_checkpoint_is_moved_aside_and_the_one_before_used(finished, tmp_path, harm):
    source, _ = finished
    workdir = tmp_path / "damaged"
    shutil.copytree(source, workdir)
    newest = workdir / "checkpoints" / "20"
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    if harm == "truncated":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    done = run(workdir)
    assert done.returncode == 0, done.stderr
    assert "the checkpoint at step 20 is damaged" in done.stdout and "resuming at step 10" in done.stdout
    assert list((workdir / "checkpoints" / "damaged").glob("20-*"))
    assert final_params(workdir) == final_params(source)


@pytest.mark.slow
def test_a_profile_is_a_trace_of_those_steps(tmp_path):
    done = run(tmp_path / "run", "--profile=5:10")
    assert done.returncode == 0 and "traced steps 5 to 10" in done.stdout, done.stderr
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_a_dry_run_shows_the_parameters_and_writes_nothing(tmp_path):
    shown = run(tmp_path / "run", "--dry_run")
    assert shown.returncode == 0 and "trunk/encoder/embed/kernel" in shown.stdout and "ms per step" in shown.stdout
    assert not (tmp_path / "run").exists()


def test_a_loaded_run_embeds_grids_and_names_what_is_not_one(finished):
    model = jepa.load(finished[0])
    grids = [np.array([[0, 1], [1, 0]]), np.zeros((30, 7), int), np.array([[3]])]
    embeddings = model.encode(grids)
    assert embeddings.shape == (3, 16) and embeddings.dtype == np.float32
    np.testing.assert_allclose(model.encode(grids[1:])[0], embeddings[1], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="12"):
        model.encode([np.array([[12]])])
    with pytest.raises(ValueError, match="no grid"):
        model.encode([])
    with pytest.raises(ValueError, match="background is 77"):
        model.encode(grids, background=77)
    with pytest.raises(ValueError, match="not the folder of a run"):
        jepa.load(finished[0] / "nowhere")


BAD_FILES = {
    "not JSON": ("{", "is not JSON"),
    "ragged rows": ('{"train": [{"input": [[1, 2], [3]], "output": [[1]]}]}', "task.json, train[0].input"),
    "a colour of 12": ('{"train": [{"input": [[1]], "output": [[1, 12]]}]}', "12"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", BAD_FILES)
def test_a_bad_grid_file_is_named(fault, tmp_path):
    content, said = BAD_FILES[fault]
    (tmp_path / "task.json").write_text(content)
    refused = run(tmp_path / "run", f"--config.data.folder={tmp_path}")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "task.json" in refused.stderr and said in refused.stderr


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    refused = run(tmp_path / "file" / "run")
    assert refused.returncode == 2 and "cannot be written to" in refused.stderr


@pytest.mark.slow
def test_a_term_can_be_turned_off_and_on_from_the_command_line(tmp_path):
    options = ("--config.weights.sigreg=none", "--config.target_ema", "0.9", "--config.num_steps=10")
    done = run(tmp_path / "run", *options)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert on(config["weights"]) == {"prediction": 1.0} and config["target_ema"] == 0.9
    last = [row for row in rows(tmp_path / "run") if "loss/total" in row][-1]
    assert "loss/sigreg" not in last and "metric/sigreg/T" not in last and last["share/prediction"] == 1.0


@pytest.mark.slow
def test_terms_that_are_off_by_default_can_be_given_a_weight(tmp_path):
    terms = ("weak_sigreg", "visreg", "vicreg_variance", "vicreg_covariance", "bhep", "norm_anchor")
    options = [f"--config.weights.{term}=0.1" for term in terms]
    done = run(tmp_path / "run", *options, "--config.num_steps=10", "--config.objective.statistic=anderson_darling")
    assert done.returncode == 0, done.stderr
    last = [row for row in rows(tmp_path / "run") if "loss/total" in row][-1]
    assert all(last[f"weighted/{term}"] == pytest.approx(0.1 * last[f"loss/{term}"]) for term in terms)


@pytest.mark.slow
def test_a_queue_and_a_teacher_resume_to_the_same_bits(tmp_path):
    config, schedule = "configs/infonce.py:tiny", "--config.target_ema_final=1.0"
    whole = run(tmp_path / "whole", schedule, config=config)
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(command(tmp_path / "stopped", schedule, config=config), cwd=ROOT, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while (
        process.poll() is None
        and time.monotonic() < deadline
        and not list((tmp_path / "stopped").glob("checkpoints/10"))
    ):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    resumed = run(tmp_path / "stopped", schedule, config=config)
    assert resumed.returncode == 0 and "resuming at step 10" in resumed.stdout, resumed.stderr
    kept = ("params", "target_params", "opt_state", "objective_state")
    saved = (checkpoint.read(tmp_path / name).state for name in ("whole", "stopped"))
    first, second = (flat({part: state[part] for part in kept}) for state in saved)
    assert "/objective_state/queue/embeddings" in first and first.keys() == second.keys()
    for path, leaf in first.items():
        assert leaf.tobytes() == second[path].tobytes(), path


@pytest.mark.slow
def test_drawn_data_and_their_levels_resume_to_the_same_bits(tmp_path):
    config = "configs/lejepa_programs.py:analogies,curriculum,tiny"
    # No error falls by so much, so that every evaluation but a level's first begins the next one.
    overrides = ("--config.curriculum.min_delta=0.9", "--config.num_steps=40")
    workers = "--config.data.sources.analogies.num_workers=1"
    whole = run(tmp_path / "whole", *overrides, config=config)
    assert whole.returncode == 0 and "level 1 begins at step 20" in whole.stdout, whole.stderr
    options = (tmp_path / "stopped", *overrides, workers)
    process = subprocess.Popen(command(*options, config=config), cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline and not (tmp_path / "stopped/checkpoints/20").exists():
        time.sleep(0.01)
    process.kill()
    process.wait()
    resumed = run(*options, config=config)
    assert resumed.returncode == 0 and "resuming at step" in resumed.stdout, resumed.stderr
    assert final_params(tmp_path / "stopped") == final_params(tmp_path / "whole")
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")
    levels = [row["curriculum/level"] for row in rows(tmp_path / "whole") if "curriculum/level" in row]
    assert levels == [0, 0, 1, 1]


def test_the_folder_of_a_run_is_named_after_config_and_variants():
    assert main.default_workdir("configs/lejepa.py") == os.path.join("runs", "lejepa")
    assert main.default_workdir("configs/lejepa.py:teacher,tiny") == os.path.join("runs", "lejepa-teacher-tiny")


def test_none_is_a_value_where_the_config_has_a_word_and_no_value_elsewhere():
    config = main.load_config("configs/infonce.py:tiny")
    assert not main.turns_off(config, "--config.objective.relation_normalize=none")
    assert main.turns_off(config, "--config.weights.sigreg=none")
    assert main.turns_off(config, "--config.init_from=None")
    assert not main.turns_off(config, "--workdir=none")


@pytest.mark.slow
def test_a_condition_that_ends_a_run_is_one_sentence(tmp_path):
    done = run(tmp_path / "run", "--config.abort=('val/prediction > 0',)")
    assert done.returncode == 2
    assert done.stderr.startswith("jepa: val/prediction is ") and "Traceback" not in done.stderr


def test_a_config_finds_its_neighbours_wherever_the_command_is_run(tmp_path):
    program = f"from jepa.main import load_config; print(load_config({str(ROOT / 'configs/infonce.py')!r}).seed)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
