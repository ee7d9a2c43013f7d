"""The base of job sections, the types of their fields, and the marks on them."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MOST = 2**31 - 1
"""Largest count of anything: what torch, Ray and parquet take in 32 bits."""

Share = Annotated[float, Field(gt=0, lt=1)]
Factor = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Positive = Annotated[int, Field(ge=1, le=MOST)]
Cost = Annotated[int, Field(ge=1, le=2**63 - 1)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""A seed that torch's generators and tensors of int64 take."""

Threads = Annotated[int, Field(ge=1, le=1024)]
Width = Annotated[int, Field(ge=1, le=65_536)]
Pixels = Annotated[int, Field(ge=1, le=4096)]
Seconds = Annotated[float, Field(ge=1, le=1_000_000)]
Amount = Annotated[float, Field(ge=1e-4, le=1024)]
"""Cores or GPUs of one worker; Ray counts in ten-thousandths."""

Text = Annotated[str, Field(min_length=1)]
"""A name or an address that is given; null, not an empty text, leaves it out."""


class Section(BaseModel):
    """A part of a job: frozen, and refusing keys it does not know and values of another kind."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)
