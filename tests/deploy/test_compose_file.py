"""compose.yaml and the Dockerfile say what docs/deploy.md promises, by other people's rules and by ours."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from body_broker.settings import load_settings
from tests.deploy.files import (
    COMPOSE,
    Missing,
    Service,
    compose,
    context,
    dockerfile,
    env_of,
    example,
    is_ignored,
    passed_on,
    variables,
)
from tests.tools.project import PACKAGES, ROOT, pyproject

SECRETS = {"BODY_BROKER_SECRET_KEY", "POSTGRES_PASSWORD", "VALKEY_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY"}
FILLED = {name: f"{name.lower().replace('_', '')}0123456789abcdef0123456789abcdef" for name in SECRETS}
OURS, GPU = {"hub", "worker", "engine"}, {"vllm", "trtllm"}
ALWAYS = OURS | {"postgres", "valkey", "opensearch", "s3"}
_PINNED = re.compile(r"[a-z0-9./-]+:v?\d+\.\d+[\w.-]*")


@pytest.fixture
def services() -> dict[str, Service]:
    return compose(FILLED)["services"]


def _program(name: str) -> Path:
    return Path(sys.executable).with_name(name)


def test_compose_yaml_follows_the_compose_specification() -> None:
    # The schema of compose-spec, as check-jsonschema carries it.
    _run(_program("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", COMPOSE)


def test_a_schema_check_finds_what_is_no_compose_file(tmp_path: Path) -> None:
    wrong: Any = yaml.safe_load(COMPOSE.read_text())
    wrong["services"]["hub"]["read_onyl"] = True
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump(wrong))

    done = subprocess.run(
        [_program("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", tmp_path / "compose.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "read_onyl" in done.stdout


def test_the_dockerfile_has_nothing_that_its_linter_objects_to() -> None:
    _run(_program("hadolint"), "--failure-threshold", "style", ROOT / "Dockerfile")


def test_there_are_these_services_and_only_engines_need_a_profile(services: dict[str, Service]) -> None:
    assert set(services) == ALWAYS | GPU
    assert {name for name, service in services.items() if service.get("profiles")} == GPU


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_nothing_starts_without_a_secret_and_none_has_a_default(name: str) -> None:
    for value in ("", None):
        env = FILLED | {name: value or ""}
        with pytest.raises(Missing, match=rf"{name}: set it in .env"):
            compose(env)
    assert variables()[name] == {":?"}


def test_every_variable_stands_in_the_example_and_no_secret_has_a_value_there() -> None:
    named, text = example(), (ROOT / ".env.example").read_text()

    assert set(variables()) | passed_on() == set(named)
    assert {name for name in named if re.search(rf"^{name}=", text, re.MULTILINE)} == SECRETS
    assert not any(named[name] for name in SECRETS)


def test_nothing_but_the_hub_is_published_and_that_on_loopback(services: dict[str, Service]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    networks = compose(FILLED)["networks"]

    assert published == {"hub": ["127.0.0.1:8080:8080"]}
    assert networks["inside"] == {"internal": True}
    assert services["worker"]["networks"] == ["inside", "door"]  # jobs of expert models are run there
    for name in ALWAYS - {"hub", "worker"}:
        assert services[name]["networks"] == ["inside"]


@pytest.mark.parametrize("name", sorted(ALWAYS | GPU))
def test_every_service_is_bounded_watched_and_comes_back(name: str, services: dict[str, Service]) -> None:
    service = services[name]

    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}
    assert service["deploy"]["resources"]["limits"]["memory"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["logging"]["options"]["max-size"]
    assert "privileged" not in service
    assert name in GPU or service["cap_drop"] == ["ALL"]
    assert name in GPU | {"opensearch"} or service["read_only"] is True
    for volume in service.get("volumes", []):
        assert volume.split(":")[0] in compose(FILLED)["volumes"]  # named, never a folder of the machine


def test_every_image_is_pinned_and_ours_and_vllm_s_are_the_versions_of_this_tree(services: dict[str, Service]) -> None:
    project = pyproject()
    pins = dict(pin.split("==") for pin in project["tool"]["uv"]["constraint-dependencies"] if ";" not in pin)

    for service in services.values():
        assert _PINNED.fullmatch(service["image"])
    for name in OURS:
        assert services[name]["image"] == f"body-broker:{project['project']['version']}"
    assert services["vllm"]["image"] == f"vllm/vllm-openai:v{pins['vllm']}"


@pytest.mark.parametrize("name", sorted(OURS))
def test_what_compose_sets_are_settings_that_fit(name: str, services: dict[str, Service]) -> None:
    service = services[name]
    env = {key: value for key, value in service["environment"].items() if value is not None}

    settings = load_settings(env_of(1) | env)

    assert settings.database_url is not None
    assert not settings.embedded
    assert settings.opensearch_url is not None
    assert set(service["depends_on"]) == {"postgres", "valkey", "opensearch"}


def test_no_two_services_build_one_image(services: dict[str, Service]) -> None:
    assert [name for name, service in services.items() if "build" in service] == ["hub"]


def test_the_image_is_built_from_what_is_there_for_an_ordinary_user() -> None:
    steps = dockerfile()
    given = {str(file.relative_to(ROOT)) for file in context()}
    stages = [step.text.split()[0] for step in steps if step.keyword == "FROM"]

    assert len(set(stages)) == 1
    assert _PINNED.fullmatch(stages[0])
    assert not [step for step in steps if step.keyword == "ADD"]
    for step in steps:
        if step.keyword == "COPY" and "--from" not in step.text:
            for source in step.words[:-1]:
                assert any(file == source or file.startswith(f"{source}/") for file in given), source
        elif step.keyword == "COPY":
            source = step.words[0].removeprefix("--from=")
            assert source == "build" or _PINNED.fullmatch(source)
    users = [step.text for step in steps if step.keyword == "USER" and step.stage == len(stages) - 1]
    assert users[-1] == "10001:10001"
    entry = {step.keyword: step.words for step in steps if step.keyword in {"ENTRYPOINT", "CMD"}}
    assert entry == {"ENTRYPOINT": ["body-broker"], "CMD": compose(FILLED)["services"]["hub"]["command"]}


def test_the_daemon_is_given_the_packages_and_no_secret() -> None:
    given = {file.relative_to(ROOT).parts[0] for file in context()}

    assert given == {*PACKAGES, "pyproject.toml", "README.md", "LICENSE"}
    for secret in (".env", ".git/config", ".body-broker/secrets/root.key", "tests/conftest.py"):
        assert is_ignored(ROOT / secret)


def _run(*words: str | Path) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
