"""The phone's control API: post a pass, watch it, read its journals, tell the process to end. One pass at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException
from fastapi import Path as InPath
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from mobile_client.metrics import Counts
from mobile_client.passes import RUN_PATTERN, PassRequest, PassStatus
from mobile_client.phone import Phone
from mobile_client.record import ATTEMPTS, FRAMES, PLAN, PassRecord, read_request
from splitcore import journal
from splitcore.control import NDJSON, control_app, journal_response
from splitcore.errors import LatentbedError

_log = logging.getLogger(__name__)

Run = Annotated[str, InPath(pattern=RUN_PATTERN)]
_MALFORMED: dict[int | str, dict[str, Any]] = {400: {"description": "a body that is no JSON"}}
_REFUSALS: dict[int | str, dict[str, Any]] = _MALFORMED | {
    409: {"description": "another pass is running, or this run was another request before"},
}
_UNKNOWN: dict[int | str, dict[str, Any]] = {
    404: {"description": "no such run"},
    409: {"description": "the run's request is of another version"},
}
_ROWS: dict[int | str, dict[str, Any]] = NDJSON | _UNKNOWN


class Exit(BaseModel):
    """The exit code that the process ends with."""

    model_config = ConfigDict(extra="forbid")

    code: Annotated[int, Field(ge=0, le=125)] = 0


class Accepted(BaseModel):
    status: str = "ok"


@dataclass
class _Running:
    record: PassRecord
    task: asyncio.Task[None]


class Passes:
    """The passes of one phone, on disk under STATE/passes; at most one is running."""

    def __init__(self, phone: Phone, folder: Path, counts: Counts | None = None) -> None:
        self._phone, self._folder = phone, folder
        self._counts = counts
        self._now: _Running | None = None
        self._ended: dict[str, PassStatus] = {}
        """of this process, and what it has read of those before it"""

    def folder(self, run: str) -> Path:
        return self._folder / run

    def post(self, request: PassRequest) -> PassStatus:
        """Starts or resumes a pass. Raises HTTPException 409, ScenarioError."""
        if self._now is not None:
            if self._now.record.request == request:
                return self.status(request.run)
            raise HTTPException(409, f"run {self._now.record.request.run} is still going: wait for it to end")
        record = PassRecord(self.folder(request.run), request, self._counts)
        self._now = _Running(record, asyncio.create_task(self._run(record), name=f"pass {request.run}"))
        return self.status(request.run)

    async def _run(self, record: PassRecord) -> None:
        run = record.request.run
        error: str | None = "the pass was stopped: post it again to go on"
        try:
            await self._phone.run(record)
            error = None
        except (LatentbedError, OSError, ValueError) as failure:
            error = f"{type(failure).__name__}: {failure}"
        except Exception as fault:
            _log.exception("pass %s", run)
            error = f"{type(fault).__name__}: {fault}; this is a fault in the phone, see its log"
        finally:
            record.close()
            self._now = None
            self._ended[run] = _ended(record.request, len(record.done), error, record.alarms)

    def status(self, run: str) -> PassStatus:
        """Raises KeyError, ScenarioError."""
        if self._now is not None and self._now.record.request.run == run:
            record = self._now.record
            return PassStatus(run=run, state="running", done=len(record.done), count=record.request.count, alarms=record.alarms)
        if run not in self._ended:
            request = read_request(self.folder(run))
            if request is None:
                raise KeyError(run)
            lines = {row["sequence"]: bool(row.get("alarm")) for row in journal.read(self.folder(run) / FRAMES)}
            done = len(lines)
            error = None if done == request.count else "the phone was restarted: post the run again to go on"
            self._ended[run] = _ended(request, done, error, sum(lines.values()))
        return self._ended[run]

    @property
    def latest(self) -> PassStatus | None:
        """The pass that is running, or the last that ended here."""
        if self._now is not None:
            return self.status(self._now.record.request.run)
        return next(reversed(self._ended.values()), None)

    async def stop(self) -> None:
        """Ends what is running; its journals stay."""
        if self._now is not None:
            task = self._now.task
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _ended(request: PassRequest, done: int, error: str | None, alarms: int) -> PassStatus:
    state: Literal["done", "failed"] = "done" if error is None else "failed"
    return PassStatus(run=request.run, state=state, done=done, count=request.count, error=error, alarms=alarms)


def phone_app(passes: Passes, *, token: str, names: frozenset[str], end: Callable[[int], None]) -> FastAPI:
    """`end` is called with the exit code that /exit asks for."""
    app, with_token = control_app("latentbed mobile client", token=token, names=names)

    @app.get("/healthz")
    async def healthz() -> Accepted:
        """The process answers."""
        return Accepted()

    @app.post("/passes", status_code=202, dependencies=[with_token], responses=_REFUSALS)
    async def post(request: PassRequest) -> PassStatus:
        """Starts a pass, or goes on with one of the same name."""
        try:
            return passes.post(request)
        except LatentbedError as error:
            raise HTTPException(409, str(error)) from error

    @app.get("/passes/{run}", responses=_UNKNOWN)
    async def status(run: Run) -> PassStatus:
        """How far a pass is."""
        return known(run)

    @app.get("/passes/{run}/frames", response_class=StreamingResponse, responses=_ROWS)
    async def frames(run: Run) -> StreamingResponse:
        """One line a frame, as newline-delimited JSON."""
        known(run)
        return journal_response(passes.folder(run) / FRAMES)

    @app.get("/passes/{run}/attempts", response_class=StreamingResponse, responses=_ROWS)
    async def attempts(run: Run) -> StreamingResponse:
        """Every sending and what became of it, as newline-delimited JSON."""
        known(run)
        return journal_response(passes.folder(run) / ATTEMPTS)

    @app.get("/passes/{run}/plan", response_class=StreamingResponse, responses=_ROWS)
    async def plan(run: Run) -> StreamingResponse:
        """What each prepared cut costs, and every switch with its reason, as newline-delimited JSON; empty for a fixed cut."""
        known(run)
        return journal_response(passes.folder(run) / PLAN)

    @app.post("/exit", status_code=202, dependencies=[with_token], responses=_MALFORMED)
    async def leave(exit: Exit) -> Accepted:
        """The process ends in order, with this exit code."""
        end(exit.code)
        return Accepted()

    def known(run: str) -> PassStatus:
        try:
            return passes.status(run)
        except KeyError as error:
            raise HTTPException(404, f"no run {run!r} was posted to this phone") from error
        except LatentbedError as error:
            raise HTTPException(409, str(error)) from error

    return app
