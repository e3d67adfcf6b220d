"""Owns Azure OpenAI's dialect: OpenAI's under another path, with the key in a header of its own."""

from __future__ import annotations

from collections.abc import Mapping

from tiers.wire.openai import OpenAi


class Azure(OpenAi):
    """The v1 API of an Azure OpenAI resource; the model is the deployment's name."""

    health_path = "/openai/v1/models"
    models_path = "/openai/v1/models"
    chat_path = "/openai/v1/chat/completions"

    def authorised(self, key: str | None) -> Mapping[str, str]:
        """Azure's own header."""
        return {"api-key": key} if key else {}
