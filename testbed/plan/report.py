"""A plan as a table, on the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from testbed.plan.model import Candidate, Check, LinkPlan, Plan, Prediction
from testbed.report.format import number, share, size

COLUMNS = (
    "candidate", "sends", "bytes up", "head", "encode", "link", "decode", "tail", "rest", "p50", "p90", "p99", "frames/s",
    "slowest", "accuracy", "as whole",
)  # fmt: skip
TEXT = ("candidate", "sends", "slowest", "over")


def table(plan: Plan, over: LinkPlan) -> Table:
    """All candidates over one link; the fastest bold."""
    drawn = Table(
        title=f"{plan.profile.network} over {described(over)}; times in ms", box=None, header_style="bold", pad_edge=False
    )
    for column in COLUMNS:
        drawn.add_column(column, justify="left" if column in TEXT else "right", overflow="fold")
    for candidate, prediction in rows(plan, over):
        cells = _cells(candidate, prediction)
        drawn.add_row(*cells, style="bold" if candidate.name == over.best else None)
    return drawn


def checked(plan: Plan) -> Table:
    """What was predicted beside what was measured."""
    drawn = Table(title="predicted and measured over the shaped link, ms", box=None, header_style="bold", pad_edge=False)
    for column in CHECKED:
        drawn.add_column(column, justify="left" if column in TEXT else "right", overflow="fold")
    for check in plan.checks:
        drawn.add_row(*_checked(check))
    return drawn


CHECKED = ("candidate", "over", "predicted p50", "measured p50", "ratio", "predicted p90", "measured p90", "frames")


def markdown(plan: Plan) -> str:
    """The whole plan, as a document."""
    device = plan.profile.device
    said = [
        f"# Where to cut {plan.profile.network}", "", f"`{plan.command}`", "",
        f"Measured {plan.profile.measured_at} on {device.cpu}, {device.cores} cores, ONNX Runtime {device.onnxruntime}; phone "
        f"with {device.phone_threads} thread{'s' * (device.phone_threads > 1)}, edge on {device.edge_device}, on one machine, "
        f"its load before {number(plan.profile.load, 2)}. "
        f"Data set {plan.profile.dataset}. [docs/plan.md](../plan.md) says what the columns mean.",
        *(f"\n{note}" for note in plan.profile.notes), "",
    ]  # fmt: skip
    for over in plan.links:
        said += [f"## Over {described(over)}", ""]
        said += _piped(COLUMNS, [_cells(*row, mark=over.best) for row in rows(plan, over)])
        said += ["", f"Fastest: **{over.best}**; of those that send something and are served: **{over.best_sent}**.", ""]
    if plan.checks:
        said += ["## Predicted and measured", "", "A real phone and edge over the shaped link, one frame in flight; ms.", ""]
        said += [*_piped(CHECKED, [_checked(check) for check in plan.checks]), ""]
    return "\n".join(said)


def rows(plan: Plan, over: LinkPlan) -> Iterator[tuple[Candidate, Prediction]]:
    yield from zip(plan.profile.candidates, over.predictions, strict=True)


def described(over: LinkPlan) -> str:
    """A link in words."""
    link = over.link
    text = (
        f"{over.name}: {number(link.rate_up_kbps / 1000)} Mbit/s up, {number(link.rate_down_kbps / 1000)} down, "
        f"{number(link.delay_ms)} ms each way"
    )
    if link.jitter_ms:
        text += f", jitter {number(link.jitter_ms)} ms"
    if link.loss:
        text += f", loss {number(100 * link.loss)} %"
    return text + (" (measured)" if over.source == "measured" else "")


def _cells(candidate: Candidate, prediction: Prediction, mark: str = "") -> list[str]:
    stages, total, accuracy = candidate.stages_ms, prediction.total_ms, candidate.accuracy
    name = f"**{candidate.name}**" if candidate.name == mark else candidate.name
    sends = "nothing" if candidate.kind == "phone" else f"{'x'.join(map(str, candidate.latent))} {candidate.codec}"
    crossing = prediction.up_ms + prediction.down_ms
    return [
        name, sends, size(candidate.up_bytes), number(stages.head.p50), number(stages.encode.p50), number(crossing),
        number(stages.decode.p50), number(stages.tail.p50), number(stages.rest.p50), number(total.p50), number(total.p90),
        number(total.p99), number(prediction.frames_per_s), prediction.slowest,
        "–" if accuracy is None else share(accuracy.value), "–" if accuracy is None else share(accuracy.agreement),
    ]  # fmt: skip


def _checked(check: Check) -> list[str]:
    return [
        check.candidate, check.link, number(check.predicted_ms.p50), number(check.measured_ms.p50), f"{check.ratio:.3f}",
        number(check.predicted_ms.p90), number(check.measured_ms.p90), str(check.frames),
    ]  # fmt: skip


def _piped(columns: tuple[str, ...], cells: list[list[str]]) -> list[str]:
    rule = ["---" if column in TEXT else "--:" for column in columns]
    return [f"| {' | '.join(line)} |" for line in (list(columns), rule, *cells)]
