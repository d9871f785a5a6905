"""The table ``[model]`` of federation.toml; the rules of `tables` hold here as well."""

import re
from typing import Annotated, Literal

from msgspec import Meta

from .tables import APP_PATTERN, MIB, Table

__all__ = ["Model"]

_SIZE = {"as": "size"}  # may be written "1 MiB"


class Model(Table, frozen=True):
    """Where version 0 comes from, and how versions travel."""

    initial: Annotated[
        str,
        Meta(
            min_length=1,
            description='A .safetensors file, an app "module:attribute", or "first-worker".',
        ),
    ] = "first-worker"
    max_bytes: Annotated[int, Meta(ge=1, extra=_SIZE, description="Largest model file that is accepted.")] = (
        4096 * MIB
    )
    downlink: Annotated[
        Literal["f32", "f16", "bf16"],
        Meta(description="What workers fetch: 4, 2 or 2 bytes a parameter."),
    ] = "f32"

    @property
    def source(self) -> Literal["first-worker", "app", "file"]:
        """Which of the three kinds of origin `initial` names."""
        if self.initial == "first-worker":
            return "first-worker"
        return "app" if re.fullmatch(APP_PATTERN, self.initial) else "file"
