"""The shapes of requests and responses: what is accepted, and what the OpenAPI document promises.

Requests are strict: an unknown field and a value of another type are refused, with the place in the body.
"""

import base64
import binascii
import reprlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve.answers.answer import Query
from serve.answers.candidates import MAX_NAMES
from serve.answers.predictor import MAX_TOP, THRESHOLD, TOP, Options
from serve.answers.query import BARCODE, MAX_IMAGES, MAX_LETTERS, PHOTO
from serve.http.bodies import Part, Refused
from serve.http.evidence_bodies import ConsensusBody, NeighbourBody, Rank

RANKS: tuple[Rank, ...] = get_args(Rank)
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(max_length=200)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class QueryBody(_Strict):
    """One specimen: photos, a barcode, or both."""

    key: Name = Field("", description="your own name for it, given back")
    images: list[str] = Field([], max_length=MAX_IMAGES, description=f"base64 of the files; {PHOTO}")
    dna: Annotated[str, Field(max_length=MAX_LETTERS)] | None = Field(None, description=BARCODE)


class _Asking(_Strict):
    model: Name = Field("", description="NAME, NAME/VERSION or NAME@ALIAS of GET /v1/model; empty = the default")


class _Options(_Asking):
    threshold: Share = Field(THRESHOLD, description="the answer is the deepest rank whose probability reaches it")
    ranks: list[Rank] = Field([*RANKS], min_length=1, max_length=len(RANKS), description="to answer at")
    subset: Annotated[list[Name], Field(fail_fast=True)] | None = Field(
        None, min_length=1, max_length=MAX_NAMES, description="names of taxa, of any rank, among which to choose"
    )
    top: int = Field(TOP, ge=1, le=MAX_TOP, description="taxa told per rank")

    def options(self) -> Options:
        subset = None if self.subset is None else tuple(self.subset)
        return Options(threshold=self.threshold, ranks=tuple(self.ranks), subset=subset, top=self.top)


class IdentifyBody(QueryBody, _Options):
    """One specimen, and how to answer."""


class BatchBody(_Options):
    """Many specimens, answered alike."""

    queries: Annotated[list[QueryBody], Field(fail_fast=True)] = Field(min_length=1)


class EmbedBody(_Asking):
    """Specimens whose features are wanted."""

    queries: Annotated[list[QueryBody], Field(fail_fast=True)] = Field(min_length=1)


class ReloadBody(_Strict):
    """Nothing: every address is resolved anew."""


class ErrorDetail(BaseModel):
    what: str = Field(description="what was wrong, and what was got")
    allowed: str = Field(description="what would have been allowed")


class ErrorBody(BaseModel):
    """Why there is no answer."""

    error: ErrorDetail
    key: str | None = Field(None, description="of the query, where there is one")


class TaxonBody(BaseModel):
    name: str
    probability: Share = Field(description="calibrated where `calibrated` says so; consistent along the lineage")
    score: float = Field(description="the softmax's own probability")


class RankBody(BaseModel):
    rank: Rank
    name: str | None = Field(description="of the answered lineage; null = the model knows none there")
    probability: Share | None
    reached: bool = Field(description="at or above the threshold")
    taxa: list[TaxonBody] = Field(description="the most probable ones, best first")


class GivenBody(BaseModel):
    """The answer: the deepest rank at or above the threshold; all null = no answer."""

    rank: Rank | None
    name: str | None
    probability: Share | None


class TieBody(BaseModel):
    rank: Rank
    names: list[str]
    source: Literal["model", "library"]


class FlagBody(BaseModel):
    score: float | None
    flagged: bool | None = Field(description="null = the model was not calibrated for it")


class UnknownBody(BaseModel):
    rank: Rank
    within: str | None = Field(description="the answered taxon in which it would lie; null = outside of all known ones")
    probability: Share = Field(description="with the known taxa of this rank it adds up to the probability of `within`")


class BarcodeBody(BaseModel):
    """What the barcode looks like."""

    length: int
    strand: int = Field(description="that it was given on: 1 coding, -1 the other")
    frame: int
    stops: int
    n_share: float
    is_coi: bool | None = Field(description="null = too short to tell")
    usable: bool
    problems: list[str]
    primers: list[str] = Field(description="left on its ends")
    numt: bool | None = Field(description="likely a pseudogene or misread: its frame breaks; null = not to be judged")
    told: list[str] = Field(description="the problems as sentences")


class RestrictionBody(BaseModel):
    known: int
    unknown: dict[str, list[str]] = Field(description="names that are no taxa of the model -> suggestions")
    num_unknown: int


class LibraryCard(BaseModel):
    name: str
    version: int
    checksum: str
    records: int | None
    licence: str


class Card(BaseModel):
    """The model that answered."""

    name: str
    version: str
    step: int | None
    weights_sha256: str
    taxonomy_sha256: str
    calibration_sha256: str | None
    calibration_library: str | None = Field(description="with which probabilities of model and library were fitted")
    code_version: str
    licence: str
    library: LibraryCard | None


class ExpertBody(BaseModel):
    """What photo, barcode or library says by itself, and how much it counted."""

    expert: Literal["photo", "barcode", "library"]
    weight: float = Field(ge=0, description="of its log probabilities; 1 = taken at its word, 0 = it did not count")
    species: str | None = Field(description="most probable by this expert alone; null = it read or found nothing")
    probability: Share | None = Field(description="of that species, by this expert alone, not calibrated")


class AnswerBody(BaseModel):
    """The answer to one query."""

    key: str
    asked_with: Literal["image", "dna", "fused"]
    answer: GivenBody
    threshold: Share
    stopped: Literal["deepest", "threshold", "no_taxon", "not_coi"]
    why: str
    calibrated: bool
    ranks: list[RankBody]
    ties: list[TieBody]
    novelty: FlagBody
    unknown: list[UnknownBody] = Field(description="one a rank, coarse ones first; empty = not calibrated")
    disagreement: FlagBody | None
    barcode: BarcodeBody | None
    share: dict[str, float] = Field(description="how much photo, barcode and library counted")
    experts: list[ExpertBody] = Field(description="what the answer rests on; empty = not answered by a pool")
    consensus: ConsensusBody | None = Field(description="null = no library or no barcode")
    evidence: list[NeighbourBody]
    restriction: RestrictionBody | None
    model: Card


class AnswersBody(BaseModel):
    answers: list[AnswerBody | ErrorBody] = Field(description="in the order of the queries")


class EmbeddingBody(BaseModel):
    """Unit features; null where the query lacks what they are made of."""

    key: str
    image: list[float] | None
    dna: list[float] | None
    fused: list[float] | None


class EmbeddingsBody(BaseModel):
    model: str
    embeddings: list[EmbeddingBody | ErrorBody]


class TaxonEntry(BaseModel):
    rank: Rank
    name: str
    lineage: dict[str, str]


class TaxaBody(BaseModel):
    model: str
    total: int = Field(description="taxa that match, of which `taxa` are some")
    taxa: list[TaxonEntry]


class ServedModel(BaseModel):
    id: str = Field(description="NAME/VERSION")
    called: list[str] = Field(description="what requests may call it")


class Limits(BaseModel):
    max_body_bytes: int
    max_queries: int
    max_images: int
    max_letters: int
    max_in_flight: int


class ModelBody(BaseModel):
    """The models of this service; the card is the default's, or that of the one asked for."""

    card: Card
    models: list[ServedModel]
    limits: Limits


class ExampleBody(BaseModel):
    title: str
    told: str
    dna: str | None
    image: str | None = Field(description="base64 of a JPEG")


class ExamplesBody(BaseModel):
    examples: list[ExampleBody]


class ReloadedBody(BaseModel):
    loaded: list[str] = Field(description="versions that are new")
    models: list[ServedModel]


class HealthBody(BaseModel):
    status: Literal["ok"]
    model: str


Shape = TypeVar("Shape", bound=BaseModel)

_TEXTS = {"key", "dna", "threshold", "top", "model"}
_LISTS = {"ranks", "subset"}
_LIST_SEPARATORS = {"ranks": ",", "subset": "\n"}
FORM_FIELDS = (*sorted(_TEXTS), *sorted(_LISTS), "image")


def read_json(shape: type[Shape], body: bytes) -> Shape:
    """Return a JSON body as a shape. Raises Refused (422) naming the places that are wrong."""
    try:
        return shape.model_validate_json(body or b"null")
    except ValidationError as error:
        raise _refused(error) from None


def read_form_query(parts: Sequence[Part]) -> tuple[Query, IdentifyBody]:
    """Return the query in a form and its options. Raises Refused (422) naming the fields that are wrong.

    Fields: `image` (a file, repeated), `dna` (text or file), `key`, `model`, `threshold`, `top`, `ranks` (repeated or
    separated by commas), `subset` (repeated, or one name a line, also as a file).
    """
    given: dict[str, Any] = {}
    photos: list[bytes] = []
    for part in parts:
        if part.name == "image":
            photos.append(part.data)
        elif part.name in _LISTS:
            names = (name.strip() for name in part.text().split(_LIST_SEPARATORS[part.name]))
            given.setdefault(part.name, []).extend(name for name in names if name)
        elif part.name not in _TEXTS or part.name in given:
            twice = "repeated" if part.name in given else "unknown"
            raise Refused(422, f"form: got the {twice} field {part.name[:100]!r}", f"fields {', '.join(FORM_FIELDS)}")
        else:
            given[part.name] = part.text()
    for name, kind in (("threshold", float), ("top", int)):
        if name in given:
            try:
                given[name] = kind(given[name])
            except ValueError:
                raise Refused(422, f"{name}: got {given[name][:100]!r}", "a number") from None
    try:
        body = IdentifyBody.model_validate(given)
    except ValidationError as error:
        raise _refused(error) from None
    return Query(body.key, tuple(photos), body.dna), body


def query_of(body: QueryBody) -> Query:
    """Return the query that a JSON body describes. Raises Refused (422) for what is no base64."""
    try:
        photos = tuple(base64.b64decode(text.partition("base64,")[2] or text, validate=True) for text in body.images)
    except (binascii.Error, ValueError) as error:
        raise Refused(422, f"images: got text that is no base64 ({error})", PHOTO) from None
    return Query(body.key, photos, body.dna)


def _refused(error: ValidationError) -> Refused:
    problems = []
    for one in error.errors(include_url=False, include_context=False)[:5]:
        place = ".".join(str(part) for part in one["loc"])
        got = reprlib.repr(one["input"])  # cut before it is written out: it may be the whole body
        problems.append(f"{place or 'body'}: {one['msg']}, got {got[:80]}{'...' if len(got) > 80 else ''}")
    return Refused(422, "; ".join(problems), "a body as /openapi.json describes it")
