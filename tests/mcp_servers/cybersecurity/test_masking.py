"""What is hidden of a line before anybody sees it."""

from __future__ import annotations

import pytest

from mcp_servers.cybersecurity.masking import mask, mask_values, words_of
from tests.mcp_servers.cybersecurity.repositories import AWS_KEY, GITHUB_TOKEN


@pytest.mark.parametrize(
    "secret",
    [
        AWS_KEY,
        GITHUB_TOKEN,
        "wJalrXUtnFEMI/K7MDENG/bPxRfiCYzQ9KEYabcd",
        "deadbeefdeadbeef0123456789abcdef",
        "sk_live_4eC39HqLyjWDarjtT1zdp7dc",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    ],
)
def test_what_looks_like_a_key_is_hidden(secret: str) -> None:
    for line in (f"key = '{secret}'", secret, f"curl -H X:{secret}", f"https://u:{secret}@host/"):
        assert secret not in mask(line, 200)
        assert secret[4:16] not in mask(line, 200)


def test_a_login_in_an_address_is_hidden() -> None:
    assert mask("url = 'postgresql://anna:hunter2@db/x'", 200) == "url = 'postgresql://***@db/x'"


@pytest.mark.parametrize(
    "line",
    [
        "subprocess.run('ls ' + name, shell=True)",
        "from mcp_servers.cybersecurity.findings import SecurityReport",
        "self.assert_that_the_long_name_of_a_function_stays(readable)",
    ],
)
def test_code_stays_readable(line: str) -> None:
    assert mask(f"    {line}\n", 200) == line


def test_what_is_shown_is_bounded_and_holds_nothing_unseen() -> None:
    shown = mask("a \u202e\u200b\x1b[31m\x00b" + " x" * 10_000, 200)
    assert len(shown) == 200
    assert shown.startswith("a [31mb x")
    assert shown.isprintable()


@pytest.mark.parametrize(
    "line", ['password = "hunter2"', "password: hunter2", "PASSWORD=hunter2 run", "login('anna', 'hunter2')"]
)
def test_a_line_with_a_secret_is_known_again_without_it(line: str) -> None:
    known = mask_values(line)
    assert "hunter2" not in known
    assert known != mask_values("something(else_entirely)")


@pytest.mark.parametrize(
    "line", ["run('hunter2', x)", "run(x)  # password hunter2", "run(x)  // hunter2", "run(`hunter2", "run(x, hunter2)"]
)
def test_a_line_of_code_is_known_again_by_its_words_without_what_may_be_a_secret(line: str) -> None:
    known = words_of(f"    {line}")
    assert "hunter" not in known
    assert known.startswith("run(")
    assert known == words_of(line.replace("hunter2", "hunter3"))
    assert known != words_of(line.replace("run", "walk"))
