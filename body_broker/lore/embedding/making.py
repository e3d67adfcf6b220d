"""Owns which maker a process has for a model: by the weights on this machine, or by an endpoint; the key goes to its own origin only."""

from __future__ import annotations

import asyncio
import ipaddress
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from body_broker.errors import SettingsError
from body_broker.lore.embedding import local
from body_broker.lore.embedding.local import Local
from body_broker.lore.embedding.models import Model, Wanted
from body_broker.lore.embedding.words import Maker
from body_broker.settings import Settings

_PORTS = {"http": 80, "https": 443}


class Makers:
    """The makers of this process, each made when it is first asked for.

    Args:
        settings: Which model is wanted, and the endpoint's key.
        weights: The folder of the weights on this machine, where they are installed.

    Raises:
        SettingsError: The endpoint's URL may not be used so.
    """

    def __init__(self, settings: Settings, weights: Path | None) -> None:
        self._settings, self._weights = settings, weights
        self.wanted: Wanted | None = None
        self._origin: tuple[str, str | None, int | None] | None = None
        if settings.embeddings.startswith("http"):
            assert settings.embeddings_model is not None, "load_settings requires it with a URL"
            url = settings.embeddings.rstrip("/")
            self._origin = _origin(_usable(url, with_key=settings.embeddings_api_key is not None))
            self.wanted = Wanted(settings.embeddings_model, url)
        elif settings.embeddings == "local" and weights is not None:
            self.wanted = Wanted(local.NAME)
        self._made: dict[tuple[str, str | None], Maker] = {}

    @property
    def off(self) -> bool:
        """Whether nothing is embedded here, not even queries."""
        return self._settings.embeddings == "off"

    def of(self, model: Model) -> Maker | None:
        """What makes a model's vectors here; None where nothing can."""
        if self.off:
            return None
        key = (model.called, model.url)
        if key not in self._made:
            maker = self._make(model)
            if maker is None:
                return None
            self._made[key] = maker
        return self._made[key]

    async def close(self) -> None:
        """End what the makers hold open."""
        await asyncio.gather(*(maker.close() for maker in self._made.values()))

    def _make(self, model: Model) -> Maker | None:
        if model.url is None:
            return Local(self._weights) if self._weights is not None and model.called == local.NAME else None
        from body_broker.lore.embedding.endpoint import Endpoint  # noqa: PLC0415  # aiohttp, where there is an endpoint

        ours = _origin(urlsplit(model.url)) == self._origin
        key = self._settings.embeddings_api_key if ours else None
        return Endpoint(
            model.url,
            model.called,
            key=key.get_secret_value() if key is not None else None,
            timeout_s=self._settings.embeddings_timeout_s,
        )


def _usable(url: str, *, with_key: bool) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise SettingsError("BODY_BROKER_EMBEDDINGS is no URL.") from error
    if not parts.hostname or parts.username is not None or parts.query or parts.fragment:
        raise SettingsError(
            "BODY_BROKER_EMBEDDINGS must be a plain base URL: no user, no password, no query.",
            next_step="Put the key into BODY_BROKER_EMBEDDINGS_API_KEY.",
        )
    if with_key and parts.scheme == "http" and not _loopback(parts.hostname):
        raise SettingsError(
            "BODY_BROKER_EMBEDDINGS_API_KEY would travel in the clear: BODY_BROKER_EMBEDDINGS is http:// and not on this machine.",
            next_step="Use https://, or unset the key.",
        )
    return parts


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)
