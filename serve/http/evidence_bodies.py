"""The shapes of what an answer says of the references near a query."""

from typing import Literal

from pydantic import BaseModel, Field

Rank = Literal["order", "family", "genus", "species"]


class NeighbourBody(BaseModel):
    """A reference near the query."""

    key: str
    identity: float
    overlap: int
    name: str | None
    rank: Rank | None
    bin: str | None
    country: str | None
    specimens: int


class ConsensusBody(BaseModel):
    """What all references within a distance of the query have in common."""

    within: float = Field(description="share of aligned nucleotides that may differ")
    name: str | None = Field(description="the lowest common ancestor; null = none, or nothing is so near")
    rank: Rank | None
    references: int
    species: int
    names: dict[str, int] = Field(description="species -> references, the commonest first")
    conflict: bool = Field(description="these references disagree at some rank")
