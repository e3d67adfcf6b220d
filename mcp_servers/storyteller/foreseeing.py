"""Owns what people are told of a change of canon before they say yes: the fact in words, and what canon says of the same now."""

from __future__ import annotations

from collections.abc import Sequence

from body_broker.calls import Caller, Preview
from body_broker.errors import BadInput, Conflict, NotFound
from body_broker.text import quoted
from body_broker.world.canon import store
from body_broker.world.canon.model import Fact
from mcp_servers.storyteller.models import AddFact, RetireFact
from mcp_servers.storyteller.services import Services

_FACTS_SHOWN = 20


async def foresee_add(arguments: AddFact, _caller: Caller, services: Services) -> Preview:
    """A fact that canon would say.

    Raises:
        BadInput: There is no such predicate, or several have the subject's name.
        Conflict: The predicate has one value at a time, and canon says another.
    """
    subject = await services.key_of(arguments.subject)
    predicates = {each.name: each for each in await store.read_predicates(services.pool)}
    predicate = predicates.get(arguments.predicate)
    if predicate is None:
        raise BadInput(
            f"There is no predicate {quoted(arguments.predicate, limit=64)}.",
            next_step="Predicates come with the world file; get_entity_facts shows some in use.",
        )
    facts = [f for f in await store.read_facts(services.pool, {subject}) if f.predicate == predicate.name]
    text = _told(f"Canon says of {quoted(subject)} and {predicate.name}", facts)
    if predicate.functional and (other := _another(arguments, facts)):
        raise Conflict(
            f"{predicate.name} has one value at a time, and {other.key} says another.",
            next_step="Retire that fact first, or give both their time.",
            details={"fact": other.key},
        )
    said = f"{quoted(subject)} {predicate.name} {_value(arguments.object)}{_time(arguments)}"
    # A name may mean another one by then.
    return Preview(headline=f"Let canon say: {said}", text=text, basis=subject)


async def foresee_retire(arguments: RetireFact, _caller: Caller, services: Services) -> Preview:
    """A fact that canon would say no more.

    Raises:
        NotFound: Canon has no such fact.
    """
    found = next((fact for fact in await store.read_facts(services.pool) if fact.key == arguments.fact_id), None)
    if found is None:
        raise NotFound("Canon has no fact of that id now.", next_step="get_entity_facts says which there are.")
    return Preview(
        headline=f"Let canon no longer say: {_words(found)}", text=f"{found.key}, from {quoted(found.source)}."
    )


def _another(arguments: AddFact, facts: Sequence[Fact]) -> Fact | None:
    """A fact that holds at all times, as this one would, and says something else; those with times are the store's to judge."""
    if arguments.valid_from is not None or arguments.valid_to is not None:
        return None
    always = [fact for fact in facts if fact.valid_from is None and fact.valid_to is None]
    return next((fact for fact in always if fact.object != arguments.object), None)


def _told(what: str, facts: Sequence[Fact]) -> str:
    if not facts:
        return f"{what} nothing yet."
    more = [f"[{len(facts) - _FACTS_SHOWN} more]"] if len(facts) > _FACTS_SHOWN else []
    return "\n".join([f"{what} now:", *(f"  {fact.key}: {_words(fact)}" for fact in facts[:_FACTS_SHOWN]), *more])


def _words(fact: Fact) -> str:
    return f"{quoted(fact.subject)} {fact.predicate} {_value(fact.object)}{_time(fact)}"


def _value(value: object) -> str:
    return quoted(value, limit=200) if isinstance(value, str) else str(value)


def _time(said: AddFact | Fact) -> str:
    begins = "" if said.valid_from is None else f" from {said.valid_from:g}"
    return begins + ("" if said.valid_to is None else f" until {said.valid_to:g}")
