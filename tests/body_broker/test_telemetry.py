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


TRACED = """
import asyncio, logging
from opentelemetry.sdk.trace import TracerProvider
from body_broker.telemetry import configure_logging, get_logger
from body_broker.tracing import ids, installed, joined, span
configure_logging("info", "json")
log = get_logger("ours")

async def one(name):
    with span(name):
        log.info(name, wanted=" ".join(ids()))
        await asyncio.sleep(0)
        logging.getLogger("a.library").warning("%s", name)
        await asyncio.to_thread(log.info, name)

async def both():
    await asyncio.gather(one("first"), one("second"))

for rate in (1.0, 0.0):
    with installed(TracerProvider(shutdown_on_exit=False).get_tracer("tests"), rate=rate):
        log.info("outside")
        asyncio.run(both())
log.info("off")
with joined("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), span("nothing"):
    log.info("off")
"""


def test_lines_have_the_ids_of_the_span_that_is_open_and_of_no_other_task_s() -> None:
    said = subprocess.run([sys.executable, "-c", TRACED], capture_output=True, check=True, text=True, timeout=60)

    lines = [json.loads(line) for line in said.stderr.splitlines()]
    places = [(line["event"], line.get("trace_id"), line.get("span_id")) for line in lines]
    wanted = [(line["event"], *line["wanted"].split()) for line in lines if "wanted" in line]
    assert len(set(wanted)) == 4
    assert sorted(place for place in places if place[1]) == sorted(3 * wanted)
    assert [place for place in places if not place[1]] == [
        (name, None, None) for name in ("outside", "outside", "off", "off")
    ]
