"""Bounded fields that several messages of a training have."""

from __future__ import annotations

from typing import Annotated

import msgspec

VERSION = 1
MAX_WORKERS = 1024
MAX_PARAMETERS = 2**28

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z0-9_-]{1,128}\Z")]
Text = Annotated[str, msgspec.Meta(max_length=400)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Number = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
Size = Annotated[int, msgspec.Meta(ge=1, le=MAX_PARAMETERS)]
