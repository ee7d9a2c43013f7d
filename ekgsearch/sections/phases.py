"""Section of a job: the store in which runs share phases."""

from typing import Annotated

from pydantic import Field, field_validator

from ekgsearch.fields import Mark, Section, Text
from ekgsearch.storage.secrets import credentials_in


class PhasesSection(Section):
    """Phases that are computed once and used by every run that needs them."""

    uri: Annotated[Text | None, Mark.NO_RESULT, Mark.PATH] = Field(
        None,
        description="folder ($VARIABLES are expanded) or bucket (s3://, gs://) in which runs share what they compute: "
        "a phase that is there is copied, not computed; the memory bank lies there, too, unless bank.uri says "
        "otherwise. null: every run computes all of its phases",
    )

    @field_validator("uri")
    @classmethod
    def _no_credentials(cls, value: str | None) -> str | None:
        reason = credentials_in(value or "")
        if reason:
            raise ValueError(f"phases.uri: {reason}")
        return value
