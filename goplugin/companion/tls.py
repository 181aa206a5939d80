"""TLS without sockets: certificates, contexts, and a connection as bytes in and bytes out.

Mirrors AutoMTLS in go-plugin's mtls.go, client.go and server.go: host and plugin each make a certificate, and each
trusts only the other's. grpcio's own TLS (BoringSSL) cannot verify the host's P-521 key; Python's ssl can.
"""

import base64
import contextlib
import os
import ssl
from typing import Any, NamedTuple


class TLSFiles(NamedTuple):
    """The plugin's own certificate instead of AutoMTLS (go-plugin's TLSProvider): paths of PEM files.

    client_ca: the authority that signed the certificates of callers, and of the host's listeners that the broker dials.
    """

    certificate: str
    key: str
    client_ca: str


class Contexts(NamedTuple):
    """TLS contexts: server for callers, client for what we dial.

    peer: the only certificate, DER, that we accept when we dial; None if client_ca decides.
    server_cert: our certificate for the handshake line; "" if the host knows it already.
    """

    server: ssl.SSLContext
    client: ssl.SSLContext
    peer: bytes | None
    server_cert: str


class TLSError(Exception):
    """The other side must be refused. The text says why."""


class TLS:
    """One TLS connection: pass it what arrives, and send what output() returns.

    established: the handshake is over, and the other side's certificate is right.
    ended: the other side sends no more.
    """

    def __init__(self, contexts: Contexts, *, dials: bool) -> None:
        """dials: this side is the client, which speaks first."""
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        context, name = (contexts.client, "localhost") if dials else (contexts.server, None)
        self._tls = context.wrap_bio(self._in, self._out, not dials, name)
        self._peer = contexts.peer if dials else None
        self.established = self.ended = False
        self._early: list[bytes] = []  # to send once the connection is established
        if dials:
            with contextlib.suppress(ssl.SSLWantReadError):
                self._tls.do_handshake()

    def receive(self, data: bytes) -> bytes:
        """Take encrypted bytes, b"" for the end. Return the plain bytes of all complete TLS records.

        TLSError if the other side must be refused. Then send output() once more: it tells the other side why.
        """
        if data:
            self._in.write(data)
        else:
            self._in.write_eof()
        if not self.established:
            self._shake_hands(data)
            if not self.established:
                return b""
        parts = []
        try:
            while not self.ended and (self._in.pending or self._tls.pending() or self._in.eof):
                parts.append(self._tls.read(256 * 1024))
                self.ended = not parts[-1]
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self.ended = True
        return b"".join(parts)

    def _shake_hands(self, data: bytes) -> None:
        if not data:
            raise TLSError("it left during the TLS handshake")
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", "") or (error.reason or str(error)).lower().replace("_", " ")
            raise TLSError(reason) from error
        if self._peer not in (None, self._tls.getpeercert(True)):
            raise TLSError("its certificate is not the host's")
        self.established = True
        for early in self._early:
            self.send(early)

    def send(self, data: bytes) -> None:
        """Encrypt bytes for the other side. b"" tells it, once, that no more follows."""
        if not self.established:
            self._early.append(data)
            return
        if not data:
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()  # raises unless the other side has answered, which it need not do
        view = memoryview(data)
        while view:
            view = view[self._tls.write(view) :]

    def output(self) -> bytes:
        """Return, once, the encrypted bytes to send."""
        return self._out.read() if self._out.pending else b""


class NoTLS:
    """The same without TLS: for Unix sockets of the private hop, and for a multiplexing host without AutoMTLS."""

    established, ended, _out = True, False, b""

    def receive(self, data: bytes) -> bytes:
        """Return the bytes as they are."""
        self.ended = not data
        return data

    def send(self, data: bytes) -> None:
        """Keep the bytes for output()."""
        self._out += data

    def output(self) -> bytes:
        """Return, once, the bytes to send."""
        data, self._out = self._out, b""
        return data


def auto_mtls_contexts(client_cert: str, folder: str) -> Contexts:
    """Return contexts with a new certificate of ours, for the host whose certificate, PEM, is client_cert.

    folder: only our user can enter it; it holds the key while OpenSSL loads it. ValueError if client_cert is not a
    certificate, or the package cryptography is missing.
    """
    try:
        peer = ssl.PEM_cert_to_DER_cert(client_cert.strip())
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=peer)
    except (ValueError, ssl.SSLError) as error:
        raise ValueError(f"the host's PLUGIN_CLIENT_CERT is not a certificate in PEM: {error}") from error
    return contexts_for(peer, *make_certificate(), folder)


def contexts_for(peer: bytes, certificate: bytes, key: bytes, folder: str) -> Contexts:
    """Return contexts with this certificate and key, PEM, that trust only peer, DER. folder: as above."""
    path = os.path.join(folder, f"goplugin-{os.urandom(8).hex()}")
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode=0o600), "wb") as file:
            file.write(key + certificate)
        server, client = _contexts(path, path, cadata=peer)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
    client.check_hostname = True
    return Contexts(server, client, peer, for_handshake(certificate))


def file_contexts(files: TLSFiles) -> Contexts:
    """Return contexts with the plugin's own certificate. ValueError if a file is missing or invalid."""
    try:
        server, client = _contexts(files.certificate, files.key, cafile=files.client_ca)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"{files}: {error}") from error
    return Contexts(server, client, None, "")


def _contexts(certificate: str, key: str, **trusted: Any) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    for context in (server, client):
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        context.set_alpn_protocols(["h2"])
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(**trusted)
    # No resumption: each connection must show its certificate.
    server.num_tickets = 0
    server.options |= ssl.OP_NO_TICKET
    return server, client


def for_handshake(certificate: bytes) -> str:
    """Return a certificate, PEM, in the form of the handshake line: DER in base64 without padding."""
    return base64.b64encode(ssl.PEM_cert_to_DER_cert(certificate.decode())).decode().rstrip("=")


def make_certificate(curve: str = "SECP256R1") -> tuple[bytes, bytes]:
    """Return a self-signed certificate for localhost, as the host requires, and its key, both PEM."""
    import datetime

    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as error:
        raise ValueError(
            f"AutoMTLS needs the package cryptography: pip install -r requirements.txt ({error})"
        ) from None

    key = ec.generate_private_key(getattr(ec, curve)())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(seconds=30))
        .not_valid_after(now + datetime.timedelta(days=30 * 365))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        # The host trusts it as a root. No extended key usage: when the broker dials, it is a client's certificate.
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
