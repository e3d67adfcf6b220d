"""The root key: one for all who start at once, readable by nobody else, and a different key for every purpose."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from pydantic import SecretStr

from body_broker.errors import SettingsError
from body_broker.settings import Settings
from mcp_servers.hub.secrets import Secrets


def settings(data_dir: Path, **more: object) -> Settings:
    return Settings.model_validate({"data_dir": data_dir} | more)


def key_file(data_dir: Path) -> Path:
    return data_dir / "secrets" / "root.key"


def test_hubs_that_start_at_once_agree_on_one_root_key(tmp_path: Path) -> None:
    together = Barrier(8)

    def load(_: int) -> bytes:
        together.wait()
        return Secrets.load(settings(tmp_path / "new")).derive("audit")

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(load, range(8)))

    assert len(set(found)) == 1
    assert [f.name for f in key_file(tmp_path / "new").parent.iterdir()] == ["root.key"]


def test_the_root_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    Secrets.load(settings(tmp_path))

    assert key_file(tmp_path).stat().st_mode & 0o777 == 0o600
    assert key_file(tmp_path).parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_root_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    Secrets.load(settings(tmp_path))
    key_file(tmp_path).chmod(mode)

    with pytest.raises(SettingsError, match="read by others") as refused:
        Secrets.load(settings(tmp_path))

    assert "chmod 600" in refused.value.next_step
    assert str(tmp_path) not in refused.value.message


def test_a_root_key_that_is_a_link_is_refused(tmp_path: Path) -> None:
    Secrets.load(settings(tmp_path / "theirs"))
    ours = key_file(tmp_path / "ours")
    ours.parent.mkdir(parents=True)
    ours.symlink_to(key_file(tmp_path / "theirs"))

    with pytest.raises(SettingsError):
        Secrets.load(settings(tmp_path / "ours"))


@pytest.mark.parametrize("text", ["", "ab" * 31, "ab" * 33, "zz" * 32])
def test_a_damaged_root_key_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    Secrets.load(settings(tmp_path))
    key_file(tmp_path).write_text(text)

    with pytest.raises(SettingsError, match="damaged"):
        Secrets.load(settings(tmp_path))

    assert key_file(tmp_path).read_text() == text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_data_dir_that_cannot_be_written_is_told_plainly(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)

    with pytest.raises(SettingsError, match="cannot be read or made"):
        Secrets.load(settings(tmp_path))


def test_a_root_key_of_another_user_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    Secrets.load(settings(tmp_path))
    os.chown(key_file(tmp_path), 12345, 12345)

    with pytest.raises(SettingsError, match="read by others"):
        Secrets.load(settings(tmp_path))


def test_the_configured_key_comes_before_the_file_and_writes_none(tmp_path: Path) -> None:
    one = Secrets.load(settings(tmp_path, secret_key=SecretStr("k" * 32))).derive("audit")
    two = Secrets.load(settings(tmp_path, secret_key=SecretStr("l" * 32))).derive("audit")

    assert one != two
    assert not key_file(tmp_path).exists()


def test_hubs_that_share_a_database_must_be_given_the_key(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="BODY_BROKER_SECRET_KEY"):
        Secrets.load(settings(tmp_path, database_url="postgresql://elsewhere/hub"))


def test_every_purpose_has_a_key_of_its_own_and_keeps_it() -> None:
    secrets = Secrets(b"r" * 32)
    keys = {purpose: secrets.derive(purpose) for purpose in ("audit", "cursors", "signing-keys")}

    assert len(set(keys.values())) == 3
    assert {len(key) for key in keys.values()} == {32}
    assert Secrets(b"r" * 32).derive("audit") == keys["audit"]
    # Frozen: another value here means that nobody's audit chain verifies any more.
    assert keys["audit"].hex() == "53bf6e3cb25355e0e3cbf90e4aa70de55765c230926585661a6592dfac819af0"


def test_the_root_key_is_not_in_the_object_s_text() -> None:
    assert "rrrr" not in repr(Secrets(b"r" * 32))
