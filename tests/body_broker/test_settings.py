"""Settings from the environment: an empty variable is none, a misspelt one is an error, and no value is repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from body_broker.errors import SettingsError
from body_broker.settings import Settings, load_settings


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_an_empty_variable_counts_as_not_set(name: str) -> None:
    """Compose passes on what is not set as empty."""
    assert load_settings({f"BODY_BROKER_{name.upper()}": ""}) == load_settings({})


def test_an_empty_variable_leaves_what_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "body-broker.toml"
    file.write_text('silver_model = "tiny"\n', "utf-8")

    assert load_settings({"BODY_BROKER_SILVER_MODEL": ""}, file).silver_model == "tiny"


def test_a_misspelt_variable_is_an_error_though_it_is_empty() -> None:
    with pytest.raises(SettingsError, match="BODY_BROKER_SILVR_URL is not a setting"):
        load_settings({"BODY_BROKER_SILVR_URL": ""})


def test_a_dialect_that_there_is_not_is_told_with_those_there_are() -> None:
    with pytest.raises(SettingsError, match=r"silver_dialect: .*'openai'") as refused:
        load_settings({"BODY_BROKER_SILVER_DIALECT": "ollama"})
    assert "ollama" not in refused.value.message
