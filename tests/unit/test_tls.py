"""goplugin/companion/tls.py by plain calls, without sockets."""

import contextlib
import ssl
from pathlib import Path

import pytest
from certificates import certificate_in, make_certificate

from goplugin.companion.tls import TLS, Contexts, TLSError, auto_mtls_contexts


@pytest.fixture
def contexts(tmp_path: Path) -> Contexts:
    return auto_mtls_contexts(certificate_in(make_certificate(tmp_path, "host")), str(tmp_path))


class Host:
    """The host's end of TLS: Python's ssl with the host's certificate."""

    def __init__(self, tmp_path: Path, name: str = "host", *, serves: bool = False) -> None:
        self.into, self.out = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if serves else ssl.PROTOCOL_TLS_CLIENT)
        if not serves:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(tmp_path / f"{name}.pem")
        self.tls = context.wrap_bio(self.into, self.out, serves)

    def shake_hands(self, ours: TLS) -> None:
        for _ in range(4):
            self.into.write(ours.output())
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
            if data := self.out.read():
                ours.receive(data)
        self.into.write(ours.output())


@pytest.mark.parametrize("dials", [False, True])
def test_bytes_pass_both_ways(contexts: Contexts, tmp_path: Path, dials: bool) -> None:
    ours, host = TLS(contexts, dials=dials), Host(tmp_path, serves=dials)
    assert not ours.established
    host.shake_hands(ours)
    assert ours.established
    host.tls.write(b"to the plugin" * 10_000)
    host.tls.write(b"and more")
    data = host.out.read()
    received = b"".join(ours.receive(data[start : start + 1000]) for start in range(0, len(data), 1000))
    assert received == b"to the plugin" * 10_000 + b"and more"
    ours.send(b"to the host")
    host.into.write(ours.output())
    assert host.tls.read() == b"to the host"
    assert ours.output() == b""


def test_ends(contexts: Contexts, tmp_path: Path) -> None:
    ours, host = TLS(contexts, dials=False), Host(tmp_path)
    host.shake_hands(ours)
    ours.send(b"")
    host.into.write(ours.output())
    assert host.tls.read() == b""
    host.tls.write(b"still speaks")
    assert ours.receive(host.out.read()) == b"still speaks"
    assert not ours.ended
    ours.receive(b"")
    assert ours.ended


@pytest.mark.parametrize("name", ["stranger"])
@pytest.mark.parametrize("dials", [False, True])
def test_others_are_refused(contexts: Contexts, tmp_path: Path, name: str, dials: bool) -> None:
    make_certificate(tmp_path, name)
    ours, host = TLS(contexts, dials=dials), Host(tmp_path, name, serves=dials)
    with pytest.raises(TLSError, match="self.signed certificate"):
        host.shake_hands(ours)
    assert ours.output()  # the alert
    assert not ours.established


def test_what_is_not_tls(contexts: Contexts) -> None:
    with pytest.raises(TLSError, match="http request"):
        TLS(contexts, dials=False).receive(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(TLSError, match="left during the TLS handshake"):
        TLS(contexts, dials=False).receive(b"")
