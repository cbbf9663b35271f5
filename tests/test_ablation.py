"""A suite from the command line: it survives kills, failures stay alone, and its report repeats to the byte."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jepa import ablation, launch, suites

ROOT = Path(__file__).resolve().parents[1]
SUITE = """
from jepa.suites import Claim, Metric, Suite

SUITE = Suite(
    question="Does a larger weight spread embeddings?",
    config="configs/lejepa.py:tiny",
    overrides={"num_steps": 30, "diagnose_every": 30},
    variants={"heavy": {"weights.sigreg": 100.0}, "broken": {"batch_size": 8}},
    metrics=[Metric("error", "val/prediction"), Metric("norm", "grad/norm_max", source="largest")],
    claims=[Claim("the error rises", "heavy", "error", "higher"), Claim("broken works", "broken", "error", "lower")],
    seeds=(0, 1),
)
"""


@pytest.fixture
def start():
    """Starts the suite in a folder, as a user does; what still runs when the test is over is killed."""
    started = []

    def begin(folder, *flags):
        (folder / "suite.py").write_text(SUITE)
        command = [sys.executable, "-m", "jepa.ablation", f"--suite={folder / 'suite.py'}", f"--root={folder / 'runs'}"]
        with open(folder / "log", "ab") as log:
            process = subprocess.Popen(
                [*command, f"--reports={folder / 'reports'}", *flags],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
            )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def wait_for(condition, process, seconds=240):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.05)


def holder(folder):
    """The process that trains in a folder; None between its taking the lock and its writing who it is."""
    written = (folder / ".lock").read_text()
    return int(written) if written else None


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not Path(f"/proc/{pid}/stat").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


@pytest.mark.slow
def test_a_suite_survives_kill_9_and_ends_with_the_same_report(tmp_path, start):
    """Two seeds of two variants, and one that fails. Whole, killed with its process, and killed alone."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    assert start(whole, "--vmap_seeds").wait() == 1  # of the failure

    process = start(killed, "--vmap_seeds")
    saved = lambda: list((killed / "runs").glob("*-seeds/checkpoints/10"))  # noqa: E731
    wait_for(saved, process)
    trained_by = holder(saved()[0].parents[1])
    process.kill()
    os.kill(trained_by, signal.SIGKILL)
    process.wait()

    process = start(killed, "--vmap_seeds")  # of this one only the parent is killed: what it started ends by itself
    wait_for(lambda: saved() and holder(saved()[0].parents[1]) not in (None, trained_by), process)
    orphan = holder(saved()[0].parents[1])
    process.kill()
    process.wait()
    until = time.monotonic() + 120
    while is_alive(orphan):
        assert time.monotonic() < until
        time.sleep(0.1)

    assert start(killed, "--vmap_seeds").wait() == 1
    reports = [folder / "reports" / "suite" for folder in (whole, killed)]
    assert len({(report / "report.json").read_bytes() for report in reports}) == 1
    pages = [(report / "report.md").read_text().replace(str(report.parents[1]), "") for report in reports]
    assert pages[0] == pages[1]
    assert "broken: 2 of 2 runs are missing" in pages[0] and "too few to test it on" in pages[0]
    assert "undecided: not trained" in pages[0]
    summary = json.loads((reports[0] / "report.json").read_text())
    assert [len(ids) for ids in summary["runs"].values()] == [2, 2, 0]
    assert summary["variants"]["heavy"]["error"]["n"] == 2
    # Everything is trained, but for what cannot be: nothing but the report is done again.
    before = {path: path.stat().st_mtime_ns for path in (killed / "runs").glob("*/probes.json")}
    assert start(killed, "--vmap_seeds").wait() == 1
    assert before == {path: path.stat().st_mtime_ns for path in (killed / "runs").glob("*/probes.json")}


@pytest.mark.slow
def test_a_dry_run_prints_the_plan_and_trains_nothing(tmp_path, capsys):
    (tmp_path / "suite.py").write_text(SUITE)
    root = tmp_path / "runs"
    assert ablation.run([f"--suite={tmp_path / 'suite.py'}", f"--root={root}", "--dry_run", "--seeds=0,1,2"]) == 0
    said = capsys.readouterr().out
    assert "weights.sigreg=100.0" in said and "9 of 9 runs to train" in said and "Does a larger weight" in said
    assert not root.exists()


@pytest.mark.parametrize("flags", [[], ["--suite=x.py", "--jobs=0"], ["--suite=x.py", "--slurm=partition"]])
def test_flags_that_make_no_sense_are_refused(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        ablation.parse(flags)
    assert stop.value.code == 2 and "error:" in capsys.readouterr().err


def test_commands_run_a_few_at_a_time_and_say_how_they_ended(tmp_path):
    def task(name, code):
        return launch.Task(name, (sys.executable, "-c", code), tmp_path / "logs" / name)

    tasks = [task("a", "print('said')"), task("b", "raise SystemExit(3)"), task("c", "import time; time.sleep(.5)")]
    most = []
    ended = list(launch.local(tasks, num=2, watch=lambda running: most.append(len(running))))
    assert {task.id: status for task, status in ended} == {"a": 0, "b": 3, "c": 0}
    assert max(most) <= 2 and (tmp_path / "logs" / "a").read_text() == "said\n"


def test_who_leaves_ends_what_runs(tmp_path):
    code = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(0)))
print("on", flush=True)
time.sleep(60)
"""
    log = tmp_path / "log"
    running = launch.local([launch.Task("a", (sys.executable, "-c", code), log)], num=1, watch=lambda tasks: leave())

    def leave():
        if log.read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(running)
    assert log.read_text() == "on\nsaved\n"


def test_a_job_of_a_suite_that_has_changed_is_refused(tmp_path):
    (tmp_path / "suite.py").write_text(SUITE)
    suite = suites.load(str(tmp_path / "suite.py"))
    config = suites.resolve(suite, "heavy", 0)
    run = suites.Run("heavy", 0, config, "0", tmp_path / "0")
    path = ablation.write_job(suites.Job("0", "heavy", (run,), None), str(tmp_path / "suite.py"), tmp_path)
    (tmp_path / "suite.py").write_text(SUITE.replace("100.0", "50.0"))
    with pytest.raises(ValueError, match="has changed since"):
        ablation.run_job(path)
