"""models.toml: what is shipped holds what the source documents name, a studio's file is laid over it, and every problem is named at once."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from body_broker.errors import SettingsError
from body_broker.settings import load_settings
from mcp_servers.hub.inferring import given_by
from mcp_servers.hub.rooms import ROOMS
from tiers.catalogue import Catalogue, EngineSpec, Given
from tiers.model import Tier
from tiers.reading import read_catalogue

URLS = {"gold": "http://gold", "silver": "http://silver", "openai": "https://api.openai.com"}
KEYS = {"openai": "sk-settings", "silver": "silver-settings"}


def read(folder: Path, toml: str, **given: Any) -> Catalogue:
    file = folder / "models.toml"
    file.write_text(toml, "utf-8")
    return read_catalogue(Given(file=file, **given))


def problems(folder: Path, toml: str) -> list[str]:
    with pytest.raises(SettingsError) as failed:
        read(folder, toml)
    found = failed.value.details["problems"]
    assert isinstance(found, list)
    assert all(each in failed.value.message for each in found[:20])
    return found


def test_what_is_shipped_has_the_models_of_the_source_documents() -> None:
    found = read_catalogue(Given())

    gold, silver = found.engines["gold"], found.engines["silver"]
    assert (gold.model, gold.size, gold.quantisation, gold.dialect) == (
        "qwen2.5-3b-instruct-awq",
        "3B",
        "awq-4bit",
        "trtllm",
    )
    assert (gold.concurrency, gold.background, gold.context_tokens) == (4, 32, 4_096)
    assert any("phi-3.5-mini" in variant for variant in gold.variants)
    assert any("mistral-7b" in variant for variant in gold.variants)
    for name in ("Llama-3.1-8B", "Qwen2.5-7B", "Mistral-Nemo", "deepseek-coder-6.7b", "Qwen2.5-Math-7B"):
        assert any(name in variant for variant in silver.variants)
    assert [spec.name for spec in found.of_tier(Tier.GOLD)] == ["gold", "gold-small"]
    assert found.engines["silver-small"].smaller
    assert found.then == {Tier.GOLD: (Tier.SILVER,), Tier.SILVER: (Tier.CLOUD,), Tier.BRONZE: (Tier.CLOUD,)}


def test_what_is_shipped_has_the_experts_of_the_source_documents_the_endpoint_first() -> None:
    found = read_catalogue(Given(urls={"sagemaker": "sagemaker://experts", "bronze": "http://bronze"}))

    assert [spec.name for spec in found.of_tier(Tier.BRONZE)] == ["sagemaker", "bronze", "bronze-backup"]
    assert (found.engines["sagemaker"].url, found.engines["sagemaker"].dialect) == ("sagemaker://experts", "sagemaker")
    assert found.engines["bronze-backup"].model == "mistralai/Mixtral-8x22B-Instruct-v0.1"
    assert found.answering() == ("auto", "bronze", "sagemaker")
    assert all(spec.price is None for spec in found.of_tier(Tier.BRONZE)), "an instance is paid for by the hour"


@pytest.mark.parametrize("role", ["deepseek-v3-storyteller", "deepseek-v3-security", "deepseek-v3-admin"])
def test_a_role_of_experts_has_its_models_first_then_every_other_expert_then_the_cloud(
    tmp_path: Path, role: str
) -> None:
    toml = """
    [engines.mine]
    tier = "bronze"
    dialect = "vllm"
    model = "a-model-of-mine"
    [roles.mine]
    tier = "bronze"
    model = "a-model-of-mine"
    backups = ["bronze-backup", "nobody-s-model"]
    """
    found = read(tmp_path, toml)

    shipped = [spec.name for spec in found.of_role(found.roles[role])]
    assert shipped[:4] == ["sagemaker", "bronze", "bronze-backup", "mine"]
    assert shipped[4:] == [spec.name for spec in found.of_tier(Tier.CLOUD)]
    mine = [spec.name for spec in found.of_role(found.roles["mine"])]
    assert mine[:4] == ["mine", "bronze-backup", "sagemaker", "bronze"]


def test_what_is_shipped_has_the_roles_of_the_source_documents_and_their_tools() -> None:
    found = read_catalogue(Given())

    assert {name: role.tools for name, role in found.roles.items()} == {
        "deepseek-v3-storyteller": ("storyteller",),
        "deepseek-v3-security": ("semgrep", "trivy", "aws-security-hub"),
        "deepseek-v3-admin": ("aws-api", "database-query"),
    }
    assert {role.tier for role in found.roles.values()} == {Tier.BRONZE}
    assert found.roles["deepseek-v3-admin"].models == (
        "deepseek-ai/DeepSeek-V3.1-Terminus",
        "mistralai/Mixtral-8x22B-Instruct-v0.1",
    )
    named = {group for role in found.roles.values() for group in role.tools} | {"game_state_query", "rag_search"}
    assert named <= set(found.tool_groups)


def test_every_tool_of_a_group_is_a_tool_of_the_hub() -> None:
    ours = {tool.name for room in ROOMS for tool in room.tools}

    for group, tools in read_catalogue(Given()).tool_groups.items():
        assert set(tools) <= ours, group


def test_every_price_says_where_and_when_it_was_read_and_every_tier_that_costs_has_caps() -> None:
    found = read_catalogue(Given())

    priced = [spec for spec in found.engines.values() if spec.price is not None]
    assert {spec.tier for spec in priced} == {Tier.CLOUD}
    for spec in priced:
        assert spec.price is not None
        assert spec.price.source
        assert spec.price.as_of == "2026-09"
        assert spec.price.cached < spec.price.prompt < spec.price.completion
    assert found.caps.tier_day[Tier.CLOUD] >= found.caps.asker_day[Tier.CLOUD] > 0


def test_addresses_keys_and_model_names_come_from_the_settings() -> None:
    found = read_catalogue(Given(urls=URLS, keys=KEYS, models={"silver": "tiny"}))

    assert (found.engines["silver"].url, found.engines["silver"].key) == ("http://silver", "silver-settings")
    assert found.engines["silver"].model == "tiny"
    assert found.engines["openai-large"].key == "sk-settings"
    assert found.engines["openai-large"].model == "gpt-4.1"
    assert found.engines["gold-small"].url is None
    assert "sk-settings" not in repr(found)


def test_what_is_said_of_one_model_is_not_told_of_another(tmp_path: Path) -> None:
    """The URL is somebody's: what it serves is what models.toml speaks of only where that names it."""
    shipped = read_catalogue(Given(urls=URLS)).engines
    named = read_catalogue(Given(urls=URLS, models={"silver": "tiny", "gold": "qwen2.5-3b-instruct-awq"})).engines
    toml = """
    [engines.gold]
    model = "mine"
    [engines.silver]
    size = "70B"
    context_tokens = 65536
    """
    mine = read(tmp_path, toml, urls=URLS).engines

    def facts(engine: EngineSpec) -> tuple[str | None, str | None, bool]:
        return engine.size, engine.quantisation, engine.context_known

    assert facts(shipped["silver"]) == facts(named["silver"]) == facts(mine["gold"]) == (None, None, False)
    assert facts(shipped["gold"]) == facts(named["gold"]) == ("3B", "awq-4bit", True)
    assert facts(mine["silver"]) == ("70B", None, True)
    assert facts(shipped["openai"]) == (None, None, True)


def test_what_an_address_of_the_settings_speaks_is_a_setting_too(tmp_path: Path) -> None:
    given = given_by(load_settings({"BODY_BROKER_SILVER_URL": "http://silver", "BODY_BROKER_SILVER_DIALECT": "openai"}))
    assert read_catalogue(given).engines["silver"].dialect == "openai"
    assert read_catalogue(given_by(load_settings({}))).engines["silver"].dialect == "vllm"
    file = tmp_path / "models.toml"
    file.write_text(
        '[engines.silver]\ndialect = "azure"\n[engines.other]\ntier = "silver"\ndialect = "vllm"\naddress = "silver"\n'
    )
    assert read_catalogue(Given(file=file)).engines["silver"].dialect == "azure"
    found = read_catalogue(replace(given, file=file)).engines
    assert (found["silver"].dialect, found["other"].dialect) == ("openai", "openai")
    file.write_text('[engines.silver]\nurl = "http://other"\n')
    assert read_catalogue(replace(given, file=file)).engines["silver"].dialect == "vllm", "another address"


def test_a_studios_file_names_only_what_differs(tmp_path: Path) -> None:
    toml = """
    [engines.gold]
    context_tokens = 2048
    [engines.silver-eu]
    tier = "silver"
    dialect = "vllm"
    url = "http://eu:8000"
    [caps.asker_day]
    cloud = "7.5"
    [caps.askers]
    "person:anna" = "40"
    [tool_groups]
    npc = ["search_lore"]
    """

    found = read(tmp_path, toml, urls=URLS)

    assert (found.engines["gold"].context_tokens, found.engines["gold"].model) == (2_048, "qwen2.5-3b-instruct-awq")
    assert [spec.name for spec in found.of_tier(Tier.SILVER)] == ["silver", "silver-eu", "silver-small"]
    assert found.caps.asker_day == {Tier.CLOUD: Decimal("7.5"), Tier.BRONZE: Decimal(5)}
    assert found.caps.tier_day == {Tier.CLOUD: Decimal(10), Tier.BRONZE: Decimal(20)}
    assert found.caps.askers == {"person:anna": Decimal(40)}
    assert found.tool_groups["npc"] == ("search_lore",)
    assert "semgrep" in found.tool_groups


def test_an_engine_may_be_left_out(tmp_path: Path) -> None:
    found = read(tmp_path, "[engines.openai-large]\nenabled = false\n", urls=URLS)

    assert "openai-large" not in found.engines
    assert "openai" in found.engines


def test_a_key_of_the_settings_goes_to_no_address_but_the_settings_own(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-proxy\n", "utf-8")
    toml = f"""
    [engines.openai]
    url = "https://proxy.example"
    [engines.openai-large]
    url = "https://proxy.example"
    api_key_file = "{key}"
    """

    found = read(tmp_path, toml, urls=URLS, keys=KEYS)

    assert found.engines["openai"].key is None
    assert found.engines["openai-large"].key == "sk-proxy"


def test_a_price_is_replaced_as_a_whole(tmp_path: Path) -> None:
    toml = """
    [engines.openai]
    model = "gpt-9"
    [engines.openai.price]
    prompt = 1
    completion = "9.5"
    """

    price = read(tmp_path, toml).engines["openai"].price

    assert price is not None
    assert (price.prompt, price.cached, price.completion) == (Decimal(1), Decimal(1), Decimal("9.5"))
    assert (price.source, price.as_of) == ("the studio's own file", "unknown")
    assert problems(tmp_path, '[engines.openai.price]\nprompt = "1"\n') == [
        "engines.openai.price.completion: Field required"
    ]


def test_another_model_needs_a_price_of_its_own(tmp_path: Path) -> None:
    assert problems(tmp_path, '[engines.openai]\nmodel = "gpt-9"\n') == [
        "engines.openai.price: missing, and ours is another model's"
    ]
    assert read(tmp_path, '[engines.silver]\nmodel = "tiny"\n').engines["silver"].model == "tiny"


def test_every_problem_of_a_file_is_named_in_one_error(tmp_path: Path) -> None:
    toml = """
    [engins.gold]
    tier = "gold"
    [engines.gold]
    concurency = 4
    ttft_s = -1
    [engines.silver]
    dialect = "ollama"
    url = "ftp://somewhere"
    [engines.mine]
    tier = "cloud"
    dialect = "openai"
    [engines.deep]
    tier = "silver"
    dialect = "sagemaker"
    [engines.anthropic]
    model = "claude-9"
    [engines.openai.price]
    prompt = "-1"
    completion = "nan"
    [engines.azure]
    api_key_file = "/nowhere/at/all"
    url = "https://mine"
    [tiers.silver]
    then = ["silver", "cloud"]
    [roles.bard]
    tier = "silver"
    model = "nobody"
    [caps.tier_day]
    cloud = "a lot"
    [profiles.gold]
    serves = "sglang"
    """

    found = problems(tmp_path, toml)

    assert sorted(problem.split(": ")[0] for problem in found) == [
        "caps.tier_day.cloud",
        "engines.anthropic.price",
        "engines.azure.api_key_file",
        "engines.deep",
        "engines.gold.concurency",
        "engines.gold.ttft_s",
        "engines.mine",
        "engines.openai.price.completion",
        "engines.openai.price.prompt",
        "engines.silver.dialect",
        "engines.silver.url",
        "engins",
        "profiles.gold.serves",
        "roles.bard",
        "tiers.silver.then",
    ]
    assert "engins: unknown" in found
    assert not any("nowhere" in problem or "ftp:" in problem or "a lot" in problem for problem in found)


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        ('[engines.Gold]\ntier = "gold"\ndialect = "vllm"\n', "engines.Gold"),
        ('[engines.cloud]\ntier = "silver"\ndialect = "vllm"\n', "engines: an engine cannot be called cloud"),
        ('[engines.auto]\ntier = "silver"\ndialect = "vllm"\n', "engines: an engine cannot be called auto"),
        ('[engines.gold]\ntier = "silver"\n', "engines.gold.tier: the name is a tier's"),
        ('[engines.bronze]\ntier = "silver"\n', "engines.bronze.tier: the name is a tier's"),
        ('[engines.sagemaker]\nurl = "http://endpoint"\n', "engines.sagemaker: a SageMaker endpoint has no url"),
        (
            "[engines.sagemaker]\nsmaller = true\n",
            "engines.sagemaker: an endpoint that answers later is for the bronze",
        ),
        ("[engines.gold]\nconcurrency = 0\nbackground = 0\n", "engines.gold: concurrency and background"),
        ('[engines.gold]\napi_key_file = "/etc/hostname"\n', "engines.gold: api_key_file goes with a url"),
        ('[engines.gold]\nurl = "http://user:secret@gold"\n', "engines.gold.url"),
        ('[tiers.gold]\nthen = ["bronze"]\n', "tiers.gold.then: names the tier itself, or bronze"),
        ('[tiers.gold]\nthen = ["silver", "silver"]\n', "tiers.gold.then: names a tier twice"),
        ("[profiles.gold]\nmax_batch_size = [1]\n", "profiles.gold: max_batch_size"),
        ('engines = "all"\n', "engines"),
        ("[engines]\ngold = 7\n", "engines.gold"),
    ],
    ids=[
        *(
            "case",
            "tier",
            "auto",
            "other tier",
            "other than bronze",
            "an endpoint's url",
            "a smaller endpoint",
            "no lanes",
        ),
        *("key", "login", "bronze", "twice", "list", "text", "number"),
    ],
)
def test_a_problem_is_told_in_its_place(tmp_path: Path, toml: str, problem: str) -> None:
    found = problems(tmp_path, toml)

    assert found
    assert found[0].startswith(problem)
    assert not any("secret" in each for each in found)


def test_a_file_that_is_no_toml_or_cannot_be_read_is_told_without_a_word_of_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as no_toml:
        read(tmp_path, "[engines.gold]\nkey = sk-secret\n")
    with pytest.raises(SettingsError) as missing:
        read_catalogue(Given(file=tmp_path / "none.toml"))

    assert no_toml.value.message == "The file of BODY_BROKER_MODELS is not TOML (at line 2, column 7)."
    assert missing.value.message == "The file of BODY_BROKER_MODELS cannot be read as text."
    assert str(tmp_path) not in missing.value.message + missing.value.next_step


@pytest.mark.parametrize("key", ["/nowhere/at/all", "~nosuchuser-at-all/key"])
def test_a_key_file_that_cannot_be_read_is_a_problem_of_the_file_and_no_traceback(tmp_path: Path, key: str) -> None:
    assert problems(tmp_path, f'[engines.gold]\nurl = "http://gold"\napi_key_file = "{key}"\n') == [
        "engines.gold.api_key_file: cannot be read as text"
    ]


@pytest.mark.parametrize(
    ("addresses", "after_gold", "names"),
    [
        ({"gold", "silver"}, (Tier.SILVER,), ("auto", "gold", "silver")),
        ({"gold"}, (Tier.SILVER,), ("auto", "gold")),
        (
            {"anthropic"},
            (Tier.SILVER, Tier.CLOUD),
            ("auto", "gold", "silver", "bronze", "cloud", "anthropic", "anthropic-large"),
        ),
        (set[str](), (Tier.SILVER,), ("auto",)),
    ],
    ids=["both", "gold", "cloud", "nothing"],
)
def test_a_tier_goes_on_past_one_that_has_no_engine_and_may_be_asked_for_where_it_arrives_at_one(
    addresses: set[str], after_gold: tuple[Tier, ...], names: tuple[str, ...]
) -> None:
    found = read_catalogue(Given(urls=dict.fromkeys(addresses, "http://127.0.0.1:9")))

    assert found.after(Tier.GOLD) == after_gold
    assert found.answering() == names


@pytest.mark.parametrize("written", ["", "two\nlines", "ключ"])
def test_a_key_file_holds_one_line_of_visible_characters(tmp_path: Path, written: str) -> None:
    key = tmp_path / "key"
    key.write_text(written, "utf-8")

    assert problems(tmp_path, f'[engines.gold]\nurl = "http://gold"\napi_key_file = "{key}"\n') == [
        "engines.gold.api_key_file: holds no key: one line of visible characters"
    ]
