"""Settings: the model, and how they are read."""

from body_broker.settings.loading import load_settings
from body_broker.settings.model import NOT_SETTINGS, PREFIX, Settings

__all__ = ["NOT_SETTINGS", "PREFIX", "Settings", "load_settings"]
