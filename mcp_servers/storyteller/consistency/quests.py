"""Owns what a sentence says of quests and their stages: done, begun, or not done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mcp_servers.storyteller.consistency import lexicon as words
from mcp_servers.storyteller.consistency.claims import Quest, Span, Step
from mcp_servers.storyteller.consistency.units import Unit

_DONE = words.word_set(
    "wrapped settled settles settling finished completed concluded ended resolved closed solved won accomplished fulfilled finishes"
    " completes concludes ends resolves closes solves finishing completing concluding ending"
    " resolving closing solving"
)
_BEGUN = words.word_set(
    "began begins started starts accepted accepts undertook begun came comes turned turns undertakes"
    " starting beginning accepting"
)
_IS_DONE = words.word_set("done finished complete completed concluded closed resolved solved over ended accomplished")
_TO_DO = words.word_set("finish complete conclude end resolve close solve win accomplish fulfil fulfill")
_TO_BEGIN = frozenset(["begin", "start", "accept", "undertake"])
_IS_NOT = words.word_set("wait waiting waited undone unfinished abandoned incomplete open unsolved unresolved")
_NOT = frozenset(
    {
        "not",
        "never",
        "without",
        "before",
        "n't",
        "didn't",
        "hadn't",
        "hasn't",
        "wasn't",
        "isn't",
        "nobody",
        "until",
        "no",
        "none",
        "neither",
        "nor",
    }
)
_FILLERS = words.word_set("to up the quest task stage called of a work on")
_BETWEEN = frozenset({",", "a", "and", "then", "next", "finally", "the", "but", "not", "after", "that"})
_BE = words.word_set("to is was were are been stood lay remained being still now yet already at last had has")


def quests(of: Sequence[Unit], until: int) -> Iterator[Quest]:
    """What is said of each quest that units before `until` name."""
    last: tuple[int, Step] | None = None
    for at, unit in enumerate(of[:until]):
        if unit.tag != "q" or unit.key is None:
            continue
        found = _before(of, at) or _after(of, at, until) or _listed(of, at, last)
        if found is not None:
            step, span = found
            last = (at, step)
            yield Quest(unit.key, step, span)


def _listed(of: Sequence[Unit], at: int, last: tuple[int, Step] | None) -> tuple[Step, Span] | None:
    """`finished X, then Y` says of both what it says of one; `X but not Y` says the other of Y."""
    if last is None:
        return None
    between = {unit.low for unit in of[last[0] + 1 : at]}
    if not between <= _BETWEEN:
        return None
    return ("not_done" if "not" in between else last[1]), (at, at + 1)


def _before(of: Sequence[Unit], at: int) -> tuple[Step, Span] | None:
    """`finished X`, `began X`, `without finishing X`."""
    verb = at - 1
    while verb >= 0 and of[verb].low in _FILLERS and at - verb <= 4:  # noqa: PLR2004 - `the quest called the`
        verb -= 1
    step = _step(of, verb)
    if step is None:
        return None
    first = verb - 1 if verb and step != "not_done" and of[verb - 1].tag in "po" else verb
    return step, (first, at + 1)


def _step(of: Sequence[Unit], verb: int) -> Step | None:
    """What a verb before a quest says of it."""
    if verb < 0:
        return None
    low, before = of[verb].low, {unit.low for unit in of[max(0, verb - 3) : verb]}
    finite = low in _DONE | _BEGUN or (low == "with" and of[verb - 1].low in _IS_DONE)
    if not finite and low not in _TO_DO | _TO_BEGIN:
        return None
    if before & _NOT or any(word.endswith("n't") for word in before):
        return "not_done"
    if not finite and "did" not in before:
        return None  # what somebody is to do
    return "begun" if low in _BEGUN | _TO_BEGIN else "done"


def _after(of: Sequence[Unit], at: int, until: int) -> tuple[Step, Span] | None:
    """`X was done`, `X began`, `X was still unfinished`."""
    negated, end = False, at + 1
    while end < until and end - at <= 5 and (of[end].low in _BE or of[end].tag in "BRX"):  # noqa: PLR2004 - `had not yet been quite`
        negated = negated or of[end].tag == "X"
        end += 1
    if end >= until:
        return None
    low, said = of[end].low, of[end - 1].low
    if low in _IS_NOT:
        return ("done" if negated else "not_done"), (at, end + 1)
    if low in _IS_DONE and (end > at + 1 or said == of[at].low):
        return ("not_done" if negated else "done"), (at, end + 1)
    if low in {"began", "begins", "started"} and not negated:
        return "begun", (at, end + 1)
    if negated and of[end].tag in ".,;":  # the one was done and the other was not
        return "not_done", (at, end)
    return None
