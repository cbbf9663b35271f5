"""The command: what it prints, its exit codes, and that it says what is wrong with its input in one sentence."""

import json
import subprocess
import sys

import pytest

from jepa import doctor
from jepa.findings_rules import RULES

CONFIG = {"num_steps": 100, "max_grad_norm": 1.0, "best_metric": "val/prediction", "weights": {"sigreg": 10.0}}


@pytest.fixture
def run(tmp_path):
    """A function of metrics by name, each a list of ten readings, that writes a run folder."""

    def write(**columns):
        (tmp_path / "config.json").write_text(json.dumps(CONFIG))
        rows = [
            {"step": 10 * i + 10} | {name.replace("__", "/"): values[i] for name, values in columns.items()}
            for i in range(10)
        ]
        (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return tmp_path

    return write


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        doctor.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


INERT = {"loss__sigreg": [0.4] * 10}
CLIPPED = {"grad__norm": [5.0] * 10}


def test_a_healthy_run(run, capsys):
    code, out, err = call(capsys, run(loss__sigreg=[0.2 / (i + 1) for i in range(10)]))
    assert (code, err) == (0, "")
    assert out == f"step 100: nothing found; 1 of {len(RULES)} rules have their metrics\n"


def test_findings_most_serious_first(run, capsys):
    code, out, err = call(capsys, run(**CLIPPED, **INERT), "--verbose")
    assert (code, err) == (1, "")
    assert out.index("serious: sigreg-inert, since step 10") < out.index("note: clipping-saturated, since step 10")
    assert "  evidence  loss/sigreg 0.4 in the median" in out and "  remedy    " in out
    assert "step 100: 1 serious, 1 note; 2 of" in out
    assert "without their metrics: non-finite-steps, learning-rate-too-high" in out


def test_notes_alone_are_healthy(run, capsys):
    code, out, _ = call(capsys, run(**CLIPPED))
    assert code == 0 and "clipping-saturated" in out


def test_json(run, capsys):
    code, out, err = call(capsys, run(**CLIPPED, **INERT), "--json")
    said = json.loads(out)
    assert (code, err, said["step"]) == (1, "", 100)
    assert [finding["name"] for finding in said["findings"]] == ["sigreg-inert", "clipping-saturated"]
    assert set(said["findings"][0]) == {"name", "seriousness", "since", "evidence", "cause", "remedy"}
    assert len(said["unjudged"]) == len(RULES) - 2 and "stale-negatives" in said["unjudged"]


def test_a_run_in_progress_with_a_half_written_line(run, capsys):
    folder = run(**INERT)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 110, "loss/si')
    assert call(capsys, folder)[0] == 1


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "has no config.json"),
        ({"config.json": "{"}, "config.json"),
        ({"config.json": "[]"}, "should be a JSON object"),
        ({"config.json": "{}", "metrics.jsonl": '{"step": 1}\n'}, "no num_steps"),
        ({"config.json": '{"num_steps": 1}'}, "has not logged a step"),
        ({"config.json": '{"num_steps": 1}', "metrics.jsonl": "\x00\x00"}, "no readable line"),
    ],
)
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_what_is_no_run_is_one_sentence(files, said, options, tmp_path, capsys):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    code, out, err = call(capsys, tmp_path, *options)
    assert (code, out) == (2, "")
    assert err.startswith("jepa: ") and said in err and err.count("\n") == 1


def test_a_folder_that_is_not_there(tmp_path, capsys):
    code, _, err = call(capsys, tmp_path / "nowhere")
    assert code == 2 and "nowhere" in err


def test_as_a_command(run):
    done = subprocess.run(
        [sys.executable, "-m", "jepa.doctor", str(run(**INERT))], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("serious: sigreg-inert")
