"""What SLURM and Ray are given: the files of an array job as a scheduler would run them, and tasks on a cluster."""

import os
import re
import stat
import subprocess
import sys

import pytest

from jepa import launch


def tasks(folder):
    """Two commands: one leaves a file, the other fails."""
    left = folder / "left"
    codes = {"good": f"open({str(left)!r}, 'w').write('done')", "bad": "raise SystemExit(3)"}
    return [launch.Task(name, (sys.executable, "-c", code), folder / "logs" / name) for name, code in codes.items()]


SBATCH = 'cp "$1" {script}; echo "Submitted batch job 77"'
SRUN = 'while :; do case "$1" in --output|--error) shift 2;; -*) shift;; *) break;; esac; done; exec "$@"'


@pytest.fixture
def scheduler(tmp_path, monkeypatch):
    """An `sbatch` that keeps the script it is given and calls it job 77, and an `srun` that runs what it is given."""
    folder, script = tmp_path / "bin", tmp_path / "submitted.sh"
    folder.mkdir()
    for name, text in {"sbatch": SBATCH.format(script=script), "srun": SRUN}.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return script


def test_slurm_is_given_one_array_whose_tasks_run(tmp_path, scheduler):
    pytest.importorskip("submitit")
    options = {"partition": "gpu", "time": 60, "gpus_per_node": 1, "array_parallelism": 1}
    assert launch.slurm(tasks(tmp_path), tmp_path / "slurm", options=options) == ["77_0", "77_1"]
    directives = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", scheduler.read_text(), re.MULTILINE))
    assert directives["array"] == "0-1%1" and directives["partition"] == "gpu"
    assert directives["time"] == "60" and directives["gpus-per-node"] == "1"
    one_task = {
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURM_NTASKS": "1",
        "SLURM_NNODES": "1",
    }
    for number, succeeds in enumerate((True, False)):
        job = {"SLURM_JOB_ID": str(100 + number), "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": str(number)}
        environment = os.environ | one_task | job
        done = subprocess.run(["sh", str(scheduler)], env=environment, capture_output=True, text=True)
        assert (done.returncode == 0) == succeeds, done.stderr
    assert (tmp_path / "left").read_text() == "done"


def test_slurm_without_a_scheduler_is_one_sentence(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="found no sbatch here"):
        launch.slurm(tasks(tmp_path), tmp_path, options={})


@pytest.mark.slow
def test_ray_runs_every_task_on_a_cluster_of_two_nodes(tmp_path):
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    try:
        ended = list(launch.ray(tasks(tmp_path), address=cluster.address, num_cpus=1, num_gpus=0))
    finally:
        cluster.shutdown()
    assert {task.id: status for task, status in ended} == {"good": 0, "bad": 3}
    assert (tmp_path / "left").read_text() == "done"


def test_a_launcher_that_is_not_installed_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match="needs submitit"):
        launch.slurm(tasks(tmp_path), tmp_path, options={})
    with pytest.raises(ValueError, match="needs Ray"):
        list(launch.ray(tasks(tmp_path), address=None, num_cpus=1, num_gpus=0))
