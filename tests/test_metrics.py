from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from clu.metrics import Average
from tensorboardX.proto.event_pb2 import Event

from jepa import metrics


def strict(line: str):
    """A JSON parser that takes what the standard has and no more."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(line, parse_constant=refuse)


def test_every_line_is_json_and_every_number_comes_back(tmp_path):
    writer = metrics.jsonl(tmp_path / "metrics.jsonl")
    values = {
        "a": 0.1 + 0.2,
        "nan": math.nan,
        "up": math.inf,
        "down": np.float32(-np.inf),
        "device": jnp.float32(1.5),
        "half": jnp.bfloat16(0.5),
        "count": np.int64(3),
        "average": Average.from_model_output(jnp.asarray([1.0, 2.0])).compute(),
        "device_nan": jnp.asarray(jnp.nan),
    }
    writer.write_scalars(step=np.int32(7), scalars=values)
    writer.write_scalars(8, {})
    writer.write_hparams({"a": 1})
    writer.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [strict(line)["step"] for line in lines] == [7, 8]
    assert [strict(lines[0])[k] for k in ("nan", "up", "down")] == ["NaN", "Infinity", "-Infinity"]
    row, _ = metrics.read_record(tmp_path / "metrics.jsonl")
    assert row.pop("step") == 7 and list(row) == list(values)
    for name, value in values.items():
        np.testing.assert_array_equal(row[name], float(value), strict=False)


def log(path: Path, first: int, last: int, resume_step: int | None) -> None:
    writer = metrics.jsonl(path, resume_step)
    for step in range(first, last + 1):
        writer.write_scalars(step, {"loss": step / 7})
        if step % 5 == 0:
            writer.write_scalars(step, {"validation": step / 3})
    writer.close()


def test_a_resumed_record_is_the_record_of_a_run_that_never_stopped(tmp_path):
    log(tmp_path / "whole", 0, 30, None)
    whole = (tmp_path / "whole").read_bytes()
    for stopped, restored in [(17, 10), (10, 10), (23, 20), (30, 0)]:
        for torn in (b"", b'{"step": 24, "lo', b"\xff\x00", b"17\n", b"[]\n", b'{"loss": 1}\n'):
            path = tmp_path / "resumed"
            log(path, 0, stopped, None)
            with open(path, "ab") as file:
                file.write(torn)
            log(path, restored + 1, 30, restored)
            assert path.read_bytes() == whole
    log(tmp_path / "whole", 0, 30, None)  # a run that starts anew forgets the old one
    assert (tmp_path / "whole").read_bytes() == whole
    log(tmp_path / "absent", 11, 30, 10)  # nothing to keep
    assert metrics.read_record(tmp_path / "absent")[0]["step"] == 11
    assert sorted(p.name for p in tmp_path.iterdir()) == ["absent", "resumed", "whole"]


def test_a_killed_process_loses_no_line(tmp_path):
    code = (
        "import sys; from jepa import metrics\n"
        "w = metrics.jsonl(sys.argv[1])\n"
        "for step in range(3): w.write_scalars(step, {'x': 1.0})\n"
        "print('written', flush=True); sys.stdin.read()"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(metrics.__file__).parents[1])}
    command = [sys.executable, "-c", code, str(tmp_path / "m")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout.readline() == "written\n"
        process.kill()
    assert [row["step"] for row in metrics.read_record(tmp_path / "m")] == [0, 1, 2]


def events(folder: Path) -> list[Event]:
    """The events of a folder in order of file name and position. A record: length, CRC, data, CRC."""
    found = []
    for path in sorted(folder.glob("events.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            size = int.from_bytes(content[at : at + 8], "little")
            found.append(Event.FromString(content[at + 12 : at + 12 + size]))
            at += 16 + size
    return found


def test_tensorboard_holds_the_scalars_and_forgets_later_steps_on_resume(tmp_path):
    writer = metrics.tensorboard(tmp_path)
    for step in range(4):
        writer.write_scalars(step, {"loss/total": jnp.float32(step / 2), "bad": math.nan})
    writer.write_hparams({"optimizer": {"learning_rate": 0.1}})
    writer.flush()
    writer.close()
    scalars = [
        (e.step, v.tag, v.simple_value)
        for e in events(tmp_path)
        for v in e.summary.value
        if v.tag != "hparams/text_summary"
    ]
    assert scalars == [(step, "loss/total", step / 2) for step in range(4)]
    assert any("learning_rate" in str(v) for e in events(tmp_path) for v in e.summary.value)

    time.sleep(1.1)  # event files are named by the second
    resumed = metrics.tensorboard(tmp_path, resume_step=2)
    resumed.write_scalars(3, {"loss/total": 9.0})
    resumed.close()
    # TensorBoard drops what it read before a START event at its step and later.
    starts = [e.step for e in events(tmp_path) if e.HasField("session_log") and e.session_log.status == 1]
    assert starts == [3]


def test_several_writers_get_every_call():
    calls = []
    fakes = [
        metrics.Writer(*((lambda *a, n=n, m=m, **k: calls.append((n, m, a, k))) for m in metrics.Writer._fields))
        for n in (0, 1)
    ]
    both = metrics.multi(*fakes)
    both.write_scalars(step=1, scalars={"a": 2.0})
    both.close()
    assert calls == [(n, "write_scalars", (), {"step": 1, "scalars": {"a": 2.0}}) for n in (0, 1)] + [
        (n, "close", (), {}) for n in (0, 1)
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


SCALARS = {
    "loss/total": 1.3125,
    "weighted/prediction": 0.8125,
    "weighted/sigreg": jnp.float32(0.5),
    "diag/context/effective_rank": 21.25,
    "diag/context/rank_ratio": 0.94,
    "grad/norm": 3.0,
}
TEXT = "loss 1.312 = prediction 0.8125 + sigreg 0.5 | rank 21.2 (0.94 of expected)"


def test_a_log_gets_a_line_at_intervals_and_the_last_step():
    now, stream = [100.0], io.StringIO()
    console = metrics.console(
        total_steps=1000, examples_per_step=64, start_step=200, every_seconds=10, stream=stream, clock=lambda: now[0]
    )
    for step in range(201, 1001):
        now[0] += 0.5  # two steps a second
        console.write_scalars(step, SCALARS if step == 201 else {})  # kept until there is news
    console.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == f"step 201/1000  128 samples/s, 0:06:40 left  {TEXT}"
    assert [int(re.match(r"step (\d+)/1000", line)[1]) for line in lines] == [*range(201, 1000, 20), 1000]
    assert "0:00:00 left" in lines[-1] and "\x1b" not in stream.getvalue()


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    console = metrics.console(total_steps=10, examples_per_step=2, stream=stream)
    console.write_scalars(3, SCALARS)
    console.write_scalars(10, {"grad/[bold]norm": 1.0})
    console.close()
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert TEXT in plain and "10/10" in plain and "samples/s" in plain


def test_a_console_without_numbers_says_only_where_it_is():
    stream = io.StringIO()
    metrics.console(total_steps=5, examples_per_step=1, stream=stream, clock=lambda: 0.0).write_scalars(0, {})
    assert stream.getvalue() == "step 0/5  0 samples/s, ? left\n"


def test_a_table_shows_every_cell_of_every_row():
    stream = io.StringIO()
    wide = "a name much wider than a terminal " * 6
    rows = [{"name": wide, "value": 0.123456, "n": 12345}, {"name": "[b]", "extra": math.nan, "n": None}]
    metrics.print_table(rows, title="Validation", stream=stream)
    lines = [line.split() for line in stream.getvalue().splitlines() if line.strip()]
    assert lines[0] == ["Validation"]
    assert lines[1] == ["name", "value", "n", "extra"]
    assert lines[-2] == [*wide.split(), "0.1235", "12345"]
    assert lines[-1] == ["[b]", "nan"]
    metrics.print_table([], stream=stream)


def test_neither_tensorflow_nor_torch_is_imported():
    code = "import sys, jepa.metrics; print([m for m in ('tensorflow', 'torch') if m in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(Path(metrics.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "[]\n"
