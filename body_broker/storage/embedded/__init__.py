"""PostgreSQL and Valkey of our own where no URL is given: a keeper process runs both for as long as anybody uses them."""

from body_broker.storage.embedded.holds import release, start
from body_broker.storage.embedded.layout import StoreUrls
from body_broker.storage.embedded.processes import EmbeddedStatus, status

__all__ = ["EmbeddedStatus", "StoreUrls", "release", "start", "status"]
