"""The base of all models: frozen, snake_case in Python, camelCase in YAML; and what every object has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Model(BaseModel):
    """A part of a spec: unknown fields are refused, since they are misspelt ones."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, alias_generator=to_camel, populate_by_name=True, allow_inf_nan=False
    )

    def to_object(self) -> dict[str, Any]:
        """As YAML has it, absent fields left out."""
        return self.model_dump(by_alias=True, exclude_none=True)


class StatusModel(Model):
    """A part of a status: ours alone, so what an older or newer version of us wrote is passed over."""

    model_config = ConfigDict(extra="ignore")


class Resource(BaseModel):
    """What every object of ours has beside spec and status. Metadata is kept raw."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    kind_name: ClassVar[str] = ""

    metadata: Mapping[str, Any]

    @classmethod
    def from_object(cls, raw: Mapping[str, Any]) -> Self:
        """Parse a raw object.

        :raises ValueError: if it does not fit the model.
        """
        return cls.model_validate(raw)

    @property
    def name(self) -> str:
        return str(self.metadata["name"])

    @property
    def namespace(self) -> str:
        return str(self.metadata.get("namespace", ""))

    @property
    def uid(self) -> str:
        return str(self.metadata.get("uid", ""))

    @property
    def generation(self) -> int:
        return int(self.metadata.get("generation", 0))

    @property
    def resource_version(self) -> str:
        return str(self.metadata.get("resourceVersion", ""))

    @property
    def created(self) -> str:
        return str(self.metadata.get("creationTimestamp", ""))

    @property
    def deleting(self) -> bool:
        return bool(self.metadata.get("deletionTimestamp"))
