"""Where a hub may listen: loopback freely, beyond it only with TLS or a proxy that has it, and with the names it answers to."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from body_broker.errors import SettingsError
from body_broker.settings import Settings, load_settings
from mcp_servers.hub.serve import Address, check_bind
from tests.mcp_servers.hub.conftest import OpenHub

TLS = {"tls_certificate": "c.pem", "tls_key": "k.pem"}


@pytest.mark.parametrize(
    ("host", "settings", "missing"),
    [
        ("127.0.0.1", {}, None),
        ("localhost", {}, None),
        ("::1", {}, None),
        ("0.0.0.0", {}, "TLS_CERTIFICATE"),  # noqa: S104 - refused
        ("192.0.2.7", {"allowed_hosts": ("hub.example",)}, "TLS_CERTIFICATE"),
        ("hub.example", {"behind_proxy": True}, "ALLOWED_HOSTS"),
        ("::", TLS, "PUBLIC_URL"),
        ("127.0.0.1", {"tls_key": "k.pem"}, "TLS_CERTIFICATE"),
        ("0.0.0.0", {**TLS, "allowed_hosts": ("hub.example",)}, None),  # noqa: S104 - never bound
        ("192.0.2.7", {"behind_proxy": True, "public_url": "https://hub.example"}, None),
    ],
)
def test_a_bind_beyond_loopback_needs_tls_or_a_proxy_and_names(
    host: str, settings: dict[str, object], missing: str | None
) -> None:
    if missing is None:
        check_bind(Address(host, 8080), Settings.model_validate(settings))
        return
    with pytest.raises(SettingsError) as refused:
        check_bind(Address(host, 8080), Settings.model_validate(settings))
    assert f"BODY_BROKER_{missing}" in f"{refused.value.message} {refused.value.next_step}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("127.0.0.1:8080", ("127.0.0.1", 8080)), (":0", ("127.0.0.1", 0)), ("[::1]:90", ("::1", 90))],
)
def test_an_address_is_read(text: str, expected: tuple[str, int]) -> None:
    assert Address.parse(text) == Address(*expected)


@pytest.mark.parametrize("text", ["8080", "host:", "host:http", "host:65536", "host:-1", "host:²"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="not HOST:PORT"):
        Address.parse(text)


async def test_with_tls_files_the_hub_speaks_tls_1_3(open_hub: OpenHub, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    trusting = ssl.create_default_context(cafile=str(certificate))

    async with open_hub(tls_certificate=str(certificate), tls_key=str(key)) as hub:
        assert hub.url.startswith("https://127.0.0.1:")
        async with (
            httpx2.AsyncClient(verify=trusting, timeout=60) as http,
            http.stream("GET", f"{hub.base}/healthz") as answer,
        ):
            spoken = answer.extensions["network_stream"].get_extra_info("ssl_object").version()
            assert (answer.status_code, spoken) == (200, "TLSv1.3")


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hub of the tests")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("https://Hub.Studio.example/", "https://hub.studio.example"),
        ("https://hub.example:443", "https://hub.example"),
        ("http://hub.example:80/", "http://hub.example"),
        ("https://hub.example:8443", "https://hub.example:8443"),
        ("http://[2001:DB8::1]:8080", "http://[2001:db8::1]:8080"),
    ],
)
def test_a_public_url_is_kept_as_browsers_write_an_origin(given: str, origin: str) -> None:
    assert load_settings({"BODY_BROKER_PUBLIC_URL": given}).public_url == origin


@pytest.mark.parametrize(
    "given",
    [
        *("hub.example", "ftp://hub.example", "https://", "https://hub.example/hub", "https://hub.example?a=1"),
        *(
            "https://hub.example/#x",
            "https://anna:secret@hub.example",
            "https://hub.example:99999",
            "https://hub .example",
        ),
    ],
)
def test_a_public_url_that_is_no_origin_is_refused(given: str) -> None:
    with pytest.raises(SettingsError, match="public_url"):
        load_settings({"BODY_BROKER_PUBLIC_URL": given})
