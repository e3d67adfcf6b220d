"""What is kept for a while: for a time, a number of entries, and one requester."""

from __future__ import annotations

from body_broker.calls import Caller
from tiers.counts import Counts
from tiers.model import Asker
from tiers.silver.keeping import Kept, requester_of


class Counted(Counts):
    """Remembers how often a cache was hit."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bool]] = []

    def cached(self, cache: str, *, hit: bool) -> None:
        self.seen.append((cache, hit))


def asker(*chain: str, roles: tuple[str, ...] = (), conversation: str = "cnv") -> Asker:
    caller = Caller(chain=chain, roles={chain[0]: frozenset(roles)}, session="s")
    return Asker(caller=caller, conversation=conversation)


def test_what_was_kept_is_found_until_its_time_is_up() -> None:
    now, counts = [0.0], Counted()
    kept = Kept[str]("lore", 300, counts, clock=lambda: now[0])
    kept.put("a", "found")
    now[0] = 300
    assert kept.get("a") == "found"
    now[0] = 300.1
    assert kept.get("a") is None
    assert counts.seen == [("lore", True), ("lore", False)]


def test_the_entry_that_was_used_longest_ago_goes_first() -> None:
    kept = Kept[int]("response", 300, Counts(), entries_max=2)
    kept.put("a", 1)
    kept.put("b", 2)
    assert kept.get("a") == 1
    kept.put("c", 3)
    assert (kept.get("a"), kept.get("b"), kept.get("c")) == (1, None, 3)


def test_another_requester_another_chain_and_other_roles_are_told_nothing() -> None:
    anna = asker("person:anna", roles=("designer",))
    others = [
        asker("person:ben", roles=("designer",)),
        asker("person:anna", "tier:silver", roles=("designer",)),
        asker("person:anna", roles=()),
    ]
    assert requester_of(anna) == requester_of(asker("person:anna", roles=("designer",), conversation="other"))
    assert requester_of(anna) not in {requester_of(other) for other in others}
