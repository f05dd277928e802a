"""Who is who in a cluster: certificates by openssl, good for as long as a test cluster may live."""

from __future__ import annotations

from pathlib import Path

from testbed.shell import run

DAYS = "30"
CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")


class Authority:
    """The cluster's own certificate authority, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def certificate(self) -> Path:
        return self.folder / "ca.crt"

    def make(self) -> None:
        """Make the authority, and the pair of keys that service accounts' tokens are signed with."""
        self.folder.mkdir(parents=True, mode=0o700)
        key, certificate = self.folder / "ca.key", self.certificate
        subject = ("-subj", "/CN=testbed", "-days", DAYS)
        run("openssl", "req", "-x509", *CURVE, "-nodes", "-keyout", key, "-out", certificate, *subject)
        private, public = self.folder / "tokens.key", self.folder / "tokens.pub"
        run("openssl", "genrsa", "-out", private, "2048")
        run("openssl", "rsa", "-in", private, "-pubout", "-out", public)

    def issue(self, name: str, user: str, *, group: str = "", hosts: tuple[str, ...] = ()) -> None:
        """Issue a certificate for a user of the API, or for a server of the given names and addresses."""
        extensions = ["-addext", "extendedKeyUsage=clientAuth,serverAuth", "-addext", "basicConstraints=CA:FALSE"]
        if hosts:
            kinds = [f"{'IP' if host.replace('.', '').isdigit() else 'DNS'}:{host}" for host in hosts]
            extensions += ["-addext", f"subjectAltName={','.join(kinds)}"]
        subject = ("-subj", f"/O={group}/CN={user}" if group else f"/CN={user}", "-days", DAYS)
        authority = ("-CA", self.certificate, "-CAkey", self.folder / "ca.key")
        pair = ("-nodes", "-keyout", self.key(name), "-out", self.file(name))
        run("openssl", "req", "-x509", *CURVE, *pair, *subject, *authority, *extensions)

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.crt"
