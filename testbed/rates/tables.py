"""Curves as Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from testbed.rates.config import Rates
from testbed.rates.measure import Row
from testbed.report.format import interval, share
from testbed.report.model import Rate
from testbed.versions import versions

HOW = """\
Every row is a pass of all images from a phone to an edge server, both processes of their own: the head in ONNX Runtime, the
codec, gRPC, the tail. **Bytes** are those of a request as it was sent, mean over the frames, [least, most]; {envelope} of
them are the envelope that every frame has whatever its payload (ids, names, shapes). **Top-1** is of the labels that came
back, [Wilson 95 % interval], of {n:,} images."""


def write(rates: Rates, curves: dict[str, list[Row]], out: Path, command: str) -> None:
    """`<name>.md` and `<name>.json` in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    head = {"schema_version": 1, "rates": rates.model_dump(mode="json"), "versions": versions()}
    lines = ",\n".join(json.dumps({"curve": title, **row}) for title, rows in curves.items() for row in rows)
    (out / f"{rates.name}.json").write_text(json.dumps(head)[:-1] + f',\n"rows": [\n{lines}\n]}}\n')
    (out / f"{rates.name}.md").write_text(markdown(rates, curves, command))


def markdown(rates: Rates, curves: dict[str, list[Row]], command: str) -> str:
    every = [row for rows in curves.values() for row in rows]
    envelopes = sorted({row["envelope_bytes"] for row in every})
    envelope = f"{envelopes[0]}" if len(envelopes) == 1 else f"{envelopes[0]} to {envelopes[-1]}"
    parts = [
        f"# {rates.title or rates.name}\n", f"Made by `{command}`.\n",
        HOW.format(envelope=envelope, n=max(row["n"] for row in every)) + "\n", f"![Top-1 over bytes]({rates.name}.png)\n",
    ]  # fmt: skip
    for title, rows in curves.items():
        parts.append(f"## {title}\n\n{_table(rows)}\n")
    return "\n".join(parts)


def _table(rows: Sequence[Row]) -> str:
    lines = ["| artefact | codec | bytes | top-1 |", "|---|---|---:|---:|"]
    for row in rows:
        size, right = row["bytes"], Rate(**row["accuracy"])
        spread = "" if size["least"] == size["most"] else f" [{size['least']:,.0f}, {size['most']:,.0f}]"
        said = f"{share(right.value)} {interval(right)}"
        lines.append(f"| {row['artefact']} | `{row['codec']}` | {size['mean']:,.0f}{spread} | {said} |")
    return "\n".join(lines)
