"""How much an engine holds: as it says itself of a model that models.toml says nothing of, before anything is refused as too long."""

from __future__ import annotations

import pytest

from body_broker.errors import TooLarge
from tests.tiers.asking import Asking
from tests.tiers.routing import ASKER, SHIPPED
from tests.tiers.test_router import Answers
from tiers.catalogue import Catalogue
from tiers.deadline import Deadline
from tiers.engine import Engine
from tiers.faults import EngineFault
from tiers.model import InferenceRequest, Tier
from tiers.router import ModelRouter
from tiers.wire.listed import context_in

LONG = InferenceRequest(prompt="x" * 70_000)


def only(engine: Engine) -> Catalogue:
    """A catalogue of one engine."""
    return Catalogue({engine.spec.name: engine.spec}, {}, {}, {}, SHIPPED.caps, {})


@pytest.mark.parametrize("model", [None, "wall"])
async def test_a_long_prompt_is_taken_where_the_engine_says_that_it_holds_it(asking: Asking, model: str | None) -> None:
    asking.wall.context_tokens = 32_768
    engine, silver = asking.engine("vllm", model=model, context_known=False), Answers()
    router = ModelRouter(only(engine), {engine.spec.name: engine}, {Tier.SILVER: silver})

    await router.execute(LONG, asker=ASKER)

    assert [candidate.engine for candidate in silver.asked[0][0].candidates] == [engine]
    assert engine.context_tokens == 32_768


async def test_what_an_engine_holds_is_known_with_its_only_model(asking: Asking) -> None:
    asking.wall.context_tokens = 2_048
    engine = asking.engine("vllm", model=None, context_known=False)
    router = ModelRouter(only(engine), {engine.spec.name: engine}, {Tier.SILVER: Answers()})
    short = InferenceRequest(prompt="x" * 10_000)
    assert router.decide(short, remaining_s=15).candidates

    await engine.model()

    assert (engine.context_tokens, engine.asks_context) == (2_048, False)
    assert not router.decide(short, remaining_s=15).candidates
    with pytest.raises(TooLarge) as refused:
        await router.execute(short, asker=ASKER)
    assert "hold 2048 together" in refused.value.message
    assert "context_tokens in models.toml" in refused.value.next_step


async def test_what_a_studio_says_is_believed_and_nobody_is_asked(asking: Asking) -> None:
    asking.wall.context_tokens = 32_768
    engine = asking.engine("vllm", model=None, context_tokens=4_096)

    assert not await engine.learn_context(Deadline.after(60))
    await engine.model()

    assert engine.context_tokens == 4_096


async def test_an_engine_that_says_nothing_of_it_is_asked_once_and_held_to_what_was_believed(asking: Asking) -> None:
    engine = asking.engine("vllm", model=None, context_known=False)

    assert not await engine.learn_context(Deadline.after(60))

    assert (engine.context_tokens, engine.asks_context) == (8_192, False)


async def test_an_engine_that_cannot_be_asked_refuses_as_before_and_is_asked_again(asking: Asking) -> None:
    engine = asking.engine("vllm", model=None, context_known=False)
    router = ModelRouter(only(engine), {engine.spec.name: engine}, {Tier.SILVER: Answers()})
    asking.wall.healthy = False

    with pytest.raises(TooLarge):
        await router.execute(LONG, asker=ASKER)

    asking.wall.healthy, asking.wall.context_tokens = True, 32_768
    await router.execute(LONG, asker=ASKER)


@pytest.mark.parametrize(
    ("rows", "model", "expected"),
    [
        ('{"id": "a", "max_model_len": 4096}', None, 4_096),
        ('{"id": "a", "max_model_len": 4096}', "a", 4_096),
        ('{"id": "a", "max_model_len": 4096}', "b", None),
        ('{"id": "a", "max_model_len": 1}, {"id": "b", "max_model_len": 2}', "b", 2),
        ('{"id": "a", "max_model_len": 1}, {"id": "b", "max_model_len": 2}', None, None),
        ('{"id": "a"}', "a", None),
        ('{"id": "a", "max_model_len": null}', "a", None),
        ('{"id": "a", "max_model_len": true}', "a", None),
        ('{"id": "a", "max_model_len": "4096"}', "a", None),
        ('{"id": "a", "max_model_len": -1}', "a", None),
        ('{"id": "a", "max_model_len": 99999999999}', "a", None),
    ],
)
def test_only_a_number_that_can_be_is_believed(rows: str, model: str | None, expected: int | None) -> None:
    assert context_in(f'{{"data": [{rows}]}}'.encode(), model) == expected


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"data": [7]}', b'{"data": 7}'])
def test_what_is_no_list_is_malformed(body: bytes) -> None:
    with pytest.raises(EngineFault, match="malformed"):
        context_in(body, None)
