"""Where the processes of a suite run: here, a few at a time; as an array of SLURM; on a Ray cluster.

Every process is a command of its own, which a failure or a kill ends without the others.
"""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple


class Task(NamedTuple):
    """A command, and the file that gets what it prints."""

    id: str
    command: tuple[str, ...]
    log: Path


Finished = tuple[Task, int]  # with its exit status


def local(tasks: Sequence[Task], *, num: int, watch: Callable[[Sequence[Task]], None]) -> Iterator[Finished]:
    """Runs at most `num` commands at a time, in order; yields each as it ends. `watch` is called with those running.

    A command reads a pipe that closes with this process, however that ends (`jepa.ablation.end_with_parent`). When the
    caller leaves, what runs is told to end, which saves it, and awaited.
    """
    waiting, running = list(tasks), {}
    try:
        while waiting or running:
            while waiting and len(running) < num:
                task = waiting.pop(0)
                task.log.parent.mkdir(parents=True, exist_ok=True)
                with open(task.log, "ab") as log:
                    running[task] = subprocess.Popen(
                        task.command,
                        stdin=subprocess.PIPE,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
            for task, process in list(running.items()):
                if (status := process.poll()) is not None:
                    process.stdin.close()
                    del running[task]
                    yield task, status
            watch(list(running))
            time.sleep(0.2)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
            process.stdin.close()


def slurm(tasks: Sequence[Task], folder: Path, *, options: dict[str, object]) -> list[str]:
    """Submits the commands as one array job; the ids SLURM gave them. Logs and the script are in `folder`.

    options: parameters of `submitit.SlurmExecutor`, such as `partition`, `time` (minutes) or `array_parallelism`.
    Raises ValueError without submitit, or where there is no `sbatch`.
    """
    executor = slurm_executor(folder, options)
    return [job.job_id for job in executor.map_array(run_command, [task.command for task in tasks])]


def slurm_executor(folder: Path, options: dict[str, object]):
    try:
        import submitit
    except ImportError as error:
        raise ValueError("--launch=slurm needs submitit: pip install 'jepa[slurm]'") from error
    if submitit.SlurmExecutor.affinity() < 0:
        raise ValueError("--launch=slurm found no sbatch here: run it on a login node of the cluster")
    executor = submitit.SlurmExecutor(folder)
    executor.update_parameters(**options)
    return executor


def ray(tasks: Sequence[Task], *, address: str | None, num_gpus: float, num_cpus: float) -> Iterator[Finished]:
    """Runs the commands on a Ray cluster, whose machines share the folder of the runs; yields each as it ends.

    Raises ValueError without Ray.
    """
    try:
        import ray as cluster
    except ImportError as error:
        raise ValueError("--launch=ray needs Ray: pip install 'jepa[ray]'") from error
    cluster.init(address=address, log_to_driver=False)
    remote = cluster.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=0)(run_logged)
    pending = {remote.remote(task.command, str(task.log.absolute())): task for task in tasks}
    try:
        while pending:
            done, _ = cluster.wait(list(pending))
            for reference in done:
                task = pending.pop(reference)
                try:
                    yield task, cluster.get(reference)
                except cluster.exceptions.RayError as error:
                    task.log.parent.mkdir(parents=True, exist_ok=True)
                    with open(task.log, "a", encoding="utf-8") as log:
                        log.write(f"{error}\n")
                    yield task, 1
    finally:
        cluster.shutdown()


def run_command(command: Sequence[str]) -> int:
    """Runs a command to its end; its exit status. Raises RuntimeError where that is not 0, as SLURM has to see it."""
    status = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
    if status:
        raise RuntimeError(f"{shlex.join(command)} ended with status {status}")
    return status


def run_logged(command: Sequence[str], log: str) -> int:
    """Runs a command to its end, what it prints appended to a file; its exit status."""
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT).returncode
