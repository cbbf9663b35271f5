from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import pytest

from jepa import run_folder


def python(code: str, *args: object) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(Path(run_folder.__file__).parents[1])}
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def test_only_one_process_holds_a_workdir(tmp_path):
    holder = python(
        "import sys; from jepa import run_folder\n"
        "with run_folder.lock(sys.argv[1]):\n    print('held', flush=True); sys.stdin.read()",
        tmp_path,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"in use by process {holder.pid}: "), run_folder.lock(tmp_path):
            pytest.fail("two processes hold one workdir")
    finally:
        holder.kill()  # no chance to release anything
        holder.communicate()
    with run_folder.lock(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
        with pytest.raises(ValueError, match=f"in use by process {os.getpid()}: "), run_folder.lock(tmp_path):
            pytest.fail("held twice")
    with run_folder.lock(tmp_path):  # free again
        pass


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    run_folder.check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=f"the workdir {path} cannot be written to"):
            run_folder.check_writable(path)


def test_json_replaces_the_old_file_or_leaves_it(tmp_path):
    path = tmp_path / "x.json"
    run_folder.atomic_write_json(path, {"a": [1, None, "ä"]})
    with pytest.raises(TypeError):
        run_folder.atomic_write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": [1, None, "ä"]}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_write_that_fails_midway_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    run_folder.atomic_write_json(path, 1)

    def fail(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        run_folder.atomic_write_json(path, 2)
    assert json.loads(path.read_text()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


CONFIG = {
    "seed": 0,
    "optimizer": {"learning_rate": 0.001, "betas": (0.9, 0.95), "clip": None},
    "data": {"arc": {"palette": True}, "cache_dir": "a"},
    "empty": {},
}


def test_a_config_comes_back_without_a_difference(tmp_path):
    run_folder.write_config(tmp_path, CONFIG)
    assert run_folder.config_differences(run_folder.read_config(tmp_path), CONFIG) == []
    with pytest.raises(ValueError, match="is not the folder of a run"):
        run_folder.read_config(tmp_path / "absent")
    (tmp_path / "config.json").write_text('{"a":')
    with pytest.raises(ValueError, match=r"config.json is not JSON"):
        run_folder.read_config(tmp_path)


def test_differences_name_the_key_and_both_values():
    now = {
        "seed": False,  # equal to 0 in Python, not in a config
        "optimizer": {"learning_rate": 0.01, "betas": (0.9, 0.95), "clip": 1.0},
        "data": {"arc": {"palette": True, "d4": False}, "cache_dir": "b"},
        "data_dir": "x",
    }
    expected = [
        "data.arc.d4: absent in the run, false now",
        'data.cache_dir: "a" in the run, "b" now',
        'data_dir: absent in the run, "x" now',
        "empty: {} in the run, absent now",
        "optimizer.clip: null in the run, 1.0 now",
        "optimizer.learning_rate: 0.001 in the run, 0.01 now",
        "seed: 0 in the run, false now",
    ]
    assert run_folder.config_differences(CONFIG, now) == expected
    # A key stands for all below it, not for names that begin alike.
    free = ("data", "optimizer.clip", "see")
    assert run_folder.config_differences(CONFIG, now, free) == [expected[2], expected[3], expected[5], expected[6]]


def test_every_start_adds_its_environment(tmp_path):
    run_folder.write_environment(tmp_path, {"digest": "abc"})
    first = json.loads((tmp_path / "environment.json").read_text())["starts"][0]
    run_folder.write_environment(tmp_path, {"digest": "def"})
    starts = json.loads((tmp_path / "environment.json").read_text())["starts"]
    assert starts[0] == first and len(starts) == 2
    assert [start["digest"] for start in starts] == ["abc", "def"]
    assert first["packages"]["jax"] == jax.__version__
    assert first["devices"] == [d.device_kind for d in jax.devices()]
    assert set(first) >= {"time", "python", "platform", "backend", "git", "command"}


def test_the_commit_is_of_the_checkout_that_tracks_the_file(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    tracked, other = tmp_path / "a.py", tmp_path / "b.py"
    tracked.write_text("1")
    other.write_text("1")
    git("init")
    assert run_folder.git_commit(tracked) is None
    git("add", "a.py")
    git("commit", "-m", "x")
    assert run_folder.git_commit(tracked) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    assert run_folder.git_commit(other) is None  # installed in somebody's checkout, not part of it
    tracked.write_text("2")
    assert run_folder.git_commit(tracked)["dirty"]
    assert run_folder.git_commit(tmp_path / "absent" / "c.py") is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_only_asks(number):
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    with run_folder.graceful_stop() as stop_requested:
        assert stop_requested() is None
        signal.raise_signal(number)
        assert stop_requested() == number.name
        signal.raise_signal(signal.SIGTERM)  # schedulers repeat themselves
        assert stop_requested() == number.name
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert {n: signal.getsignal(n) for n in before} == before


def test_handlers_are_restored_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError, match="broken"), run_folder.graceful_stop():
        raise RuntimeError("broken")
    assert signal.getsignal(signal.SIGTERM) == before


def test_outside_the_main_thread_nothing_asks():
    answers = []

    def run():
        with run_folder.graceful_stop() as stop_requested:
            answers.append(stop_requested())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert answers == [None]
