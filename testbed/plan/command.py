"""What `latentbed plan` does: prepare the candidates, measure them, predict for every link, check, write."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from splitcore.errors import ArtefactError, ScenarioError
from splitcore.link import PROFILES, LinkProfile
from splitcore.prepared import PREPARED, Prepared
from testbed.plan import plot, report
from testbed.plan.check import checks, wanted
from testbed.plan.here import device
from testbed.plan.live import NodeOptions
from testbed.plan.measure import Effort, Measurement
from testbed.plan.model import Candidate, Check, LinkPlan, Plan, Profile, load_plan
from testbed.plan.predict import plan_link, with_edge
from testbed.plan.probe import measured_link

_LINK: TypeAdapter[LinkProfile] = TypeAdapter(LinkProfile)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line says, but for what prepares the candidates."""

    links: tuple[str, ...]
    """names of profiles, or mappings as a scenario has them"""
    probe: str | None
    """host:port of a server through which a link is measured"""
    edge_profile: Path | None
    """the plan's JSON of the edge's own machine, where that is another one"""
    check: str
    check_frames: int
    out: Path
    """where plan.json, plan.md and plan.png are written, under `name`"""
    name: str
    command: str
    """that made them, for the record"""


def plan(
    asked: Asked, profile: Path | None, given: Sequence[str], work: Path, options: NodeOptions, effort: Effort, console: Console
) -> Plan:
    """`given` and more: what `python -m splitcore.nn.split.prepare` takes. Raises LatentbedError."""
    links = [(name, link_of(name)) for name in asked.links]  # refused before anything is measured
    if asked.check and asked.edge_profile is not None:
        raise ScenarioError("expected --check or --edge-profile: a check runs phone and edge on this machine")
    known = None if profile is None else load_plan(profile).profile
    if known is not None:
        # a check of what was measured runs as that did
        threads = known.device
        options = replace(options, phone_threads=threads.phone_threads, edge_threads=threads.edge_threads)
    other = None if asked.edge_profile is None else load_plan(asked.edge_profile).profile
    measured = known or _measured(given, work, options, effort, console)
    measured = measured if other is None else with_edge(measured, other)
    plans = [plan_link(measured.candidates, _named(name), link) for name, link in links]
    if asked.probe is not None:
        link = measured_link(asked.probe, measured.floor_ms)
        plans.append(plan_link(measured.candidates, asked.probe, link, measured=True))
    made = Plan(command=asked.command, profile=measured, links=tuple(plans))
    pairs = wanted(made, asked.check) if asked.check else []
    for over in made.links:
        _show(made, over, console)
    if pairs:
        made = made.model_copy(update={"checks": tuple(_checked(pairs, work, options, asked.check_frames, console))})
        console.print(report.checked(made))
    _write(made, asked, console)
    return made


def link_of(text: str) -> LinkProfile:
    """A name of PROFILES, or a mapping in YAML. Raises ScenarioError."""
    for name, profile in PROFILES.items():
        if text == name:
            return profile
    try:
        return _LINK.validate_python(yaml.safe_load(text))
    except (ValidationError, yaml.YAMLError) as error:
        raise ScenarioError(
            f"expected --link of {', '.join(PROFILES)}, or {{rate_up_kbps: ..., rate_down_kbps: ..., delay_ms: ...}}, got "
            f"{text!r}: {error}"
        ) from error


def _named(text: str) -> str:
    return text if text in PROFILES else "own"


def _measured(given: Sequence[str], work: Path, options: NodeOptions, effort: Effort, console: Console) -> Profile:
    # in a process of its own: the testbed itself needs no torch
    command = [sys.executable, "-m", "splitcore.nn.split.prepare", *given, "--work", str(work)]
    work.mkdir(parents=True, exist_ok=True)
    (work / PREPARED).unlink(missing_ok=True)
    if subprocess.run(command, check=False).returncode:
        raise ArtefactError(f"preparing {given[0] if given else 'nothing'} failed: see above")
    prepared = Prepared.model_validate_json((work / PREPARED).read_bytes())
    for note in prepared.notes:
        console.print(escape(note), soft_wrap=True)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    measurement = Measurement(prepared, work / "nodes", options, effort)
    if load > (os.cpu_count() or 1) / 2:
        console.print(f"[yellow]this machine is busy (load {load:.1f}): what is measured now is that of a busy machine[/]")
    candidates: list[Candidate] = []
    with _progress(console) as progress:
        task = progress.add_task("measure", total=len(measurement))
        for candidate in measurement.candidates():
            candidates.append(candidate)
            progress.update(task, completed=len(candidates), description=escape(candidate.name))
    return Profile(
        network=prepared.network, dataset=measurement.whole.manifest.dataset,
        measured_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", device=device(options, measurement.edge_device),
        load=load, notes=prepared.notes, floor_ms=measurement.floor_ms, candidates=tuple(candidates),
    )  # fmt: skip


def _checked(
    pairs: list[tuple[Candidate, LinkPlan]], work: Path, options: NodeOptions, frames: int, console: Console
) -> list[Check]:
    found: list[Check] = []
    with _progress(console) as progress:
        task = progress.add_task("check", total=len(pairs))
        for check in checks(pairs, work / "nodes", options, frames):
            found.append(check)
            progress.update(task, completed=len(found), description=escape(f"{check.candidate}, {check.link}"))
    return found


def _show(made: Plan, over: LinkPlan, console: Console) -> None:
    console.print(report.table(made, over))
    sent = "" if over.best == over.best_sent else f"; of those that send something and are served: {escape(over.best_sent)}"
    console.print(f"fastest: [bold]{escape(over.best)}[/]{sent}\n", soft_wrap=True)


def _write(made: Plan, asked: Asked, console: Console) -> None:
    asked.out.mkdir(parents=True, exist_ok=True)
    base = asked.out / asked.name
    base.with_suffix(".json").write_text(made.model_dump_json(indent=1) + "\n")
    base.with_suffix(".md").write_text(report.markdown(made))
    plot.write(made, base.with_suffix(".png"))
    console.print(f"[bold]{escape(str(base))}[/] .json, .md, .png", soft_wrap=True)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<24}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), console=console,
        transient=True,
    )  # fmt: skip
