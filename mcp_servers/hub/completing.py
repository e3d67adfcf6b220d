"""Owns what a completion is to the gate: the prompt's or resource's own row, asked for suggestions instead of being run."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from body_broker.calls import Arguments, Call, Operation, Prompt, Resource, Suggestions
from body_broker.errors import BadInput
from body_broker.text import clean

VALUE_CHARACTERS_MAX = 1_000
_MARK = "completing"
_KEPT = 256


def completion_of(operation: Operation, argument: str) -> Operation:
    """A row that is decided, limited and recorded as `operation` is, by its name, group and modifiers, and that runs its completer.

    Its arguments are those of `operation`, but none is required; policies see what is there. On the audit
    `completing` names the argument. One that nothing completes has no suggestions.

    Raises:
        BadInput: The operation has no such argument.
    """
    # What is kept is bounded by the rows, not by what clients send.
    if argument not in operation.arguments.model_fields:
        raise BadInput(
            f"{operation.name} has no argument {clean(argument, limit=64)!r}.",
            next_step="prompts/list names the arguments of each.",
        )
    return _completion(operation, argument)


@lru_cache(maxsize=_KEPT)
def _completion(operation: Operation, argument: str) -> Operation:
    complete = operation.completes.get(argument) if isinstance(operation, Prompt | Resource) else None

    async def run(arguments: Arguments, call: Call, services: Any) -> Suggestions:  # services: a room's own type
        if complete is None:
            return Suggestions(values=[], from_outside=False)
        given: dict[str, str] = arguments.model_dump(mode="json", exclude_none=True, exclude={_MARK})
        return await complete(given.pop(argument), given, call, services)

    run.__annotations__["arguments"] = _partial(operation.arguments, argument)  # which rows read their models from
    return replace(operation, run=run, output="as_marked")


def _partial(model: type[Arguments], argument: str) -> type[Arguments]:
    """The model with `argument` as text of any form, since it is still being typed, and what else is required as optional."""
    fields: dict[str, Any] = {
        name: (field.rebuild_annotation() | None, None) if field.is_required() else (field.annotation, field)
        for name, field in model.model_fields.items()
    }
    fields[argument] = (Annotated[str, Field(max_length=VALUE_CHARACTERS_MAX)], ...)
    fields[_MARK] = (Literal[argument], argument)
    return create_model(f"{model.__name__}Completing", __base__=Arguments, **fields)
