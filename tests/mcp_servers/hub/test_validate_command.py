"""The command `validate` as an operator meets it: a table, what to do, and the exit code."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.counterparts import aws
from tests.counterparts.faultwall.wall import KEY, FaultWall, fault_wall
from tests.mcp_servers.hub.conftest import SECRET
from tests.mcp_servers.hub.test_clients import HUB, run

Validate = Callable[..., Any]


@pytest.fixture
async def wall() -> AsyncIterator[FaultWall]:
    async with fault_wall("vllm", "trtllm") as found:
        yield found


@pytest.fixture
def validate(database_url: str, redis_url: str, tmp_path: Path) -> Validate:
    models = tmp_path / "patient.toml"
    models.write_text("[engines.silver]\nttft_s = 60\nstall_s = 60\n", encoding="utf-8")
    environment = {
        "BODY_BROKER_MODELS": str(models),  # no engine is given up because this machine is busy
        "BODY_BROKER_DATABASE_URL": database_url,
        "BODY_BROKER_REDIS_URL": redis_url,
        "BODY_BROKER_SECRET_KEY": SECRET,
        "BODY_BROKER_DATA_DIR": str(tmp_path / "data"),
        "BODY_BROKER_EMBEDDINGS": "off",
    }

    async def command(*arguments: str, **more: str) -> tuple[int, str, str]:
        return await run(HUB, "validate", *arguments, **environment, **more)

    return command


async def test_a_tier_that_is_up_is_shown_check_by_check(validate: Validate, wall: FaultWall) -> None:
    code, out, err = await validate(
        "silver", "--requests", "2", BODY_BROKER_SILVER_URL=wall.url["vllm"], BODY_BROKER_SILVER_API_KEY=KEY
    )
    lines = {line.split()[1]: line.split()[2] for line in out.splitlines()[:-1] if line.startswith("silver ")}
    assert {name: lines[name] for name in ("reachable", "model", "schema", "tools")} == dict.fromkeys(
        ("reachable", "model", "schema", "tools"), "ok"
    ), (out, err)
    assert code == (0 if lines["latency"] == "ok" else 1), "a slow machine may fail latency, and nothing else"


async def test_an_engine_that_is_down_fails_with_what_to_do(validate: Validate, wall: FaultWall) -> None:
    await wall.refuse("trtllm")
    code, out, _ = await validate("gold", BODY_BROKER_GOLD_URL=wall.url["trtllm"])
    assert code == 1
    assert "gold        reachable   FAIL  nothing listens at its address" in out
    assert "gold, reachable: Start the server, or correct the address" in out
    assert "Traceback" not in out


async def test_without_an_engine_it_says_how_to_name_one(validate: Validate) -> None:
    code, out, _ = await validate("all")
    assert code == 1
    assert "no engine has an address" in out
    assert "Set BODY_BROKER_" in out


async def test_of_all_tiers_those_without_an_engine_are_left_out_where_one_has_some(
    validate: Validate, wall: FaultWall
) -> None:
    _, out, _ = await validate(
        "all", "--json", "--requests", "1", BODY_BROKER_SILVER_URL=wall.url["vllm"], BODY_BROKER_SILVER_API_KEY=KEY
    )
    found = {(check["engine"], check["name"]): check["verdict"] for check in json.loads(out)}
    assert found["gold", "configured"] == "left out"
    assert found["cloud", "configured"] == "left out"
    assert found["silver", "model"] == "ok"


async def test_of_bronze_the_place_of_results_is_tried_too(validate: Validate, wall: FaultWall, tmp_path: Path) -> None:
    code, out, _ = await validate(
        "bronze", "--requests", "1", BODY_BROKER_BRONZE_URL=wall.url["vllm"], BODY_BROKER_BRONZE_API_KEY=KEY
    )
    assert code == 0, out
    lines = {tuple(line.split()[:2]): line.split()[2] for line in out.splitlines()[:-1]}
    assert lines["bronze", "model"] == lines["bronze", "tools"] == lines["results", "writable"] == "ok"

    (tmp_path / "file").write_text("no directory")
    code, out, _ = await validate(
        "bronze",
        "--requests",
        "1",
        BODY_BROKER_BRONZE_URL=wall.url["vllm"],
        BODY_BROKER_BRONZE_API_KEY=KEY,
        BODY_BROKER_RESULTS=str(tmp_path / "file" / "results"),
    )
    assert code == 1
    assert "results, writable: " in out, "what to do about it"
    assert "Traceback" not in out


async def test_an_endpoint_s_places_are_looked_at_and_it_is_not_asked(validate: Validate) -> None:
    with aws.running() as cloud:
        create: Callable[..., object] = cloud.client("s3").create_bucket
        create(Bucket="studio", CreateBucketConfiguration={"LocationConstraint": aws.REGION})
        endpoint = {
            "BODY_BROKER_SAGEMAKER_ENDPOINT": "experts",
            "BODY_BROKER_SAGEMAKER_OUTPUT": "s3://studio/outputs",
            "BODY_BROKER_AWS_REGION": aws.REGION,
            "BODY_BROKER_AWS_ENDPOINT_URL": cloud.url,
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "y",
        }
        _, out, _ = await validate("bronze", "--json", **endpoint, BODY_BROKER_SAGEMAKER_INPUT="s3://nobodys/inputs")
    found = {check["name"]: check["verdict"] for check in json.loads(out) if check["engine"] == "sagemaker"}
    assert found == {
        "answers": "ok",
        "failures": "left out",
        "input": "failed",
        "notices": "left out",
        "answer": "left out",
    }, out
