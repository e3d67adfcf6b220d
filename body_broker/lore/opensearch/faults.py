"""Owns what can be wrong with an OpenSearch, as readers and operators are told: never another exception's text, no address, no secret."""

from __future__ import annotations

from body_broker.errors import Detail
from body_broker.lore.index import IndexAway

NOT_FOUND = 404
_COMPONENT: dict[str, Detail] = {"component": "opensearch"}
_FULL = frozenset({"cluster_block_exception"})
_REASONS: dict[int, tuple[str, str]] = {
    401: ("OpenSearch does not know our credentials.", "Check BODY_BROKER_OPENSEARCH_URL, or the AWS credentials."),
    403: (
        "OpenSearch refuses our credentials.",
        "Give them the right to create, read, write and delete its indices of that prefix.",
    ),
    429: ("OpenSearch has too much to do.", "It is tried again by itself."),
}


class CopyAway(IndexAway):
    """OpenSearch cannot do what it was asked now."""

    advice = "PostgreSQL answers searches meanwhile; the copy is brought up to date once OpenSearch is back."

    def __init__(self, message: str, *, next_step: str | None = None) -> None:
        super().__init__(message, next_step=next_step, details=_COMPONENT)


class CopyGone(CopyAway):
    """The OpenSearch index of a generation is not there, or is not the one we made."""


def refused(status: int, kind: str) -> CopyAway:
    """What an answer that is an error means.

    Args:
        status: The HTTP status.
        kind: OpenSearch's own word for the error; decides, and is never repeated.
    """
    if kind in _FULL:
        return CopyAway(
            "OpenSearch takes no writes: its disk is full, or somebody made it read-only.",
            next_step="Free its disk, then lift the block: PUT INDEX/_settings index.blocks.read_only_allow_delete null.",
        )
    if status == NOT_FOUND:
        return CopyGone("The copy in OpenSearch is not there.")
    message, step = _REASONS.get(status, ("OpenSearch cannot do what it was asked.", None))
    return CopyAway(message, next_step=step)


def unreachable() -> CopyAway:
    """Nobody answers at its address."""
    return CopyAway("OpenSearch cannot be reached.", next_step="Check BODY_BROKER_OPENSEARCH_URL and that it is up.")


def too_slow() -> CopyAway:
    """It did not answer in time."""
    return CopyAway("OpenSearch did not answer in time.")


def lost() -> CopyGone:
    """There is no generation that can be searched."""
    return CopyGone(
        "The copy in OpenSearch is not built, or was lost.",
        next_step="A worker builds it by itself; `body-broker lore reindex` does so at once.",
    )
