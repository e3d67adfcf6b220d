"""Owns reading what an expert answered as JSON: held to a model of ours, and told in words where it does not fit."""

from __future__ import annotations

from typing import TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from body_broker.calls import Json
from body_broker.text import clean
from tiers.bronze.model import Unfit

ANSWER_CHARACTERS_MAX = 400_000
_PROBLEMS_MAX, _PLACE_MAX = 5, 80

Said = TypeVar("Said", bound=BaseModel)


def read_said(text: str, model: type[Said]) -> Said:
    """The answer as this model; whatever stands around the object is left out, for engines without grammars write some.

    Raises:
        Unfit: It is no such object; the places are named, and nothing of what stands there is repeated.
    """
    if len(text) > ANSWER_CHARACTERS_MAX:
        raise Unfit(f"The answer is longer than {ANSWER_CHARACTERS_MAX} characters.")
    try:
        return model.model_validate(_object(text))
    except ValidationError as error:
        problems = [_problem(each) for each in error.errors(include_url=False, include_input=False)[:_PROBLEMS_MAX]]
        raise Unfit(f"The answer does not obey its schema: {'; '.join(problems)}.") from error


def _object(text: str) -> Json:
    start, end = text.find("{"), text.rfind("}")
    try:
        return orjson.loads(text[start : end + 1])
    except orjson.JSONDecodeError as error:
        raise Unfit("The answer is not one JSON object, or was cut before its end.") from error


def _problem(error: Json) -> str:
    *above, last = [clean(str(part), limit=_PLACE_MAX) for part in error["loc"]] or ["the object"]
    if error["type"] == "extra_forbidden":  # the last of its places is a name of the model's own
        return f"{'.'.join(above) or 'the object'}: has a field that is not known"
    return f"{'.'.join([*above, last])}: {clean(str(error['msg']), limit=200)}"
