"""How a service runs: every setting, with the values that suit one machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from engine.signals.photo_cost import FORMATS

Positive = Annotated[int, Field(gt=0)]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `serve run serve.app:app key=value ...` and `python -m serve.main` take."""

    checkpoint: str = (
        ""  # addresses (see serve.models.registry), separated by commas, the first is the default; "" = newest run
    )
    library: str = ""  # folder of a reference library, used with every model; "" = that inside an exported model
    registry: str = ""  # MLflow's address, for checkpoints of models:/; "" = the runs' own
    device: str = "cpu"  # of the towers; with "cuda" each replica asks for one GPU
    threads: Positive = 1  # of torch and of the library's search; so many CPUs each replica asks for
    min_replicas: Positive = 1  # of the model
    max_replicas: Positive = 1  # above min_replicas: as many as `replica_load` asks for
    replica_load: Positive = 16  # requests in flight per replica that autoscaling aims at
    max_in_flight: Positive = 128  # requests at once, per replica, a tenth of a second of barcodes; the next gets a 503
    max_body_mib: Positive = 32  # of one request; four times as much of all requests in flight together
    max_batch: Positive = 64  # queries computed together
    max_queries: Positive = 256  # of one :batch request
    timeout_s: Annotated[float, Field(gt=0.0)] = 60.0  # after which a request that waits for the model gets a 503
    photo_formats: str = "JPEG,PNG,WebP,TIFF,BMP,GIF"  # that are decoded; the fewer, the less strangers can try
    max_per_minute: Annotated[int, Field(ge=0)] = 0  # requests of one address, beyond which it gets a 429; 0 = any
    client_header: str = ""  # in which a proxy of yours gives the client's address, e.g. x-forwarded-for
    allowed_hosts: str = ""  # further names that Host may have, separated by commas; not asked where there is a token
    token_file: str = ""  # file with a bearer token that every request must bring, except the page and /healthz


def read_settings(values: dict[str, Any]) -> Settings:
    """Return settings from `key=value` pairs. Raises ValueError naming unknown keys and values that are not allowed."""
    known = get_type_hints(Settings)
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"unknown setting {unknown[0]!r}; allowed: {', '.join(known)}")
    try:
        settings = TypeAdapter(Settings).validate_python(values)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}" for e in error.errors())
        raise ValueError(f"settings: {problems}") from None
    if unknown := sorted({name.strip().upper() for name in settings.photo_formats.split(",")} - set(FORMATS)):
        raise ValueError(f"photo_formats: got {unknown[0]!r}, allowed: {', '.join(FORMATS)}")
    if settings.max_replicas < settings.min_replicas:
        raise ValueError(f"max_replicas: got {settings.max_replicas}, allowed {settings.min_replicas} or more")
    return settings


def read_token(settings: Settings) -> str:
    """Return the token, "" = none is asked for. Raises ValueError for a file that cannot be read or holds none."""
    if not settings.token_file:
        return ""
    try:
        token = Path(settings.token_file).read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise ValueError(f"token_file: got {settings.token_file} ({error}), allowed: a readable ASCII file") from None
    if not token:
        raise ValueError(f"token_file: got {settings.token_file}, which is empty, allowed: a file with a token")
    return token
