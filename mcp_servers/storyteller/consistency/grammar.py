"""Owns when a sentence is understood: every word of it belongs to a form that the rules know, so that nothing in it went unread."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from mcp_servers.storyteller.consistency.claims import Claim, Quest, Reason, Says
from mcp_servers.storyteller.consistency.units import Unit, tags

_THING = "(?:[Dh]?[Ac#]{0,2}n|[Dh]?[plfio](?:'[Ac]?n)?)"
_WHERE = f"(?:P{_THING}|P|R)"
_WHO = "(?:[po](?:C[po]|,[po])*)"
_DOES = f"R?(?:V|BG)R?(?:{_THING})?(?:,?{_WHERE}){{0,4}}"
_IS = f"B(?:R?A(?:CA)?)?(?:,?{_WHERE}){{0,3}}"
_TIME = f"(?:(?:J|C)?,?(?:R|P[TD]?T|P#x?|P{_THING}|PDAn),?)?"
_EVENT = re.compile(f"^{_TIME}{_WHO}(?:{_DOES}|{_IS})(?:,?(?:C|J)R?(?:{_DOES}))?(?:,?(?:PT|P#|P#x|PDAn))?" + r"\.$")
_AROUND_FACT = re.compile(r"^(?:J|C)?,?(?:R,?)?$")
_NOT_UNDERSTOOD = frozenset("ukxQMHXWrw")


def understood(of: Sequence[Unit], claims: Iterable[Claim]) -> bool:
    """Whether the whole sentence is one event, or one thing said of somebody, or one step of a quest."""
    line = tags(of)
    if not line.endswith("."):
        return False
    for claim in claims:
        if isinstance(claim, Says | Quest):
            begin, end = claim.span
            return bool(_AROUND_FACT.match(line[:begin])) and line[end:] == "."
    return not set(line.replace("P#x", "P#n") if _clock(of) else line) & _NOT_UNDERSTOOD and bool(_EVENT.match(line))


def _clock(of: Sequence[Unit]) -> bool:
    """Whether the only strange word is the one after an hour."""
    return all(unit.tag != "x" or unit.low == "o'clock" for unit in of)


def why_not(of: Sequence[Unit]) -> Reason:
    """Why a sentence that may be taken at its word was not understood."""
    return "pronoun" if any(unit.tag == "r" for unit in of) else "words"
