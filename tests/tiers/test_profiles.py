"""Engine profiles: the source documents' settings as the servers take them, and clear words for what they do not have."""

from __future__ import annotations

import itertools
import json
import shlex
from pathlib import Path

import pytest
import yaml

from body_broker.errors import NotFound, SettingsError
from tiers.catalogue import Given, Profile
from tiers.profiles import Rendered, profile_of, render
from tiers.reading import read_catalogue


def rendered(name: str, file: Path | None = None) -> Rendered:
    catalogue = read_catalogue(Given(file=file))
    return render(profile_of(catalogue, name), catalogue.engines)


def test_gold_renders_speculative_decoding_the_window_and_the_cache_of_the_source_documents() -> None:
    found = rendered("gold")

    words = shlex.split(found.command)
    assert words[:2] == ["trtllm-serve", "Qwen/Qwen2.5-3B-Instruct-AWQ"]
    assert words[words.index("--config") + 1] == found.file == "gold.yaml"
    assert yaml.safe_load(found.configuration) == {
        "max_batch_size": 36,
        "max_seq_len": 4096,
        "guided_decoding_backend": "xgrammar",
        "kv_cache_config": {
            "free_gpu_memory_fraction": 0.85,
            "enable_block_reuse": True,
            "max_attention_window": [4096],
        },
        "speculative_config": {
            "decoding_type": "Draft_Target",
            "speculative_model": "Qwen/Qwen2.5-0.5B-Instruct",
            "max_draft_len": 4,
        },
        "scheduler_config": {"waiting_queue_policy": "priority"},
    }
    assert found.setting == "BODY_BROKER_GOLD_URL=http://127.0.0.1:8001"


def test_one_gold_server_takes_both_queues_and_two_take_one_each() -> None:
    catalogue = read_catalogue(Given())
    sizes = {
        name: profile_of(catalogue, name).settings["max_batch_size"] for name in catalogue.profiles if "gold" in name
    }
    spec = catalogue.engines["gold"]

    assert sizes["gold"] == spec.concurrency + spec.background
    assert (sizes["gold-realtime"], sizes["gold-background"]) == (4, 32)


def test_silver_renders_a_command_line_and_no_file() -> None:
    found = rendered("silver")

    words = shlex.split(found.command)
    given = dict(itertools.pairwise(words))
    assert words[:3] == ["vllm", "serve", "meta-llama/Llama-3.1-8B-Instruct"]
    assert given["--max-num-batched-tokens"] == "8000"
    assert given["--scheduling-policy"] == "priority"
    assert given["--quantization"] == "fp8"
    assert json.loads(given["--structured-outputs-config"]) == {"backend": "xgrammar", "disable_any_whitespace": True}
    assert {"--enable-prefix-caching", "--enable-auto-tool-choice"} <= set(words)
    assert (found.file, found.configuration) == (None, "")
    assert found.setting == "BODY_BROKER_SILVER_URL=http://127.0.0.1:8002"


@pytest.mark.parametrize("name", sorted(read_catalogue(Given()).profiles))
def test_what_a_profile_prints_sets_its_engine_up(name: str, tmp_path: Path) -> None:
    found, profile = rendered(name), profile_of(read_catalogue(Given()), name)
    words = shlex.split(found.command)
    flags = {flag.replace("_", "-"): value for flag, value in itertools.pairwise(words)}
    url = f"http://127.0.0.1:{flags['--port']}"

    if found.place == "the environment":
        variable, _, told = found.setting.partition("=")
        address = variable.removeprefix("BODY_BROKER_").removesuffix("_URL").lower()
        catalogue = read_catalogue(Given(urls={address: told}))
    else:
        file = tmp_path / "models.toml"
        file.write_text(found.setting, "utf-8")
        catalogue = read_catalogue(Given(file=file))

    engine = catalogue.engines[profile.engine]
    assert (engine.url, engine.dialect) == (url, profile.serves)
    assert engine.model == flags.get("--served-model-name"), "without a name it asks for the only one"
    assert engine.context_tokens == profile.settings.get("max_seq_len", profile.settings.get("max_model_len"))
    assert [spec.name for spec in catalogue.engines.values() if spec.url is not None] == [engine.name]


def test_no_two_profiles_listen_at_the_same_port() -> None:
    ports = [profile.port for profile in read_catalogue(Given()).profiles.values()]

    assert len(set(ports)) == len(ports)


def test_a_server_calls_its_model_what_the_settings_say(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text('[engines.silver-small]\nmodel = "our-own"\n', "utf-8")

    words = shlex.split(rendered("silver-small", file).command)

    assert words[words.index("--served-model-name") + 1] == "our-own"


def test_a_studios_own_profile_renders_too(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(
        """
        [profiles.silver]
        speculative_draft_model = "Qwen/Qwen2.5-3B-Instruct"
        speculative_tokens = 5
        enable_prefix_caching = false
        served_model_name = "it's a name; rm -rf /"
        """,
        "utf-8",
    )

    words = shlex.split(rendered("silver", file).command)

    speculative = json.loads(words[words.index("--speculative-config") + 1])
    assert speculative == {
        "method": "draft_model",
        "model": "Qwen/Qwen2.5-3B-Instruct",
        "num_speculative_tokens": 5,
    }
    assert "--no-enable-prefix-caching" in words
    assert words[words.index("--served-model-name") + 1] == "it's a name; rm -rf /"


def test_a_name_that_is_no_profile_is_told_with_those_that_are() -> None:
    with pytest.raises(NotFound) as failed:
        profile_of(read_catalogue(Given()), "bronze")

    assert "gold, gold-background" in failed.value.next_step


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        (Profile("mine", "trtllm", {"model": "m", "max_bach_size": 4}), "max_bach_size"),
        (Profile("mine", "trtllm", {"model": "m", "speculative_tokens": 4}), "without speculative_draft_model"),
        (Profile("mine", "vllm", {"model": "m", "speculative_draft_model": "d"}), "without speculative_tokens"),
    ],
    ids=["unknown", "tokens alone", "model alone"],
)
def test_a_setting_that_does_not_fit_is_named(profile: Profile, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        render(profile, {})
