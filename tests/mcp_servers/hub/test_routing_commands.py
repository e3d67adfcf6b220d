"""`route` and `engine-profile` as a person meets them: nothing configured, much configured, and what they say when it is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from body_broker.errors import BadInput, BodyBrokerError, NotFound, SettingsError, TooLarge
from mcp_servers.hub.cli import body_broker
from tests.mcp_servers.hub.test_clients import HUB, run

GOLD = '{"prompt": "NPC action: move forward", "max_tokens": 8, "sla": "real-time", "latency_budget_ms": 300}'

# The source documents' three requests, as they stand there.
SEEDS = [
    ('{"prompt": "NPC action: move forward", "max_tokens": 8, "sla": "real-time", "latency_budget_ms": 16}', "gold"),
    (
        """{"prompt": "NPC responds to player question", "max_tokens": 100, "sla": "interactive", "latency_budget_ms": 200,
    "tools": ["game_state_query", "rag_search"]}""",
        "silver",
    ),
    (
        """{"prompt": "Generate story arc about player exploration", "max_tokens": 500, "sla": "async",
    "latency_budget_ms": 5000}""",
        "bronze",
    ),
]


def said(*command: str, **env: str) -> tuple[str, BaseException | None]:
    """What a command prints in this process, which saves starting one, and what it ends with."""
    found = CliRunner().invoke(
        body_broker,
        [*command, "--data-dir", "never-made"],
        env={"BODY_BROKER_LOG_LEVEL": "warning", **env},
        standalone_mode=False,
    )
    return found.stdout, found.exception


def refused(kind: type[BodyBrokerError], *command: str, **env: str) -> tuple[str, str]:
    """What a command prints, and what `main` would say of the error it ends with."""
    out, error = said(*command, **env)
    assert isinstance(error, kind), error
    return out, f"{error.message}\n{error.next_step}"


async def test_route_says_who_would_be_asked_and_who_would_not_and_why(tmp_path: Path) -> None:
    code, out, err = await run(
        HUB,
        *("route", GOLD, "--data-dir", str(tmp_path)),
        BODY_BROKER_GOLD_URL="http://127.0.0.1:9",
        BODY_BROKER_SILVER_URL="http://127.0.0.1:9",
    )

    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "gold: real-time, at most 8 tokens; 0.3 s for the whole answer",
        "  1. gold (gold, trtllm, qwen2.5-3b-instruct-awq)",
        "  2. silver (silver, vllm, the model it serves, while 0.25 s are left)",
        "  then: the NPC's last intent, then a fixed rule",
        "  not gold-small: it has no address",
        "  not silver-small: it has no address",
    ]


def test_route_without_any_engine_names_the_chain_down_to_its_end_and_the_first_setting() -> None:
    out, error = said("route", '{"prompt": "hello"}')

    assert error is None
    assert "at once: an earlier answer to the same, then a fixed text" in out
    assert "not anthropic: it has no address" in out
    assert out.splitlines()[-1].startswith("No engine is configured: BODY_BROKER_SILVER_URL")


def test_route_speaks_json_to_programs() -> None:
    out, _ = said("route", GOLD, "--json", BODY_BROKER_GOLD_URL="http://g")

    found = json.loads(out)
    assert (found["tier"], found["budget_s"]) == ("gold", 0.3)
    assert found["candidates"] == [{"engine": "gold", "tier": "gold", "needs_s": 0.0}]
    assert {"engine": "silver", "reason": "not_configured"} in found["skipped"]


@pytest.mark.parametrize(("request_", "tier"), SEEDS, ids=["gold", "silver", "bronze"])
def test_the_requests_of_the_source_documents_are_read_as_they_stand(request_: str, tier: str) -> None:
    out, error = said("route", request_, "--json")

    assert error is None
    given, found = json.loads(request_), json.loads(out)
    assert (found["tier"], found["budget_s"]) == (tier, given["latency_budget_ms"] / 1_000)


def test_what_is_for_experts_is_shown_as_a_job_with_the_endpoint_that_only_jobs_ask() -> None:
    asked = '{"prompt": "x", "sla": "async"}'
    nobody, _ = said("route", asked)
    assert nobody.splitlines()[:2] == [
        "bronze: async; a job, which is answered with its id",
        "  at once: the request is refused: no engine that could do its job is configured (docs/bronze.md)",
    ]
    there = {
        "BODY_BROKER_BRONZE_URL": "http://b",
        "BODY_BROKER_SAGEMAKER_ENDPOINT": "experts",
        "BODY_BROKER_SAGEMAKER_OUTPUT": "s3://bucket/out",
        "BODY_BROKER_OPENAI_API_KEY": "k",
    }
    out, _ = said("route", asked, **there)
    assert [line.split(" (")[0] for line in out.splitlines()[1:4]] == [
        "  1. sagemaker",
        "  2. bronze",
        "  3. openai-large",
    ]
    assert "  then: the job waits, and asks all of them again; after five runs that failed it has failed" in out
    assert "not sagemaker" not in out
    found = json.loads(said("route", asked, "--json", **there)[0])
    assert [each["engine"] for each in found["candidates"]][:2] == ["sagemaker", "bronze"]


def test_route_knows_every_field_that_generate_knows() -> None:
    asked = {
        "messages": [
            {"role": "assistant", "tool_calls": [{"id": "c1", "name": "dice", "arguments": "{}"}]},
            {"role": "tool", "tool_call_id": "c1", "content": "6"},
        ],
        "own_tools": [{"name": "dice"}],
        "tool_choice": "required",
        "response_schema": {"type": "object"},
        "background": True,
        "stop": ["END"],
        "seed": 7,
    }
    out, error = said("route", json.dumps(asked), BODY_BROKER_SILVER_URL="http://s")

    assert error is None
    assert out.startswith("silver: interactive, with tools; 15 s")


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ("{", "The request is not JSON: line 1, column 2."),
        ("", "The request is not JSON: line 1, column 1."),
        ("[]", "request: must be a JSON object"),
        ('{"prompt": "x", "max\\u202e_tokenz": 8, "promt": "y"}', "max_tokenz: unknown; promt: unknown"),
        ('{"prompt": 7, "max_tokens": "8", "tools": "all"}', "prompt: Input should be a valid string; max_tokens: "),
        ('{"prompt": "x", "max_tokens": 8.5}', "max_tokens: "),
        ('{"messages": [{"role": "user", "content": "x", "name": "y"}]}', "messages.0.name: unknown"),
        ('{"prompt": "x", "max_tokens": 131073}', "max_tokens: Input should be less than or equal to 131072"),
        ('{"prompt": "x", "max_tokens": -8, "cost_ceiling": -1}', "max_tokens: Input should be greater"),
        ("{}", "request: give either prompt or messages"),
        ('{"prompt": "x", "promt": "y"}', "Its fields are prompt, messages, model, sla"),
        ('{"prompt": "x", "model": "gpt-2"}', "There is no model of that name.\nUse one of: auto."),
        ('{"prompt": "x", "persona": "king"}', "There is no persona king.\nPersonas are: "),
        ('{"prompt": "x", "response_schema": {"type": "none"}}', "The schema of response_schema is no JSON Schema."),
    ],
)
def test_route_says_what_is_wrong_with_a_request(request_: str, told: str) -> None:
    out, error = refused(BadInput, "route", request_)

    assert out == ""
    assert told in error
    assert "\u202e" not in error


def test_route_says_which_tools_there_are_not() -> None:
    asked = json.dumps({"prompt": "x", "tools": ["rag_search", "whoami", "no_such\u202e_tool"]})

    out, error = said("route", asked, BODY_BROKER_SILVER_URL="http://s")
    told, _ = said("route", asked, "--json", BODY_BROKER_SILVER_URL="http://s")

    assert error is None
    assert "  not offered: no_such_tool: there is no tool or group of that name" in out.splitlines()
    assert json.loads(told)["not_offered"] == ["no_such_tool"]


def test_route_says_that_a_prompt_fits_nowhere() -> None:
    out, error = refused(TooLarge, "route", json.dumps({"prompt": "x" * 40_000}), BODY_BROKER_SILVER_URL="http://s")

    assert "not silver: the prompt and max_tokens do not fit its context" in out
    assert "about 11433 tokens long, and 128 are to be written: the engines for it hold 8192 together" in error
    assert "context_tokens in models.toml" in error


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"cost_sensitivity": "high"}, "you asked for nothing that costs money"),
        ({"cost_ceiling": 0}, "dearer than your cost_ceiling"),
    ],
)
def test_route_says_whose_bound_keeps_an_engine_from_being_asked(asked: dict[str, object], why: str) -> None:
    out, _ = said("route", json.dumps({"prompt": "x"} | asked), BODY_BROKER_OPENAI_API_KEY="sk-x")

    assert f"  not openai: {why}" in out.splitlines()


def test_a_studios_file_that_does_not_fit_is_told_with_every_problem(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text("[engines.gold]\nttft_s = -1\nconcurency = 4\n[caps]\nmonthly = 4\n", "utf-8")

    _, error = refused(SettingsError, "route", GOLD, BODY_BROKER_MODELS=str(file))

    for problem in ("engines.gold.ttft_s: ", "engines.gold.concurency: unknown", "caps.monthly: unknown"):
        assert problem in error


def test_engine_profile_prints_what_starts_the_server_or_writes_its_file(tmp_path: Path) -> None:
    printed, _ = said("engine-profile", "gold")
    written, _ = said("engine-profile", "gold", "--into", str(tmp_path))

    file = (tmp_path / "gold.yaml").read_text("utf-8")
    assert f"# gold.yaml:\n{file}" in printed
    assert 'speculative_model: "Qwen/Qwen2.5-0.5B-Instruct"' in file
    assert file not in written
    for out in (printed, written):
        assert "trtllm-serve Qwen/Qwen2.5-3B-Instruct-AWQ --host 127.0.0.1 --port 8001 --config gold.yaml" in out
        assert "BODY_BROKER_GOLD_URL=http://127.0.0.1:8001" in out


def test_engine_profile_of_a_name_that_is_none_says_which_there_are() -> None:
    _, error = refused(NotFound, "engine-profile", "bronze")

    assert "It has: gold, gold-background, gold-realtime, gold-small, silver, silver-small." in error
