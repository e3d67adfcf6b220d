"""compose.yaml's engines are started as `engine-profile` prints, and the hub is told of them, and of any other, by .env alone."""

from __future__ import annotations

import shlex

import pytest
import yaml

from body_broker.settings import Settings, load_settings
from mcp_servers.hub.inferring import given_by
from tests.deploy.files import Service, compose, env_of, example
from tests.deploy.test_compose_file import FILLED
from tiers.catalogue import Catalogue, Given
from tiers.profiles import Rendered, profile_of, render
from tiers.reading import read_catalogue

ENGINES = {"silver": "vllm", "gold": "trtllm"}
# Of .env.example: each setting of the tiers, and where it must arrive.
OURS = {name: name.removeprefix("BODY_BROKER_").lower() for name in example() if name.startswith("BODY_BROKER_")}
TIERS = sorted(
    name
    for name, field in OURS.items()
    if field.startswith(("gold", "silver", "openai", "azure", "anthropic", "models", "bronze", "sagemaker", "results"))
)


def rendered(name: str) -> Rendered:
    catalogue = read_catalogue(Given())
    return render(profile_of(catalogue, name), catalogue.engines)


def hub_settings(**env: str) -> Settings:
    given: Service = compose(FILLED | env)["services"]["hub"]["environment"]
    return load_settings(env_of(1) | {name: value for name, value in given.items() if value is not None})


def of_the_hub(**env: str) -> Catalogue:
    return read_catalogue(given_by(hub_settings(**env)))


@pytest.mark.parametrize("tier", sorted(ENGINES))
def test_an_engine_is_started_with_the_command_line_that_engine_profile_prints(tier: str) -> None:
    service: Service = compose(FILLED)["services"][ENGINES[tier]]
    port = shlex.split(rendered(tier).command)
    port = port[port.index("--port") + 1]
    here = {"127.0.0.1": "0.0.0.0", port: "8000", "gold.yaml": "/gold.yaml"}  # noqa: S104  # in its container, on an inner network

    words = [here.get(word, word) for word in shlex.split(rendered(tier).command)]

    assert [*service.get("entrypoint", []), *service["command"]] == words


def test_the_configuration_of_gold_is_what_engine_profile_prints() -> None:
    found = compose(FILLED)

    assert found["services"]["trtllm"]["configs"] == [{"source": "gold", "target": "/gold.yaml"}]
    assert yaml.safe_load(found["configs"]["gold"]["content"]) == yaml.safe_load(rendered("gold").configuration)


def test_another_model_brings_its_own_parser_and_quantisation() -> None:
    own = {"VLLM_MODEL": "Qwen/Qwen2.5-7B-Instruct-AWQ", "VLLM_TOOL_CALL_PARSER": "hermes", "VLLM_QUANTIZATION": "awq"}

    command = compose(FILLED | own)["services"]["vllm"]["command"]

    assert command[0] == own["VLLM_MODEL"]
    assert command[command.index("--tool-call-parser") + 1] == "hermes"
    assert command[command.index("--quantization") + 1] == "awq"


def test_the_example_s_addresses_are_those_of_the_engines_of_the_profile() -> None:
    urls = {f"BODY_BROKER_{tier.upper()}_URL": f"http://{service}:8000" for tier, service in ENGINES.items()}
    networks = compose(FILLED)["services"]

    found = of_the_hub(**urls)

    assert {name: example()[name] for name in urls} == urls
    assert {spec.name: spec.url for spec in found.engines.values() if spec.url} == {
        "gold": "http://trtllm:8000",
        "silver": "http://vllm:8000",
    }
    for service in ENGINES.values():
        assert set(networks["hub"]["networks"]) & set(networks[service]["networks"]) == {"inside"}


@pytest.mark.parametrize("name", TIERS)
def test_a_line_of_the_example_reaches_the_hub_s_setting(name: str) -> None:
    value = example()[name] or "a-key"

    found = getattr(hub_settings(**{name: value}), OURS[name])

    assert str(found.get_secret_value() if hasattr(found, "get_secret_value") else found) == value


@pytest.mark.parametrize("name", TIERS)
def test_a_line_that_is_left_empty_counts_as_not_there(name: str) -> None:
    assert hub_settings(**{name: ""}) == hub_settings()


def test_without_a_line_no_engine_has_an_address_and_every_setting_of_one_has_a_line() -> None:
    wanted = {
        field
        for field in Settings.model_fields
        if field.startswith(("gold_", "silver_", "openai_", "azure_", "anthropic_", "bronze_", "sagemaker_"))
    }

    assert not [spec.name for spec in of_the_hub().engines.values() if spec.url]
    assert wanted | {"models"} <= set(OURS.values())
