"""Logs: lines that machines read, on stderr alone, the libraries' among them."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import logging
from body_broker.telemetry import configure_logging, get_logger
configure_logging("info", "json")
get_logger("ours").info("call_failed", call="call_1")
get_logger("ours").debug("too_quiet")
logging.getLogger("a.library").warning("a %s line", "formatted")
try:
    1 / 0
except ZeroDivisionError:
    get_logger("ours").exception("method_failed")
"""


def test_every_line_is_one_json_object_on_stderr_and_stdout_stays_free_for_mcp() -> None:
    said = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True, text=True, timeout=60)

    lines = [json.loads(line) for line in said.stderr.splitlines()]
    assert said.stdout == ""
    assert [(line["level"], line["event"]) for line in lines] == [
        ("info", "call_failed"),
        ("warning", "a formatted line"),
        ("error", "method_failed"),
    ]
    assert lines[0]["call"] == "call_1"
    assert "ZeroDivisionError" in lines[2]["exception"]
    assert all(line["timestamp"].endswith("Z") for line in lines)
