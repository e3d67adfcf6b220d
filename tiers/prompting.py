"""Owns prompts: the one module that puts persona, what is known, what was said and a player's words together, within a budget.

A system message is fixed text of ours, or the asker's own. Whatever else is read (the world, lore, a player) stands in a user
message, each line behind a mark that no text can close.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from body_broker.calls import Json
from body_broker.text import clean
from tiers.disarming import disarmed
from tiers.model import Message
from tiers.silver.personas import Persona

MARK = "| "
NPC_BYTES = 12_000
"""The most that a talk's prompt has beside its persona: about 3,500 tokens, so that tools' results and the answer fit a context of 8,192."""
WORDS_MAX = 2_000
"""Characters of one saying."""
_STATE_MAX, _LORE_MAX, _LORE_LEAST = 2_000, 6_000, 200
_SAYS = "THE PLAYER SAYS:"
_CUT = "…"
_HEADS = len(f"CHARACTER:\n\n\nLORE:\n\n\n{_SAYS}\n")
_SHOWN = ("name", "role", "description", "mood", "faction", "place", "health", "alive", "inventory", "tags")


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange: what a player said, and what was answered."""

    player: str
    answer: str


def in_persona(messages: Sequence[Message], persona: Persona) -> tuple[Message, ...]:
    """The messages with the persona's instructions first; a system message of the asker's own follows it, in one."""
    if messages and messages[0].role == "system":
        both = f"{persona.system}\n\n{messages[0].content}"
        return (Message(role="system", content=both), *messages[1:])
    return (Message(role="system", content=persona.system), *messages)


def for_npc(
    said: str, *, state: Mapping[str, Json], lore: str | None, turns: Sequence[Turn], bytes_max: int = NPC_BYTES
) -> tuple[Message, ...]:
    """A talk so far, and what was said now, without the persona.

    What does not fit goes: the oldest turns, then the end of the lore, of who the NPC is and, last of all, of the player's words.

    Args:
        said: The player's words.
        state: What the world says of the NPC.
        lore: What it may know; None where nothing was found.
        turns: What was said before, oldest first.
        bytes_max: The most that all of it may have.
    """
    left = bytes_max - _HEADS
    spoken = _within(marked(said, WORDS_MAX), left * 2 // 3)
    left -= len(spoken.encode())
    described = _within(marked(_described(state), _STATE_MAX), left // 2)
    left -= len(described.encode())
    room = left // 2
    known = "" if lore is None or room < _LORE_LEAST else f"LORE:\n{_within(marked(lore, _LORE_MAX), room)}\n\n"
    left -= len(known.encode())
    before: list[Message] = []
    for turn in reversed(turns):
        pair = (
            Message(role="user", content=f"{_SAYS}\n{marked(turn.player, WORDS_MAX)}"),
            Message(role="assistant", content=disarmed(clean(turn.answer, limit=WORDS_MAX))),
        )
        left -= sum(len(message.content.encode()) for message in pair)
        if left < 0:
            break
        before[:0] = pair
    return (*before, Message(role="user", content=f"CHARACTER:\n{described}\n\n{known}{_SAYS}\n{spoken}"))


def marked(text: str, limit: int) -> str:
    """Somebody's text as data: cleaned, without marks of a chat template, cut, and every line of it behind the mark."""
    return "\n".join(MARK + line for line in disarmed(clean(text, limit=max(1, limit))).splitlines() or [""])


def _within(lines: str, bytes_max: int) -> str:
    """Marked lines, cut to so many bytes; no line of them loses its mark."""
    whole = lines.encode()
    if len(whole) <= bytes_max:
        return lines
    kept = whole[: max(0, bytes_max - len(_CUT.encode()))].decode(errors="ignore").rstrip(f"\n{MARK}")
    return f"{kept or MARK}{_CUT}"


def last_words(messages: Sequence[Message]) -> str:
    """What was said last, without what was put before it: the same words are the same question, whatever the hour."""
    said = next((m.content for m in reversed(messages) if m.role == "user"), "")
    _, found, words = said.rpartition(f"{_SAYS}\n{MARK}")
    return " ".join((words if found else said).casefold().split())


def _described(state: Mapping[str, Json]) -> str:
    lines = [f"{name}: {_plain(state[name])}" for name in _SHOWN if state.get(name) not in (None, "", [])]
    return "\n".join(lines) or "nothing is known"


def _plain(value: Json) -> str:
    text = ", ".join(map(str, cast("list[Json]", value))) if isinstance(value, list) else str(value)
    return " ".join(text.split())
