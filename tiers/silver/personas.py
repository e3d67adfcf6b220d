"""Owns the personas: fixed instructions by name, read once from personas.toml."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from body_broker.errors import BadInput
from body_broker.text import clean

NPC = "npc"
PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Persona:
    """In whose words a tier answers.

    Attributes:
        name: In personas.toml.
        system: Its instructions: fixed text of ours.
        template: What is told where no model answers.
        temperature: Where the request names none.
        outside: Whether who speaks to it is a player: what they say is from outside.
    """

    name: str
    system: str
    template: str
    temperature: float | None = None
    outside: bool = False


async def persona_named(name: str) -> Persona:
    """A persona by its name.

    Raises:
        BadInput: There is none.
    """
    every = await personas()
    found = every.get(name)
    if found is None:
        raise BadInput(
            f"There is no persona {clean(name, limit=40)}.",
            next_step=f"Personas are: {', '.join(every)}. An NPC is spoken to with talk_to_npc.",
            details={"problems": ["persona: unknown"]},
        )
    return found


async def personas() -> Mapping[str, Persona]:
    """Every persona, by name; the first call reads the file off the loop."""
    return await asyncio.to_thread(_read) if not _read.cache_info().currsize else _read()


@cache
def _read() -> Mapping[str, Persona]:
    tables = tomllib.loads(files("tiers").joinpath("personas.toml").read_text("utf-8"))
    return {name: Persona(name=name, **table | {"system": table["system"].strip()}) for name, table in tables.items()}
