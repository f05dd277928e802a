"""Access to the API: kubeconfig files, and a client of a few lines for what the testbed itself has to ask."""

from __future__ import annotations

import base64
import json
import ssl
import urllib.request
from pathlib import Path
from typing import Any

from testbed.certificates import Authority

TIMEOUT = 10


def kubeconfig(path: Path, server: str, authority: Authority, name: str) -> None:
    """Write the file by which the owner of a certificate reaches the API. It is JSON, which is YAML, too."""

    def data(file: Path) -> str:
        return base64.b64encode(file.read_bytes()).decode()

    user = {"client-certificate-data": data(authority.file(name)), "client-key-data": data(authority.key(name))}
    cluster = {"server": server, "certificate-authority-data": data(authority.certificate)}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "testbed", "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": "testbed", "context": {"cluster": "testbed", "user": name}}],
        "current-context": "testbed",
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(document, indent=1))


class Api:
    """Plain requests to an API server; errors are those of urllib, all of them OSErrors."""

    def __init__(self, server: str, authority: Authority, name: str) -> None:
        self.server = server
        context = ssl.create_default_context(cafile=str(authority.certificate))
        context.load_cert_chain(authority.file(name), authority.key(name))
        handlers = urllib.request.HTTPSHandler(context=context), urllib.request.ProxyHandler({})
        self._opener = urllib.request.build_opener(*handlers)

    def request(self, method: str, path: str, body: object = None) -> Any:
        """Send one request; the decoded answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        request = urllib.request.Request(self.server + path, data, headers, method=method)
        with self._opener.open(request, timeout=TIMEOUT) as answer:
            return json.load(answer)

    def get(self, path: str) -> Any:
        return self.request("GET", path)

    def items(self, path: str) -> list[dict[str, Any]]:
        """The objects of a list."""
        return list(self.get(path)["items"])

    def ready(self) -> bool:
        """Whether the API server is up and says so."""
        try:
            with self._opener.open(f"{self.server}/readyz", timeout=TIMEOUT) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def wait_for_change(self, path: str, version: str, seconds: int) -> None:
        """Wait until something below `path` is newer than `version`, `seconds` at most."""
        url = f"{self.server}{path}?watch=1&resourceVersion={version}&timeoutSeconds={seconds}"
        with self._opener.open(url, timeout=seconds + TIMEOUT) as answer:
            answer.readline()
