"""Pydantic payloads: ``class OrderPlaced(PydanticEvent, type=..., topic=..., key=...)``. Needs the extra `pydantic`."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from choreo.errors import ConfigurationError, did_you_mean
from choreo.events import MISSING, EventSpec, _Missing, event_spec

__all__ = ["PydanticEvent"]


class PydanticEvent(BaseModel):
    """An event whose payload pydantic validates. Class keywords as for Event; its key is checked by ``Service(...)``.

    NaN and the infinities are refused, for JSON has no way to write them.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    __event__: ClassVar[EventSpec]

    def __init_subclass__(
        cls,
        *,
        type: str | _Missing = MISSING,
        topic: str | _Missing = MISSING,
        key: str | _Missing | None = MISSING,
        version: int = 1,
        **options: Any,
    ) -> None:
        unknown = options.keys() - ConfigDict.__annotations__.keys()
        for option in unknown:
            raise ConfigurationError(
                f"event {cls.__name__}: unknown class keyword {option!r}{did_you_mean(option, ('type', 'topic', 'key', 'version'))}"
            )
        super().__init_subclass__(**options)
        spec = event_spec(cls.__name__, type=type, topic=topic, key=key, version=version, kind="pydantic")
        if spec is not None:
            cls.__event__ = spec

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Takes the keywords that pydantic passes on."""
