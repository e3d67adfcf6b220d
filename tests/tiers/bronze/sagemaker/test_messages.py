"""What is sent to the container and read from it."""

from __future__ import annotations

import json

import pytest

from body_broker.work.model import JSON_BYTES_MAX
from tests.counterparts.sagemaker import said
from tests.tiers.asking import LORE, MOOD
from tiers.bronze.sagemaker.messages import completion_of, failure_of, question_of
from tiers.bronze.sagemaker.places import Asking, Place
from tiers.faults import EngineFault
from tiers.model import Message, ToolCall, Usage
from tiers.wire.base import Ask

ASK = Ask(model="expert", messages=(Message(role="user", content="Who is Kaya?"),), max_tokens=50)


def test_a_question_is_asked_whole_and_not_as_a_stream() -> None:
    ask = Ask(model="expert", messages=ASK.messages, max_tokens=50, offers=(LORE,), schema=MOOD, seed=3, stop=("X",))
    body = json.loads(question_of(ask))
    assert body["stream"] is False
    assert "stream_options" not in body
    assert (body["model"], body["max_tokens"], body["seed"], body["stop"]) == ("expert", 50, 3, ["X"])
    assert body["tools"][0]["function"]["name"] == "search_lore"
    assert body["response_format"]["json_schema"]["schema"] == MOOD


def test_without_a_name_the_container_takes_its_own_model() -> None:
    assert "model" not in json.loads(question_of(Ask(model="", messages=ASK.messages, max_tokens=50)))


def test_an_answer_is_read_with_its_calls_and_its_tokens() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "search_lore", "arguments": '{"query": "Kaya"}'}}
    body = json.dumps(said("", finish="tool_calls", tool_calls=[call])).encode()
    found = completion_of(body, ASK, 7.5)
    assert found.calls == (ToolCall("c1", "search_lore", '{"query": "Kaya"}'),)
    assert (found.finish, found.usage, found.counted, found.seconds) == ("tools", Usage(12, 7), True, 7.5)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "malformed"),
        (b"<html>a proxy's page</html>", "malformed"),
        (b'{"choices": []}', "malformed"),
        (b"[1, 2]", "malformed"),
        (json.dumps(said("Kaya"))[:-20].encode(), "malformed"),
        (b'{"choices": [{"message": {"content": "Kaya"}}]}', "cut"),
        (json.dumps(said("")).encode(), "empty"),
        (json.dumps(said("Kaya", finish="content_filter")).encode(), "withheld"),
        (json.dumps(said("Kaya", finish="abort")).encode(), "failed"),
        (b'{"error": {"message": "no", "type": "BadRequestError", "code": 400}}', "rejected"),
        (json.dumps(said("x" * JSON_BYTES_MAX)).encode(), "malformed"),  # it could not be recorded
    ],
)
def test_what_is_no_whole_answer_is_none(body: bytes, reason: str) -> None:
    with pytest.raises(EngineFault) as fault:
        completion_of(body, ASK, 1.0)
    assert fault.value.reason == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('Received server error (500) from model with message "x".', "failed"),
        ('Received client error (400) from model. See "maximum context length is 4096".', "failed"),
        ('ModelError: Received server error (400) from model with message "maximum context length".', "too_long"),
        ('Received server error (400) from model with message "x".', "rejected"),
        ("Your invocation timed out while waiting for a response from container.", "failed"),
        ("\ud83d".encode("utf-8", "replace").decode() + "\x00 anything", "failed"),
        ("", "failed"),
    ],
)
def test_a_failure_is_one_word(text: str, reason: str) -> None:
    assert failure_of(text.encode()).reason == reason


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("s3://studio/outputs/jobs/ab", Place("studio", "outputs/jobs/ab")),
        ("s3://studio", Place("studio", "")),
        ("https://studio.s3.eu-central-1.amazonaws.com/outputs/ab", Place("studio", "outputs/ab")),
        ("https://s3.eu-central-1.amazonaws.com/studio/outputs/a%20b", Place("studio", "outputs/a b")),
        ("https://evil.example/studio/outputs", None),
        ("http://studio.s3.amazonaws.com/x", None),
        ("s3://", None),
        ("s3://[", None),
        ("s3://studio/a\x00b", None),
        ("s3://studio/" + "x" * 3_000, None),
        ("", None),
    ],
)
def test_places_are_read_in_the_forms_that_aws_has(text: str, found: Place | None) -> None:
    assert Place.parse(text) == found


def test_places_are_put_together_without_doubled_strokes() -> None:
    assert str(Place("studio", "outputs/").under("jobs/", "ab")) == "s3://studio/outputs/jobs/ab"
    assert str(Place("studio", "").under("jobs/", "ab")) == "s3://studio/jobs/ab"


def test_an_asking_has_an_id_that_names_it_and_a_file_of_32_characters() -> None:
    asking = Asking("job_a-b_1-2", 3, 4)
    assert Asking.parse(asking.inference_id) == asking
    assert len(asking.filename) == 32
    assert asking.filename != Asking("job_a-b_1-2", 34, 4).filename
    assert Asking.parse("11111111-2222-3333-4444-55555555a555") is None
    assert Asking.parse("job_a-1-1\x00") is None
