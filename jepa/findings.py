"""What a run's own metrics say is wrong with it: named findings, each with its evidence, its cause and a remedy.

    examine(read("runs/lejepa"))

The rules are small functions of metric series, in one table, `jepa.findings_rules.RULES`; this file asks them. A rule
whose metrics a run does not have says nothing: `unjudged` names those.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jepa.findings_record import Record, Series, has, read, record_of
from jepa.findings_rules import RULES

__all__ = ["Finding", "Record", "Series", "as_text", "examine", "new_findings", "read", "record_of", "unjudged"]

SERIOUSNESS = ("serious", "warning", "note")  # a note alone leaves a run healthy


class Finding(NamedTuple):
    """One thing that is wrong, or worth knowing."""

    name: str
    seriousness: str  # one of SERIOUSNESS
    since: int  # the step at which it first held
    evidence: str  # metrics, steps and numbers
    cause: str
    remedy: str  # what to change, by the keys of the config


def examine(record: Record) -> list[Finding]:
    """The findings of a record, most serious first, and among equals causes before symptoms, as RULES lists them."""
    found = []
    for rule in RULES:
        with np.errstate(all="ignore"):  # of a number that is not finite no comparison holds
            held = rule.judge(record) if has(record, *rule.needs) else None
        if held is not None:
            found.append(Finding(rule.name, rule.seriousness, held.since, held.evidence, rule.cause, rule.remedy))
    return sorted(found, key=lambda finding: SERIOUSNESS.index(finding.seriousness))  # stable


def unjudged(record: Record) -> list[str]:
    """The names of the rules whose metrics the record does not have."""
    return [rule.name for rule in RULES if not has(record, *rule.needs)]


def new_findings(findings: Iterable[Finding], printed: Sequence[str]) -> list[Finding]:
    """The findings whose names are not among `printed`: what a loop has to say that it did not say yet."""
    return [finding for finding in findings if finding.name not in printed]


def as_text(finding: Finding) -> str:
    """A finding on four lines: its name and seriousness, the evidence, the cause and the remedy."""
    return "\n".join(
        (
            f"{finding.seriousness}: {finding.name}, since step {finding.since}",
            f"  evidence  {finding.evidence}",
            f"  cause     {finding.cause}",
            f"  remedy    {finding.remedy}",
        )
    )
