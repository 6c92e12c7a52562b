"""report.json, field by field. `docs/report.md` gives the definitions, `docs/report.schema.json` is written from here."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1


class Strict(BaseModel):
    # the docstring below a field is its description in the JSON schema
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Rate(Strict):
    """A share with its denominator and its Wilson 95 % interval; all null where the denominator is 0."""

    value: float | None
    low: float | None
    high: float | None
    count: int
    """numerator"""
    n: int
    """denominator"""


class Percentiles(Strict):
    """Of one stage of the latency, in ms; null, with the reason, where the clocks cannot show it."""

    p50: float | None
    p90: float | None
    p99: float | None
    n: int
    """frames measured"""
    hidden: str | None = None
    """why the figures are null"""


Stages = dict[str, Percentiles]


class Clean(Strict):
    """The pass without an attack through the scenario's codec, judged at the client."""

    accuracy: float | None
    """share of the answered frames with a known label that came back with it"""
    n: int
    """denominator of `accuracy`"""
    low: float | None
    high: float | None
    agreement_with_unsplit: float | None
    """identity pass through the identity codec: share of answered frames with the label that the unsplit model gives"""
    agreement_with_unsplit_rate: Rate | None
    agreement_through_codec: float | None
    """clean pass: share of answered frames with the label that the unsplit model gives"""
    agreement_through_codec_rate: Rate | None
    unsplit_accuracy: float | None
    """the unsplit model on the same frames as `accuracy`"""
    unsplit_accuracy_rate: Rate | None


class Queries(Strict):
    total: int
    """rows of all queries that were sent, lost ones included; a retry has the id of its first sending and counts once"""
    median_of_successes: float | None
    """queries up to the first success, median over the frames that came back wrong and were claimed"""
    by_phase: dict[str, int]
    """rows by what the attack asked them for"""


class FrameCounts(Strict):
    count: int
    """frames that the pass was to send"""
    answered: int
    errors: int
    """came back with an error, or were given up"""
    missing: int
    """have no line at the client"""
    late: int
    """came back after their deadline, judged at the client from the scheduled arrival"""
    held: int
    """frames with a session of the adversary"""
    forwarded: int
    """held frames that the adversary sent on"""
    success: int
    """sessions that claim a success"""
    reasons: dict[str, int]
    """why a session ended, and why a frame without a session was sent on"""


class AttackBytes(Strict):
    client_messages_per_frame: float | None
    """bytes of the messages that the client sent for a frame, retries included, mean"""
    forwarded_per_frame: float
    """payload bytes of the frame on its way to the server, mean over frames"""
    queries_per_frame: float
    """payload bytes of the adversary's queries, mean over frames"""
    queries_total: int


class Within(Strict):
    """How many held frames would have fallen within a budget and a hold, read off one pass in which both were larger.

    Derived, not measured: the other frames were held as long as they were, so the server was as busy as it was.
    """

    budgets: list[int]
    deadlines_ms: list[float]
    counts: list[list[int]]
    """[budget][deadline]: frames that came back wrong, their first success within both"""
    n: int
    """held frames that count, the denominator of `asr_held`"""


class Attack(Strict):
    """One attacked pass."""

    name: str
    """of the pass"""
    kind: str
    """of the attack"""
    baseline: bool
    """noise or record: what the other rows are to be compared with"""
    parameters: dict[str, Any]
    point: str | None
    """input (the image), latent (before the codec), or wire (what the tail decodes)"""
    norm: str | None
    eps: float | None
    eps_unit: str | None
    eps_absolute: float | None
    """the radius in the values of the point of attack"""
    feedback: str
    """scores, label or none"""
    budget: int | None
    """queries for one frame at most"""
    codec: str
    reference: str | None
    """the clean pass through the same codec that says which frames count"""
    asr: Rate
    """end to end, at the client: wrong labels over frames whose sample the reference pass got right"""
    asr_raw: Rate
    """wrong labels over all frames that the pass was to send"""
    asr_claimed: Rate
    """successes that the adversary's sessions claim, over the denominator of `asr`"""
    claimed_minus_measured: float | None
    """`asr_claimed` - `asr`"""
    asr_held: Rate
    """wrong labels over the frames of `asr` that the adversary held"""
    asr_in_time: Rate | None
    """wrong labels that came back within the frame's deadline, over the denominator of `asr`; null where frames have none"""
    accuracy: Rate
    """right labels over the answered frames of this pass"""
    curve: list[tuple[int, float]]
    """(queries, share of the denominator of `asr` that came back wrong after at most so many queries), a step function"""
    hold_deadline_ms: float | None
    """how long a frame may be held at most; null: as long as its own deadline allows, or without end"""
    share: float | None
    """of the frames that are attacked; the others pass"""
    hold_curve: list[tuple[float, float]]
    """(ms from a frame's arrival at the adversary, share of the denominator of `asr_held` that came back wrong and whose first
    success was there by then), a step function. Derived from this pass, as `within`"""
    hold_ms: Percentiles
    """from a held frame's arrival at the adversary to the end of its session, successful or not"""
    held_at_once: int | None
    """the most frames that were held at one moment, by the spans; null without them"""
    hold_to_success_ms: Percentiles
    """from a frame's arrival at the adversary to its first success, over the frames of `asr_held` that came back wrong"""
    within: Within | None
    """null where nothing was asked"""
    queries: Queries
    requests: int
    """RPCs of the adversary's own; one may carry many queries"""
    wall_s: float
    frames: FrameCounts
    distance: float | None
    """median distance of the successes from the original, in the norm and the values of the point of attack"""
    distance_sent: float | None
    """likewise, of all that was sent on in place of an original: for blind attacks also what turned nothing"""
    order: str | None
    latency_ms: Stages
    latency_held_ms: Stages | None
    """of the held frames alone; null where all were held, or none"""
    bytes: AttackBytes


class Delay(Strict):
    """Latency at the client, from its own log: scheduled arrival to answer, over answered frames."""

    total_ms: Percentiles
    late: Rate | None
    """answered after their deadline; null where frames have none"""


class ClientSide(Strict):
    """What a pass was to the client."""

    name: str
    """of the pass"""
    order: str | None
    """overtake: frames pass those that are held; keep: they wait behind them. Null without an attack"""
    hold_deadline_ms: float | None
    all: Delay
    held: Delay | None
    """frames that the adversary held; null where there are none, as `not_held`"""
    not_held: Delay | None


class HoldPoint(Strict):
    name: str
    """of the pass"""
    hold_deadline_ms: float | None
    asr_held: Rate
    asr_in_time: Rate | None


class HoldFamily(Strict):
    """Passes that differ in their hold deadline alone, by deadline: what was measured, beside the curve that was derived."""

    curve_of: str
    """the pass whose `hold_curve` is meant: that with the longest deadline"""
    points: list[HoldPoint]


class Latency(Strict):
    clean: Stages
    attacked: Stages
    """all attacked passes that hold frames, together"""


class BytesOnWire(Strict):
    """Means over frames. Payloads are what a codec wrote; messages are whole requests as they were serialised."""

    clean: float | None
    """payload bytes that go up to the server for a frame, clean pass; null where no ledger counts bytes"""
    attacked: float | None
    """payload bytes that go up to the server for a frame of the client's, queries included, passes that hold frames"""
    client_messages_clean: float | None
    """bytes of the messages that the client sent for a frame, retries included, clean pass"""
    client_messages_attacked: float | None


Against: TypeAlias = Literal["log", "counts", "client"]


class LedgerCounts(Strict):
    """The ledger against the server's log. Every count but `entries` and `server_entries` is in rows, one latent each."""

    rows: int
    """sent, by distinct (id, attempt): queries + forwarded + clean"""
    server_rows: int
    """in the server's log, by distinct (id, attempt)"""
    queries: int
    forwarded: int
    """frames on their way through an adversary that holds: held ones, and those that were let through at once"""
    clean: int
    """frames that passed an adversary which held none"""
    lost: int
    """rows of `rows` that got no answer; the server may have logged them or not"""
    entries: int
    """distinct (id, attempt) in the ledger"""
    server_entries: int
    unended: int
    """entries that were sent and have no end, because a process was killed; counted as lost"""
    against: Against = "log"
    """what it was checked against: the server's own log, row by row; before a foreign server the client's journal and the sums
    that the server counted (then `server_rows` and `server_entries` are these), or the client's journal alone"""
    agrees: bool


class Ledger(LedgerCounts):
    disagreements: list[str]
    """the first 20, in words"""
    disagreement_count: int
    passes: dict[str, LedgerCounts]

    @property
    def books(self) -> str:
        """What was compared, in words."""
        return {
            "log": "ledger and server log",
            "counts": "ledger and client's journal, and the foreign server's own counts",
            "client": "ledger and client's journal: one end alone, as the foreign server keeps neither log nor counts",
        }[self.against]


class Clocks(Strict):
    shared: bool
    """all nodes read one monotonic clock"""
    uncertainty_ms: float | None
    """of a time between client and edge; a one-way stage smaller than it is not given. Null: never compared"""
    nodes: dict[str, float | None]
    """uncertainty by node, ms"""


class Telemetry(Strict):
    frames: int
    """answered frames of all passes"""
    full: int
    """of these, with the spans of every node on the way"""
    dropped: dict[str, int | None]
    """spans that a node dropped; null: it never said"""
    passes: dict[str, Rate]


class PassSummary(Strict):
    name: str
    run: str
    kind: Literal["clean", "identity", "stream", "attack"]
    adversary: bool
    codec: str
    load: dict[str, Any]
    window: int | None
    link: str | dict[str, Any] | None
    deadline_ms: float | None
    wall_s: float
    device: str
    artefact_handshake: str
    count: int
    answered: int
    errors: int
    missing: int
    late: int
    accuracy: Rate


class OneCut(Strict):
    """The frames of a pass that went through one of the prepared cuts."""

    artefact: str
    codec: str
    frames: int
    accuracy: Rate
    """right labels over the answered frames"""
    total_ms: Percentiles
    """latency at the client, scheduled arrival to answer, over answered frames"""
    bytes_up: float | None
    """of the messages that the client sent for a frame, retries included, mean"""


class Switch(Strict):
    """From here on frames went through another cut."""

    at_s: float | None
    """after the arrival of the pass's first frame; null where that is not known"""
    before: str | None
    """null: the pass began"""
    to: str
    why: str
    rate_up_kbps: float | None
    """of the link, as the stream showed it"""
    round_trip_ms: float | None
    predicted_ms: dict[str, float]
    """time of a frame through each cut, by the link as it showed itself"""


class ByCut(Strict):
    """A pass by the cuts that its frames went through."""

    name: str
    """of the pass"""
    policy: str
    """fixed, or replan"""
    all: OneCut
    """all of its frames; `artefact` and `codec` are empty where they differ"""
    cuts: list[OneCut]
    """those that frames went through, in the order in which they were prepared"""
    switches: list[Switch]


class Detection(Strict):
    """What one detector of the edge made of one pass."""

    name: str
    """of the pass"""
    detector: str
    """its kind"""
    action: Literal["reject", "flag"]
    """reject: what it detected was not computed; flag: it was"""
    settings: dict[str, Any]
    attacked: bool
    """false: nobody asked anything, so what it detected were false alarms"""
    frames: Rate
    """of the phone's own frames that reached the edge, those that it detected; in a pass without an attack its false positive
    rate"""
    queries: Rate | None
    """of the adversary's queries, those that it detected; null where nothing was asked"""
    sessions: Rate | None
    """of the sessions that asked anything, those of which it detected a query"""
    first_detection: float | None
    """number of the first detected query of a session, from 1, median over the sessions of which it detected one"""
    first_detections: list[int]
    """all of them, ascending"""
    asr: Rate | None
    """of this pass, as in `attacks`"""
    without: str | None
    """the pass that is the same but for its detectors, which rejected nothing there"""
    asr_without: Rate | None
    """of that pass"""


class Auc(Strict):
    """The chance that a frame (window) of the one kind has a higher score than one of the other; Newcombe's 95 % interval."""

    value: float | None
    low: float | None
    high: float | None
    positives: int
    negatives: int


class Roc(Strict):
    auc: Auc
    points: list[tuple[float, float]]
    """(share of the honest ones above a threshold, share of these above it), from (0, 0) to (1, 1)"""


class TimingOf(Strict):
    """A pass by the time that its frames were away, against honest ones."""

    name: str
    """of the pass"""
    adversary: bool
    """false: it went past whatever was between"""
    way_ms: Percentiles
    """sent to answered, without the time at the edge"""
    held: Roc | None
    """frames that the adversary held; null where there are none, as `not_held`"""
    not_held: Roc | None
    windows: Roc | None
    """of all of its frames, in the order of their answers; null where they fill no window"""
    alarms: Rate | None
    """windows above the threshold"""


class TimingReport(Strict):
    """What the phone can tell of a man in the middle by timing alone."""

    baseline: str
    """the pass whose frames are honest: its first half teaches what their way is like, its second half are the negatives"""
    direct: bool
    """nobody was on the way in it; false: a relay that only passed frames on"""
    window: int
    """frames in a row that are judged together; windows share no frame"""
    false_alarms: float
    """share of the first half's windows above the threshold, as was wanted"""
    honest_alarms: Rate
    """share of the second half's windows above it, as it came"""
    fixed_ms: float
    """of an honest way"""
    per_byte_ms: float
    scatter_ms: float
    passes: list[TimingOf]


class GpuPath(Strict):
    commit: str
    device: str
    date: str


class ArtefactSummary(Strict):
    handshake: str
    """name@sha256 of the manifest, as the nodes agreed on"""
    manifest: dict[str, Any] | None
    """null where neither the artefact nor a copy of its manifest was at hand when the report was written"""


class Span(Strict):
    """A difference of medians with its bootstrapped 95 % interval."""

    value: float
    low: float
    high: float


class Price(Strict):
    """What protection costs: the same frames one by one, straight to the edge, over a protected and an unprotected path in
    turns."""

    frames: int
    """of each path"""
    plain_ms: float
    """median of a frame, arrival at the head to answer, without protection"""
    protected_ms: float
    added_us: Span
    """a frame"""
    added_bytes_up: float
    """a frame, on the wire as TCP carries it"""
    added_bytes_down: float
    connection_bytes: float
    """more that a new connection costs, both ways: handshakes and hellos"""
    first_answer_plain_ms: float
    """median, from nothing to the first answer on a new connection"""
    first_answer_protected_ms: float


class Refusals(Strict):
    """What of one pass came to nothing."""

    name: str
    """of the pass"""
    kind: str
    """query: the adversary's own; frame: the phone's, on its way"""
    rows: int
    refused: dict[str, int]
    """rows by status"""
    answered: int


class Probe(Strict):
    """One thing that the adversary tried."""

    way: str
    tries: int
    answered: int
    """of them: with a label, or with an answer that it cannot read"""
    refused: dict[str, int]
    """of them, by status"""
    why: str
    """an example of a refusal, as it was told"""


class SecurityReport(Strict):
    """What protected the frames, what it cost, and what it kept out."""

    level: str
    protects: str
    tokens: bool
    price: Price | None
    """null where it was not measured"""
    refusals: list[Refusals]
    """of passes with an adversary"""
    probes: list[Probe]


class Report(Strict):
    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    run: str
    """name of the run directory"""
    scenario: dict[str, Any]
    """as it was resolved"""
    versions: dict[str, Any]
    artefact: ArtefactSummary
    clean: Clean
    attacks: list[Attack]
    hold: list[HoldFamily]
    latency_ms: Latency
    client: list[ClientSide]
    """the clean pass, then the attacked ones"""
    bytes_on_wire: BytesOnWire
    ledger: Ledger
    clocks: Clocks
    telemetry: Telemetry
    passes: list[PassSummary]
    by_cut: list[ByCut]
    """the passes of a scenario with several prepared cuts, but attacked ones"""
    security: SecurityReport | None
    """null where the scenario has none"""
    detectors: list[Detection]
    """one a pass and detector; empty where the edge had none"""
    timing: TimingReport | None
    """null where the phone did not look at timing"""
    gpu_path: GpuPath | Literal["never"]
    """where the path through a GPU last ran"""
    notes: list[str]
    """what the run could not tell, and why"""
