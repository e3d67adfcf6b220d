"""Objects: whole files under keys, in a directory or in S3. What is too large for a row, or has to outlive the database."""

from body_broker.storage.objects.model import Objects, check
from body_broker.storage.objects.opening import open_objects

__all__ = ["Objects", "check", "open_objects"]
