"""What the phone is asked to do: one pass of samples over the link, and how far it is. The control API's schema."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from splitcore.artefact import NAME
from splitcore.codec import CodecConfig
from splitcore.data.source import ArtefactSource, SourceConfig
from splitcore.link import LinkInTime

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


class Fixed(_Strict):
    """Every frame goes through one cut."""

    kind: Literal["fixed"] = "fixed"
    artefact: Annotated[str, Field(pattern=NAME)] | None = None
    """name of one that the phone has prepared; None: its first"""


class Replan(_Strict):
    """Each frame goes through the first prepared cut that is about the fastest for the link as it is then."""

    kind: Literal["replan"] = "replan"
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """a cut may be slower than the fastest by this share of the fastest's time"""
    tolerance_ms: Annotated[float, Field(ge=0, le=60_000)] = 5.0
    """or by this; the larger counts"""
    in_a_row: Annotated[int, Field(ge=1, le=10_000)] = 3
    """answers in a row that must want the same other cut"""
    memory: Annotated[int, Field(ge=1, le=10_000)] = 8
    """frames, and round trips, from which the link and the edge's time are estimated"""
    ping_ms: Annotated[float, Field(ge=1, le=60_000)] = 250
    """the round trip is measured at most so often, when no frame is out"""


Policy: TypeAlias = Annotated[Fixed | Replan, Field(discriminator="kind")]


class Timing(_Strict):
    """The edge says in each reply how long it had the frame, and the phone looks at how long the way was (timing.py)."""

    baseline: Annotated[str, Field(pattern=RUN_PATTERN)] | None = None
    """a run of this phone, with timing, that shows what an honest way is like; None: this one's ways are only written down"""
    window: Annotated[int, Field(ge=1, le=10_000)] = 8
    """answers in a row that are judged together"""
    false_alarms: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """share of the baseline's own windows above the threshold"""


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
    link: LinkInTime | None = None
    """one that changes begins anew when the pass is resumed"""
    policy: Policy = Fixed()
    """which of the prepared cuts a frame goes through"""
    timing: Timing | None = None
    """None: nobody looks"""
    direct: bool = False
    """past whatever is between, to the address that the phone was started with as --direct"""
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    """of the arrivals and of the link"""


class PassStatus(_Strict):
    """How far a pass is. `done` counts frames that have their line."""

    run: str
    state: Literal["running", "done", "failed"]
    done: int
    count: int
    error: str | None = None
    alarms: int = 0
    """windows of frames whose way was longer than an honest one: somebody may hold them"""
