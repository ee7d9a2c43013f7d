"""Section of a job: the memory bank."""

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, field_validator

from ekgsearch.fields import Mark, Positive, Section, Text
from ekgsearch.storage.secrets import credentials_in

Beta = Annotated[float, Field(gt=0, le=1)]


class BankSection(Section):
    """The memory bank of the teachers' outputs."""

    teachers: Positive = Field(5, description="K, number of interim sub-networks kept as teachers")
    betas: tuple[Beta, ...] | None = Field(
        None,
        min_length=2,
        description="for search.method epruner, which leaves no interim sub-networks: the teachers are its networks at "
        "these values of beta, two or more",
    )
    uri: Annotated[Text | None, Mark.NO_RESULT, Mark.PATH] = Field(
        None,
        description="folder ($VARIABLES are expanded) or object storage of the bank; null: inside the run directory",
    )
    dtype: Literal["float16", "float32", "int8"] = Field(
        "float16",
        description="how the outputs are stored; int8: with a scale for each image and teacher, which nearly halves "
        "float16 at 1000 classes and saves 8 % at 10",
    )
    embeddings: bool = Field(
        False,
        description="store the teachers' embeddings also for objectives that do without them, so that runs of every "
        "objective can share one bank; contrastive and byol store them anyway",
    )
    batch_size: Positive = Field(256, description="images of one batch (batch statistics)")
    cache: Annotated[Text | None, Mark.NO_RESULT, Mark.PATH] = Field(
        None,
        description="folder on the disk of each machine for its copy of the bank; null: inside the run directory. "
        "$VARIABLES are expanded",
    )
    resident: Annotated[bool, Mark.NO_RESULT] = Field(
        False,
        description="hold the bank in the memory of a GPU if half of what is free there suffices; no effect on CPUs",
    )

    def contradictions(self, own_beta: float | None) -> Iterator[str]:
        """Fields that do not go together, one line each.

        Args:
            own_beta: the beta of the student, where it is known.
        """
        betas = self.betas or ()
        if len(set(betas)) < len(betas):
            yield f"bank.betas = {list(betas)}: each value is one teacher; name it once"
        if own_beta in betas:
            yield f"bank.betas = {list(betas)}: search.beta = {own_beta} is the student, who is no teacher"

    @field_validator("uri")
    @classmethod
    def _no_credentials(cls, value: str | None) -> str | None:
        reason = credentials_in(value or "")
        if reason:
            raise ValueError(f"bank.uri: {reason}")
        return value

    @field_validator("dtype", mode="before")
    @classmethod
    def _whole_rows(cls, value: object) -> object:
        if isinstance(value, str) and re.match(r"top", value, re.IGNORECASE):
            raise ValueError(
                f"bank.dtype = {value!r}: storing only the largest logits is not offered, since at temperature 10 "
                "the ten largest of 1000 hold only about 4 % of the mass; use float16, or int8, which is smaller"
            )
        return value
