"""The operator's settings file: read whole, or refused with the key that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from trialkeeper_operator.serve.replica import site
from trialkeeper_operator.serve.settings import BadSettings, read

FULL = """
watchNamespaces: [a, b]
logLevel: debug
report: {url: "https://r.sys.svc:8443", tlsDir: %s}
store: {mode: embedded, endpoint: "http://s.sys.svc:9000", bucket: trialkeeper, credentialsDir: /keys}
"""


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return file


def test_a_whole_file_and_what_pods_are_told_of_it(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("PEM")
    settings = read(written(tmp_path, FULL % tmp_path))
    assert settings.watch_namespaces == ["a", "b"]
    told = site(settings)
    assert told.store == "s3://trialkeeper?region=us-east-1&endpoint=http%3A%2F%2Fs.sys.svc%3A9000&credentials=report"
    assert (told.report, told.report_ca) == ("https://r.sys.svc:8443", "PEM")


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    settings = read(written(tmp_path, ""))
    assert (settings.watch_namespaces, settings.report, settings.store.mode) == ([], None, "none")
    assert site(settings).environment() == {"TRIALKEEPER_SCRATCH": "/trialkeeper"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("watchNamespace: [a]", "watchNamespace: Extra inputs are not permitted"),
        ("report: {url: 'http://x', tlsDir: /t}", "report.url"),
        ("store: {mode: local}", "store.mode"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_wrong_file_is_refused_with_its_key(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(BadSettings, match=words):
        read(written(tmp_path, text))


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="cannot be read: No such file"):
        read(tmp_path / "none.yaml")
