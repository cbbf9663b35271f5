"""The metrics between two lines of the record, what the flight recorder makes of them, and a replayed event."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jepa import checkpoint, config_checks, flight_recorder, history, main, metrics, run_folder, stopwatch, train

ROOT = Path(__file__).parent.parent
TERMS = ["prediction", "sigreg", "gradient"]


def steps(losses, norms=None, bad_term=1):
    """A history with these losses; one that is not finite was skipped."""
    losses = np.array(losses, np.float32)
    bad = ~np.isfinite(losses)
    consecutive = np.zeros(len(losses), np.int32)
    for i in np.flatnonzero(bad):
        consecutive[i] = 1 + (consecutive[i - 1] if i else 0)
    return {
        "loss/total": losses,
        "grad/norm": np.array(norms if norms is not None else np.ones(len(losses)), np.float32),
        "health/skipped": np.cumsum(bad).astype(np.int32),
        "health/consecutive": consecutive,
        "health/bad_term": np.where(consecutive > 0, bad_term, -1).astype(np.int32),
    }


def test_a_line_shows_the_last_step_and_the_largest_of_all():
    seen = steps([3.0, 9.0, 2.0, 1.0], norms=[0.5, 4.0, 3.0, 0.25]) | {"codes/jump": np.array([0.1, 0.4, 0.2, 0.0])}
    line = history.line(
        history.join([{k: v[:1] for k, v in seen.items()}, {k: v[1:] for k, v in seen.items()}]), max_grad_norm=1.0
    )
    assert (line["loss/total"], line["loss/total_max"], line["codes/jump"]) == (1.0, 9.0, 0.4)
    assert (line["grad/norm"], line["grad/norm_max"], line["grad/clipped_share"]) == (0.25, 4.0, 0.5)


def test_steps_that_no_line_shows_survive_json_to_the_bit():
    seen = steps([3.0, np.nan, 1 / 3])
    (back,) = history.from_json(json.loads(json.dumps(history.as_json([seen]))))
    assert {k: (v.dtype, v.tobytes()) for k, v in back.items()} == {k: (v.dtype, v.tobytes()) for k, v in seen.items()}
    assert history.from_json(history.as_json([])) == []


def test_a_spike_is_a_loss_twice_the_largest_of_fifty_before():
    flat = list(np.linspace(1.0, 2.0, flight_recorder.WINDOW))
    found, recent = flight_recorder.find(1, steps(flat), [], TERMS)
    assert not found
    found, recent = flight_recorder.find(51, steps([3.9, 1.0, 8.0, 8.1]), recent, TERMS)
    assert [(i, kind) for i, kind, _ in found] == [(2, "spike")]  # against 3.9; then 8.1 against 8.0 is none
    assert "step 53" in found[0][2] and "2.05 times" in found[0][2]
    assert len(recent) == flight_recorder.WINDOW
    assert not flight_recorder.find(1, steps([1.0, 100.0]), [], TERMS)[0]  # nothing to measure it against yet


def test_of_steps_in_a_row_that_are_not_finite_the_first_is_an_event():
    found, recent = flight_recorder.find(11, steps([1.0, np.nan, np.inf, 2.0, np.nan]), [], TERMS)
    assert [(i, kind) for i, kind, _ in found] == [(1, "nonfinite"), (4, "nonfinite")]
    assert "step 12" in found[0][2] and "sigreg" in found[0][2]
    assert recent == [1.0, 2.0]


def test_cutting_a_history_anywhere_finds_the_same():
    losses = [*np.ones(55), 2.5, np.nan, np.nan, 1.0, 6.0]
    whole = flight_recorder.find(1, steps(losses), [], TERMS)[0]
    for cut in range(1, len(losses)):
        parts = (
            {name: values[part] for name, values in steps(losses).items()} for part in (slice(cut), slice(cut, None))
        )
        first, recent = flight_recorder.find(1, next(parts), [], TERMS)
        second, _ = flight_recorder.find(1 + cut, next(parts), recent, TERMS)
        assert [*first, *((i + cut, kind, reason) for i, kind, reason in second)] == whole


def happened(step, kind="spike", checkpoint=10):
    return flight_recorder.Event(step, kind, "why", [[1]], [0, 1], {"loss/total": "NaN"}, {}, checkpoint, 100)


def test_events_are_read_back_and_pin_their_checkpoints(tmp_path):
    for event in (happened(30), happened(9, "nonfinite", None), happened(15, checkpoint=12)):
        assert flight_recorder.write(tmp_path, event)
    assert flight_recorder.names(tmp_path) == ["9-nonfinite", "15-spike", "30-spike"]
    assert flight_recorder.read(tmp_path, "30-spike") == happened(30)
    assert flight_recorder.pinned(tmp_path) == {10, 12}
    with pytest.raises(ValueError, match="has no event '31-spike': did you mean '30-spike'"):
        flight_recorder.read(tmp_path, "31-spike")
    with pytest.raises(ValueError, match=r"has no event .*: nothing went wrong"):
        flight_recorder.read(tmp_path / "other", "1-spike")
    (tmp_path / "events" / "30-spike.json").write_text("{")
    with pytest.raises(ValueError, match="is not the file of an event"):
        flight_recorder.read(tmp_path, "30-spike")


def test_no_more_than_a_few_events_of_a_kind_are_kept(tmp_path):
    for step in range(flight_recorder.KEPT + 3):
        flight_recorder.write(tmp_path, happened(step))
    flight_recorder.write(tmp_path, happened(99, "abort"))
    assert len(flight_recorder.names(tmp_path)) == flight_recorder.KEPT + 1
    assert flight_recorder.write(tmp_path, happened(0))  # one that is there may be written again, after a resume


def test_a_stopwatch_gives_each_part_its_share_of_the_wall():
    now = iter([0.0, 1.0, 3.0, 4.0, 4.5, 10.0, 10.0, 12.0, 14.0])
    watch = stopwatch.start(100, clock=lambda: next(now))
    with watch.part("input"):
        pass
    with watch.part("evaluation"):
        pass
    figures = watch.lap(105)
    assert figures["time/step_seconds"] == 2.0
    assert (figures["time/input_share"], figures["time/evaluation_share"]) == (0.2, 0.05)
    with pytest.raises(ZeroDivisionError), watch.part("input"):
        raise ZeroDivisionError
    assert watch.lap(106)["time/input_share"] == 0.5  # what failed took its time too
    assert watch.whole() == {"input": pytest.approx(4 / 14), "evaluation": pytest.approx(0.5 / 14), "diagnosis": 0.0}


def tiny(**overrides):
    config = main.load_config("configs/lejepa.py:tiny")
    with config.unlocked():
        for key, value in overrides.items():
            section, name = main.section_of(config, key.replace("__", "."))
            with section.ignore_type():
                section[name] = value
    return config


@pytest.fixture(scope="module")
def diverged(tmp_path_factory):
    """A run whose second step makes parameters that overflow, with a checkpoint before it."""
    workdir = tmp_path_factory.mktemp("runs") / "diverged"
    with pytest.raises(FloatingPointError, match="steps in a row were not finite"):
        train.run(tiny(optimizer__learning_rate=1e25, optimizer__warmup_steps=10, num_steps=40), workdir)
    return workdir


@pytest.mark.slow
def test_a_step_that_is_not_finite_is_kept_and_replayed_exactly(diverged):
    (name,) = flight_recorder.names(diverged)
    event = flight_recorder.read(diverged, name)
    lines = metrics.read_record(diverged / "metrics.jsonl")
    line = next(row for row in lines if row["step"] >= event.step and "health/skipped" in row)
    assert line["health/skipped"] == line["step"] - event.step + 1
    assert event.trail["step"][-1] == event.step and len(event.trail["loss/total"]) == len(event.trail["step"])
    done = subprocess.run(
        [sys.executable, "-m", "jepa.doctor", str(diverged), "--replay", name],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "replayed exactly" in done.stdout
    assert "first not finite: " in done.stdout
    assert "nan generated by primitive" in done.stdout and "jepa/" in done.stdout


@pytest.mark.slow
def test_a_condition_ends_the_run_saved_and_patience_ends_it_evaluated(tmp_path, capsys):
    with pytest.raises(Exception, match=r"val/prediction is .* at step 20") as caught:
        train.run(tiny(abort=("val/prediction > 0 after 20",), num_steps=40), tmp_path / "a")
    assert type(caught.value).__name__ == "Aborted"
    assert flight_recorder.names(tmp_path / "a") == ["20-abort"]
    event = flight_recorder.read(tmp_path / "a", "20-abort")
    assert {"loss/total", "grad/norm", "val/prediction"} <= set(event.ledger)
    assert checkpoint.read(tmp_path / "a").step == 20
    with pytest.raises(ValueError, match=r"config.abort ended this run at step 20: 'val/prediction > 0 after 20' held"):
        train.run(tiny(abort=("val/prediction > 0 after 20",), num_steps=40), tmp_path / "a")
    train.run(tiny(abort=("val/prediction > 1e9",), num_steps=40), tmp_path / "a")
    assert checkpoint.read(tmp_path / "a").step == 40

    config = tiny(early_stopping__patience=1, early_stopping__min_delta=100.0, num_steps=40)
    train.run(config, tmp_path / "b")
    assert "ended at step 20: val/prediction had not become better" in capsys.readouterr().out
    assert json.loads((tmp_path / "b" / "probes.json").read_text())["step"] == 20
    train.run(tiny(num_steps=40), tmp_path / "b")  # without patience it goes on
    assert json.loads((tmp_path / "b" / "probes.json").read_text())["step"] == 40


@pytest.mark.slow
def test_a_stop_between_two_lines_changes_no_bit_of_the_record(tmp_path, monkeypatch):
    config = dict(log_every=10, num_steps=20)
    train.run(tiny(**config), tmp_path / "whole")
    asked = iter(["SIGTERM"])
    monkeypatch.setattr(run_folder, "graceful_stop", lambda: contextlib.nullcontext(lambda: next(asked, None)))
    with pytest.raises(train.Interrupted):
        train.run(tiny(**config), tmp_path / "cut")
    monkeypatch.undo()
    assert checkpoint.read(tmp_path / "cut").step == 5
    train.run(tiny(**config), tmp_path / "cut")
    whole, cut = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "cut"))
    assert whole == cut


def test_a_metric_that_is_not_measured_is_named():
    held_out = {"val/prediction": 1.0, "codes/usage": 0.5}
    config_checks.check_measured(tiny(abort=("codes/usage < 0.1",)), held_out)
    with pytest.raises(ValueError, match=r"config.abort names 'codes/usag', .*did you mean 'codes/usage'"):
        config_checks.check_measured(tiny(abort=("codes/usag < 0.1",)), held_out)
    with pytest.raises(ValueError, match=r"config.early_stopping.metric names 'val/x'"):
        config_checks.check_measured(tiny(early_stopping__metric="val/x"), held_out)


def test_the_weight_of_sigreg_is_given_in_published_units():
    (line,) = config_checks.in_published_units(main.load_config("configs/lejepa.py"))
    assert "0.0781 on T for a batch of 128" in line
    # lambda / (1 - lambda) = weight / N: LeJEPA's 0.02 at a batch of 256 is 5.2 on T / N
    config = tiny(batch_size=256, weights__sigreg=5.224)
    assert "prediction, 0.02" in config_checks.in_published_units(config)[0]
    assert config_checks.in_published_units(tiny(weights__sigreg=None)) == []
