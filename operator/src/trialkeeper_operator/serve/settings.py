"""What the chart tells the operator: one file, read once, wrong keys refused."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class ReportSettings(_Settings):
    """The report service: where pods reach it, and the folder with tls.crt, tls.key and ca.crt."""

    url: str = Field(pattern=r"^https://")
    tls_dir: Path


class StoreSettings(_Settings):
    """The chart's store. `sts`: it hands out keys for one prefix; otherwise every pod gets the store's own."""

    mode: Literal["embedded", "external", "none"] = "none"
    endpoint: str = ""
    bucket: str = ""
    region: str = "us-east-1"
    sts: bool = True
    credentials_dir: Path | None = None  # files access-key and secret-key; none: pods bring an identity of their own
    ca_file: str = ""


class Settings(_Settings):
    """All of it. `watchNamespaces` empty: every namespace."""

    watch_namespaces: list[str] = []
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    lease: str = "trialkeeper-leader"
    sweep_seconds: float = Field(default=300.0, gt=0)
    status_seconds: float = Field(default=30.0, ge=0)
    report: ReportSettings | None = None
    store: StoreSettings = StoreSettings()


class BadSettings(Exception):
    """Raised when the file cannot be used; the message says which key."""


def read(file: Path) -> Settings:
    """The settings in a YAML file.

    :raises BadSettings: if it cannot be read or has a key or a value that is not known.
    """
    try:
        return Settings.model_validate(yaml.safe_load(file.read_text()) or {})
    except OSError as missing:
        raise BadSettings(f"{file} cannot be read: {missing.strerror}") from missing
    except yaml.YAMLError as broken:
        raise BadSettings(f"{file} is not YAML: {broken}") from broken
    except ValidationError as wrong:
        first = wrong.errors()[0]
        raise BadSettings(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from wrong
