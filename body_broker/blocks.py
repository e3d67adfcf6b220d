"""Owns what an answer may hold beside text: pictures, sound, documents. No protocol; the hub gives each its MCP form."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text for the model."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """A picture."""

    data: bytes
    mime_type: str


@dataclass(frozen=True, slots=True)
class Audio:
    """Sound."""

    data: bytes
    mime_type: str


@dataclass(frozen=True, slots=True)
class Document:
    """A whole document under its URI, in the answer itself; text or bytes."""

    uri: str
    mime_type: str
    content: str | bytes


Block = Text | Image | Audio | Document
