"""Owns logging: structlog to stderr, JSON for machines and plain lines for people. stdout belongs to stdio MCP."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog

from body_broker.tracing import ids

LogFormat = Literal["json", "console"]
_OURS = ("approvals", "body_broker", "mcp_servers", "policies", "tiers")


def configure_logging(level: str = "warning", form: LogFormat = "console") -> None:
    """Send every log line, ours and the libraries', to stderr; called once by each process's entry point.

    Args:
        level: debug, info, warning or error. Libraries are heard from info on: below it they write down whole requests, with the
            tokens that are in them.
        form: json, one object a line, or console.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        _in_a_trace,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    last: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                last,
            ],
        ),
    )
    # A line that cannot be written is lost: else a traceback comes in its place, whose text may hold anything.
    logging.raiseExceptions = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.getLevelNamesMapping()[level.upper()], logging.INFO))
    for name in _OURS:
        logging.getLogger(name).setLevel(level.upper())
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        cache_logger_on_first_use=True,
    )


def _in_a_trace(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Where a span is open, the line says which: `trace_id`, `span_id`, in a library's lines too."""
    if (place := ids()) is not None:
        event["trace_id"], event["span_id"] = place
    return event


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger for one module; event names are snake_case facts, never sentences built from untrusted text."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return logger
