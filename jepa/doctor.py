"""What is wrong with a run, from its own metrics: `python -m jepa.doctor runs/lejepa`, finished or in progress.

Prints findings, most serious first, each with its evidence, its cause and a remedy as keys of the config. The exit code
is 0 for a healthy run (one with notes alone is), 1 where there is a warning or worse, and 2 for a folder that is not
one of a run. The rules are `jepa.findings_rules.RULES`. `--replay <event>` takes a step again that the flight recorder
kept, and says where it went wrong; its exit code is 0.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import rich.console

from jepa import checkpoint_choice, findings
from jepa.findings_rules import RULES

NOTE = findings.SERIOUSNESS[-1]


def summary(found: Sequence[findings.Finding], unjudged: Sequence[str], step: int) -> str:
    """One sentence: how many findings, among how many rules, and how many of those could be judged."""
    judged = f"{len(RULES) - len(unjudged)} of {len(RULES)} rules have their metrics"
    if not found:
        return f"step {step}: nothing found; {judged}"
    counts = [(kind, sum(finding.seriousness == kind for finding in found)) for kind in findings.SERIOUSNESS]
    named = ", ".join(f"{count} {kind}" for kind, count in counts if count)
    return f"step {step}: {named}; {judged}"


def as_json(
    found: Sequence[findings.Finding], unjudged: Sequence[str], step: int, choice: checkpoint_choice.Choice | None
) -> str:
    """The same for a program: the step, the findings by field, the rules that could not be judged, and the checkpoint
    to take without labels, None where that cannot be told.
    """
    result = {"step": step, "findings": [finding._asdict() for finding in found], "unjudged": list(unjudged)}
    result["checkpoint"] = None if choice is None else choice.step
    return json.dumps(result, indent=2)


def print_findings(found: Sequence[findings.Finding], unjudged: Sequence[str], step: int, *, verbose: bool) -> None:
    """Prose for a person, wrapped to the terminal; a log file has no width."""
    console = rich.console.Console(highlight=False, markup=False, soft_wrap=not sys.stdout.isatty())
    styles = dict(zip(findings.SERIOUSNESS, ("bold red", "yellow", "dim"), strict=True))
    for finding in found:
        heading, *rest = findings.as_text(finding).splitlines()
        console.print(heading, style=styles[finding.seriousness])
        console.print(*rest, "", sep="\n")
    console.print(summary(found, unjudged, step))
    if unjudged and verbose:
        console.print(f"without their metrics: {', '.join(unjudged)}")


def main(argv: Sequence[str] | None = None) -> None:
    """Prints what is found and exits with 0, 1 or 2. A mistake of the user is one sentence, never a traceback."""
    parser = argparse.ArgumentParser(prog="python -m jepa.doctor", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of a run, finished or in progress")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--replay", metavar="EVENT", help="take a step again that went wrong, such as 1234-nonfinite")
    parser.add_argument("--verbose", action="store_true", help="name the rules that could not be judged")
    options = parser.parse_args(argv)
    workdir = options.run.expanduser()
    try:
        if options.replay:
            from jepa import replay  # here, since a verdict needs no JAX program

            if options.json:
                raise ValueError("--replay prints for a person: leave out --json")
            replay.print_replay(workdir, options.replay)
            sys.exit(0)
        record = findings.read(workdir)
    except (ValueError, OSError) as error:
        print(f"jepa: {error}", file=sys.stderr)
        sys.exit(2)
    found, unjudged = findings.examine(record), findings.unjudged(record)
    folders = (workdir / "checkpoints").glob("*")
    choice = checkpoint_choice.choose(record, [int(folder.name) for folder in folders if folder.name.isdecimal()])
    if options.json:
        print(as_json(found, unjudged, record.step, choice))
    else:
        print_findings(found, unjudged, record.step, verbose=options.verbose)
        if choice is not None:
            print(checkpoint_choice.as_text(choice))
    sys.exit(int(any(finding.seriousness != NOTE for finding in found)))


if __name__ == "__main__":
    main()
