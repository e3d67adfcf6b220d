"""Hubs that have joined a server of others."""

from tests.mcp_servers.hub.conftest import open_hub, patient_engines, patient_models, settings_for

__all__ = ["open_hub", "patient_engines", "patient_models", "settings_for"]
