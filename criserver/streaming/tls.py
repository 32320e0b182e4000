"""The streaming server's certificate: the given one, read again when it changes, or one of our own.

A certificate of our own is made by openssl(1) at each start, since the standard library makes none;
the kubelet does not check it, it keeps others on the machine from listening in.
"""

from __future__ import annotations

import logging
import os
import ssl
from pathlib import Path

from criserver.config import ConfigError, StreamingConfig
from runtimeshim.client import ProgramTimeoutError, Spawner, SpawnerError

log = logging.getLogger(__name__)

OPENSSL = "/usr/bin/openssl"
OPENSSL_SECONDS = 30.0
DAYS = 3650  # longer than a daemon runs


class Certificate:
    """A certificate and its key in two PEM files; `context` is for the server's socket."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._paths = (certificate, key)
        self._seen = self._stamp()
        self._current = self._load()
        self.context = self._load()
        # Called at each handshake, with or without a server name.
        self.context.sni_callback = self._choose

    def _load(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])  # neither upgrade exists in HTTP/2
        context.load_cert_chain(*self._paths)
        return context

    def _stamp(self) -> list[tuple[int, int, int]]:
        files = [os.stat(path) for path in self._paths]
        return [(file.st_ino, file.st_mtime_ns, file.st_size) for file in files]

    def _choose(
        self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _: ssl.SSLContext
    ) -> None:
        try:
            stamp = self._stamp()
            if stamp != self._seen:
                self._current = self._load()
                self._seen = stamp
                log.info("read the streaming server's certificate %s anew", self._paths[0])
        except OSError as err:  # ssl.SSLError is one: certificate and key are replaced one by one
            log.warning("keeping the streaming server's former certificate: %s", err)
        connection.context = self._current


async def certificate(settings: StreamingConfig, run_dir: Path, spawner: Spawner) -> Certificate:
    """Return the certificate that the settings ask for. Raises ConfigError."""
    if settings.tls_cert_file:
        paths = Path(settings.tls_cert_file), Path(settings.tls_key_file)
    else:
        paths = run_dir / "streaming.crt", run_dir / "streaming.key"
        await _make(*paths, settings.address, spawner)
    try:
        return Certificate(*paths)
    except OSError as err:
        raise ConfigError("streaming", f"{paths[0]} and {paths[1]} cannot be used: {err}") from err


async def _make(path: Path, key: Path, address: str, spawner: Spawner) -> None:
    subject = f"subjectAltName=IP:{address},IP:127.0.0.1,IP:::1,DNS:localhost"
    key.unlink(missing_ok=True)
    os.close(os.open(key, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    command = [
        OPENSSL, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-batch", "-subj", "/CN=criserver", "-addext", subject, "-days", str(DAYS),
        "-out", str(path), "-keyout", str(key),
    ]  # fmt: skip
    try:
        result = await spawner.run_program(command, env={}, timeout=OPENSSL_SECONDS)
    except (SpawnerError, ProgramTimeoutError) as err:
        raise ConfigError("streaming", f"no certificate of our own can be made: {err}") from err
    if result.exit_code:
        said = result.stderr.decode(errors="replace").strip()
        raise ConfigError("streaming", f"openssl makes no certificate: {said}")
