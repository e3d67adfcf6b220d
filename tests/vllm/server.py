"""Owns the real vLLM process of tests: started with a model of our own on 127.0.0.1, waited for, read, and stopped.

`python -m tests.vllm.server` serves it until Ctrl-C (docs/tiers.md).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path

import httpx2

from tests.components import missing
from tests.ports import free_port
from tests.vllm.install import absence, python
from tests.vllm.model import CONTEXT_TOKENS, Wanted, make_model
from tests.waiting import wait_until_sync

_START_S = 240.0
"""Three processes import torch one after the other: 35 s on two idle cores, and a test run is never idle."""
_STOP_S = 30.0
CALLS = (
    Wanted("retrieve_lore", {"topic": "the ferry"}),
    Wanted("get_world_state", {"region": "ashmere_quay"}),
)
"""What the model asks for where it may: lore, and the state of the game."""
SLOTS = 4
"""Requests that it works on at once; more wait."""
_FLAGS = (
    "--dtype=bfloat16",
    "--enforce-eager",
    f"--max-model-len={CONTEXT_TOKENS}",
    f"--max-num-seqs={SLOTS}",
    "--scheduling-policy=priority",
    "--enable-prompt-tokens-details",
    # Without it a model that knows nothing writes blanks until its tokens are used up.
    '--structured-outputs-config={"backend":"xgrammar","disable_any_whitespace":true}',
    "--enable-auto-tool-choice",
    "--tool-call-parser=hermes",
    "--exclude-tools-when-tool-choice-none",
    "--kv-cache-memory-bytes=134217728",
)
_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}


class VllmServer:
    """One vLLM; `start` it, and `stop` it however it is.

    Args:
        folder: For the model, caches and the log; kept by whoever gave it.
        calls: What its model writes where it is offered tools.
    """

    def __init__(self, folder: Path, calls: Sequence[Wanted]) -> None:
        self._folder, self._log = folder, folder / "vllm.log"
        make_model(folder / "model", calls)
        self.url, self._port = "", 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> str:
        """Its base URL, once it answers."""
        interpreter = python()
        assert interpreter is not None, "a test that needs vLLM says so: pytest.mark.requires"
        self._port = free_port()
        command = [str(interpreter), "-m", "vllm.entrypoints.openai.api_server", "--host=127.0.0.1"]
        command += [f"--port={self._port}", f"--model={self._folder / 'model'}", "--served-model-name=tiny", *_FLAGS]
        if ends_with_us := shutil.which("setpriv"):  # a test run that is killed leaves nothing
            command = [ends_with_us, "--pdeathsig", "TERM", "--", *command]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, env=self._environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        self.url = f"http://127.0.0.1:{self._port}"
        try:
            wait_until_sync(self._answers, "vLLM answers", _START_S)
        except BaseException:
            self.stop()
            raise
        return self.url

    def stop(self) -> None:
        """Be rid of it and of its workers, which end with it."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            missing("vllm", f"it ended while it started: {self._log.read_text('utf-8', 'replace')[-1_500:]}")
        connection = HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == HTTPStatus.OK
        except OSError:
            return False
        finally:
            connection.close()

    def _environment(self) -> dict[str, str]:
        """Little of ours; above all no PYTHONDONTWRITEBYTECODE, with which each start takes a minute."""
        taken = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}  # noqa: TID251  # tests' own
        return taken | _SETTINGS | {"VLLM_CACHE_ROOT": str(self._folder / "cache")}


async def gauge(url: str, name: str) -> float:
    """What /metrics says of one measure, all its series together."""
    async with httpx2.AsyncClient(timeout=60) as http:
        told = (await http.get(f"{url}/metrics")).text
    series = [line for line in told.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
    assert series, f"vLLM has no {name}"
    return sum(float(line.rpartition(" ")[2]) for line in series)


def main() -> None:
    """Serve until Ctrl-C."""
    if reason := absence():
        raise SystemExit(f"no vLLM here: {reason}")
    signals = (signal.SIGINT, signal.SIGTERM)
    with tempfile.TemporaryDirectory(prefix="body-broker-vllm-") as folder:
        server = VllmServer(Path(folder), CALLS)
        try:
            print(f"vLLM serves the tests' model at {server.start()} until Ctrl-C", flush=True)
            signal.pthread_sigmask(signal.SIG_BLOCK, signals)
            signal.sigwait(signals)
        except KeyboardInterrupt:
            print("stopped while it started")
        finally:
            server.stop()


if __name__ == "__main__":
    main()
