"""What the phone is asked to do: one pass of samples over the link, and how far it is. The control API's schema."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from splitcore.codec import CodecConfig
from splitcore.data.source import ArtefactSource, SourceConfig
from splitcore.link import Link

RUN_PATTERN = r"^[A-Za-z0-9_:+-][A-Za-z0-9_.:+-]{0,95}$"
"""the first word of a frame id, and a folder's name: so it does not begin with a dot"""
MAX_COUNT = 1_000_000


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SingleStream(_Strict):
    """The next frame when the last is answered (MLPerf's single-stream)."""

    kind: Literal["single_stream"] = "single_stream"


class Server(_Strict):
    """Arrivals of a Poisson process, fixed beforehand and kept whether the phone is behind or not (MLPerf's server)."""

    kind: Literal["server"] = "server"
    rate_hz: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]


class Offline(_Strict):
    """All frames at once, as fast as the window lets them (MLPerf's offline)."""

    kind: Literal["offline"] = "offline"


Load: TypeAlias = Annotated[SingleStream | Server | Offline, Field(discriminator="kind")]


class PassRequest(_Strict):
    """One pass. The same run posted again goes on where it stopped."""

    run: Annotated[str, Field(pattern=RUN_PATTERN)]
    count: Annotated[int, Field(ge=1, le=MAX_COUNT)]
    source: SourceConfig = ArtefactSource()
    codec: CodecConfig | None = None
    """None: the artefact's"""
    load: Load = SingleStream()
    window: Annotated[int, Field(ge=1, le=4096)] = 16
    """frames in flight at most"""
    deadline_ms: Annotated[float, Field(gt=0, le=3_600_000)] | None = None
    """of a frame, from its scheduled arrival"""
    link: Link | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    """of the arrivals and of the link"""


class PassStatus(_Strict):
    """How far a pass is. `done` counts frames that have their line."""

    run: str
    state: Literal["running", "done", "failed"]
    done: int
    count: int
    error: str | None = None
