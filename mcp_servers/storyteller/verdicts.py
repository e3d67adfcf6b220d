"""Owns a check as it is told: the verdict, bounded lists, full counts."""

from __future__ import annotations

from mcp_servers.storyteller.consistency.checking import Checked
from mcp_servers.storyteller.models import Consistency, Contradicted, Coverage, Found, NotUnderstood, Verdict

VIOLATIONS_TOLD = 50
_SENTENCES_TOLD = 20
_VERDICTS: dict[bool | None, Verdict] = {True: "pass", False: "fail", None: "unsure"}


def consistency_of(checked: Checked) -> Consistency:
    """A check as it is told: bounded lists, full counts."""
    return Consistency(
        consistent=checked.consistent,
        verdict=_VERDICTS[checked.consistent],
        violations=found_in(checked),
        omitted=max(0, len(checked.violations) - VIOLATIONS_TOLD),
        coverage=Coverage(
            sentences=checked.sentences,
            understood=checked.understood,
            lore_not_understood=checked.lore_not_understood,
            reasons=dict(checked.reasons),
            not_understood=[
                NotUnderstood(span=[read.start, read.end], reason=read.reason)
                for read in checked.not_understood[:_SENTENCES_TOLD]
                if read.reason is not None
            ],
        ),
    )


def found_in(checked: Checked) -> list[Found]:
    """The first violations."""
    return [
        Found(
            code=v.code,
            severity=v.severity,
            claim=v.claim,
            span=[v.start, v.end],
            conflicts_with=Contradicted(source=v.conflicts_with.source, text=v.conflicts_with.text),
        )
        for v in checked.violations[:VIOLATIONS_TOLD]
    ]
