"""Owns what the admin server's tools need: which role each principal assumes, and AWS itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The studio's AWS account, read only.

    Attributes:
        roles: TOML file that says which IAM role each principal assumes; None where AWS is not set up.
        region: Asked where a call names none.
        endpoint_url: Another endpoint for every service.
    """

    roles: Path | None
    region: str | None
    endpoint_url: str | None
