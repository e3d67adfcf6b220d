"""Owns the check of one chain, record by record in constant memory: what does not fit, and what was done to it. No store."""

from __future__ import annotations

from dataclasses import dataclass
from hmac import compare_digest
from typing import Literal

from body_broker.audit.chain import genesis, link
from body_broker.audit.record import fact

BreachKind = Literal["edited", "deleted", "reordered", "truncated", "forged", "unknown_key", "body_changed"]


@dataclass(frozen=True, slots=True)
class Breach:
    """One place where the audit is not what was written.

    Attributes:
        kind: What was done.
        chain: The writer; `checkpoints`; or `anchor`.
        sequence: The first record it concerns; None where it is the whole chain.
        text: One plain sentence.
    """

    kind: BreachKind
    chain: str
    sequence: int | None
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.chain}: {self.text}"


class Walk:
    """Follows one chain from its genesis. Records come in the order of their sequence numbers.

    What does not fit is gathered into runs, because one changed record breaks the link of the next one too; what ends the
    run tells an edit (the chain goes on from the MAC that stands there, so that MAC is genuine) from a forgery (it does not).

    Args:
        key: The key the chain was made with.
        name: The chain's name, as its MACs have it.
        number: The chain's number.
        shown: What breaches call it.
    """

    def __init__(self, key: bytes, name: str, number: int, *, shown: str | None = None) -> None:
        self._key = key
        self._name = name
        self._shown = shown or name
        self._previous: bytes | None = genesis(key, name, number)
        self._next = 1
        self._run: tuple[int, int] | None = None
        self._moved = False

    @property
    def last(self) -> int:
        """The sequence number of the last record seen; 0 before the first."""
        return self._next - 1

    def step(self, sequence: int, mac: bytes, body: str, *, ours: bool = True) -> list[Breach]:
        """What is found out by this record, mostly nothing; one that another key made (`ours` is false) is only followed."""
        found: list[Breach] = []
        if sequence != self._next:
            found += self._settle(continued=False)
            found.append(self._gap(sequence))
            self._previous = None
        # After a gap the link of the first record cannot be checked, that of its successor can.
        if self._previous is None or not ours:
            pass
        elif compare_digest(link(self._key, self._name, self._previous, sequence, body.encode()), mac):
            found += self._settle(continued=True)
        else:
            self._run = (self._run[0] if self._run else sequence, sequence)
            self._moved = self._moved or fact(body, "seq") not in (None, sequence)
        self._previous = mac
        self._next = sequence + 1
        return found

    def finish(self) -> list[Breach]:
        """What is found out by there being no further record."""
        return self._settle(continued=False)

    def _gap(self, sequence: int) -> Breach:
        if sequence < self._next:
            return Breach(
                "reordered", self._shown, sequence, f"Record {sequence} stands after record {self._next - 1}."
            )
        places = span("Record", self._next, sequence - 1)
        return Breach(
            "deleted",
            self._shown,
            self._next,
            f"{places} missing; the record after the gap can only be checked in part.",
        )

    def _settle(self, *, continued: bool) -> list[Breach]:
        if self._run is None:
            return []
        first, last = self._run
        moved, self._run, self._moved = self._moved, None, False
        places = span("Record", first, last)
        if moved:
            return [Breach("reordered", self._shown, first, f"{places} not in the order in which they were written.")]
        if continued:
            return [Breach("edited", self._shown, first, f"{places} not what was written.")]
        text = f"{places} not made with the key, or the last one has been changed since."
        return [Breach("forged", self._shown, first, text)]


def span(noun: str, first: int, last: int) -> str:
    """The beginning of a sentence: `Record 3 is`, `Records 3 to 5 are`."""
    return f"{noun} {first} is" if first == last else f"{noun}s {first} to {last} are"
