"""Owns reading the settings: a file, the environment over it, the command line over both; and what no field can see alone."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError

from body_broker.errors import SettingsError
from body_broker.settings.model import NOT_SETTINGS, PREFIX, Settings


def load_settings(
    environ: Mapping[str, str],
    file: Path | None = None,
    **overrides: object,
) -> Settings:
    """The settings from an optional TOML file, the environment over it, and the command line's overrides over both.

    Args:
        environ: The process's environment; only names that start with BODY_BROKER_ are looked at. An empty one counts as not set.
        file: A body-broker.toml; keys are the names of the settings.
        overrides: Values given on the command line; None means not given.

    Raises:
        SettingsError: A name is unknown (a misspelt variable is an error), or a value does not fit. No value is repeated.
    """
    values: dict[str, object] = _from_file(file) if file else {}
    for name, text in environ.items():
        if not name.startswith(PREFIX) or name in NOT_SETTINGS or name.startswith(NOT_SETTINGS[0]):
            continue
        field = name.removeprefix(PREFIX).lower()
        if field not in Settings.model_fields:
            raise SettingsError(f"{name} is not a setting.", next_step="docs/settings.md lists every setting.")
        if not text:  # so Compose passes on what is not set
            continue
        values[field] = tuple(filter(None, text.split(","))) if field == "allowed_hosts" else text
    values |= {name: value for name, value in overrides.items() if value is not None}
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        places = "; ".join(_misfit(e["loc"], e["type"], e["msg"]) for e in error.errors(include_input=False))
        raise SettingsError(
            f"The settings do not fit: {places}.", next_step="docs/settings.md lists every setting."
        ) from error
    _check_lore(settings)
    _check_oidc(settings)
    if settings.database_url is not None and settings.secret_key is None:
        raise SettingsError(
            "BODY_BROKER_SECRET_KEY is missing: hubs that share a database must share it.",
            next_step="Set it to at least 32 random characters, the same for every hub and worker.",
        )
    return settings


def _misfit(place: tuple[int | str, ...], kind: str, message: str) -> str:
    """What is wrong with one setting, by the name it is set under; a pattern says nothing to a person, its description does."""
    name = str(place[0]) if place else "settings"
    field = Settings.model_fields.get(name)
    if kind == "string_pattern_mismatch" and field is not None:
        return f"{PREFIX}{name.upper()} is not of its form ({field.description})"
    return f"{'.'.join(map(str, place)) or 'settings'}: {message.removeprefix('Value error, ')}"


def _check_lore(settings: Settings) -> None:
    if settings.embeddings.startswith("http") and not settings.embeddings_model:
        raise SettingsError(
            "BODY_BROKER_EMBEDDINGS_MODEL is missing.", next_step="Set it to the model the embeddings API serves."
        )
    if settings.opensearch_service != "plain" and not settings.opensearch_region:
        raise SettingsError("BODY_BROKER_OPENSEARCH_REGION is missing.", next_step="Set it to the domain's AWS region.")
    if settings.opensearch_service == "serverless" and settings.opensearch_engine != "faiss":
        raise SettingsError(
            "OpenSearch Serverless has no engine but faiss.", next_step="Unset BODY_BROKER_OPENSEARCH_ENGINE."
        )


def _check_oidc(settings: Settings) -> None:
    if settings.oidc_issuer is None:
        return
    for name in ("oidc_issuer", "oidc_jwks_url"):
        url = urlsplit(getattr(settings, name) or "https:")
        if url.scheme != "https" and url.hostname not in {"localhost", "127.0.0.1", "::1"}:
            raise SettingsError(
                f"{PREFIX}{name.upper()} is not https: whoever is on the way could write keys of their own.",
                next_step="Use its https address; http does on this machine alone.",
            )
    if settings.public_url is None:
        raise SettingsError(
            "BODY_BROKER_PUBLIC_URL is missing: tokens of BODY_BROKER_OIDC_ISSUER are made for the hub at a URL.",
            next_step="Set it to the URL that clients reach this hub by, without /mcp.",
        )
    if settings.oidc_issuer == settings.token_issuer:
        raise SettingsError("BODY_BROKER_TOKEN_ISSUER and BODY_BROKER_OIDC_ISSUER must differ.")


def _from_file(file: Path) -> dict[str, object]:
    try:
        found = tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{file.name} cannot be read as TOML.") from error
    unknown = sorted(set(found) - set(Settings.model_fields))
    if unknown:
        raise SettingsError(
            f"{file.name} has unknown settings: {', '.join(unknown)}.",
            next_step="docs/settings.md lists every setting.",
        )
    return found
