"""Files over HTTP: what was cut goes on where it stopped, what arrives is checked before it gets its name.

RFC 9110, section 14: a Range request is answered 206 with Content-Range, or 200 and the whole file by a server that
knows no ranges, or 416 when nothing is left.
"""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from splitcore.errors import DataError

TIMEOUT_S = 20.0
TRIES_WITHOUT_PROGRESS = 3
_CHUNK_BYTES = 1 << 16


def fetch(
    urls: Iterable[str],
    target: Path,
    *,
    max_bytes: int,
    check: Callable[[Path], None],
    progress: bool = True,
    pause_s: float = 0.5,
) -> None:
    """Downloads `target` from the first of `urls` that gives what `check` accepts. Raises DataError when none does.

    `check` reads a finished file and raises DataError. Until then the file is `<target>.part`; a later call resumes it.
    """
    part = target.with_name(target.name + ".part")
    reasons: list[str] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not progress) as bar:
        for url in urls:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                _persist(url, part, max_bytes, bar, pause_s)
            except (OSError, http.client.HTTPException) as error:
                reasons.append(f"{url}: {_reason(error)}")
                continue
            try:
                check(part)
            except DataError as error:
                part.unlink()
                reasons.append(f"{url}: {error}")
                continue
            part.replace(target)
            return
    raise DataError(f"expected {target}, it is not there and no mirror gave it ({'; '.join(reasons)}): put it there yourself")


def _persist(url: str, part: Path, max_bytes: int, bar: Progress, pause_s: float) -> None:
    """Asks again, from where it was cut, as long as more arrives."""
    task = bar.add_task(part.name.removesuffix(".part"), total=None)
    most = part.stat().st_size if part.exists() else 0
    idle = 0
    while True:
        try:
            _append(url, part, max_bytes, lambda done, total: bar.update(task, completed=done, total=total))
            return
        except (urllib.error.HTTPError, _RefusedError):
            raise  # an answer, not an accident
        except (OSError, http.client.HTTPException):
            size = part.stat().st_size if part.exists() else 0
            idle = 0 if size > most else idle + 1
            most = max(most, size)
            if idle >= TRIES_WITHOUT_PROGRESS:
                raise
            time.sleep(pause_s * 2**idle)


def _append(url: str, part: Path, max_bytes: int, report: Callable[[int, int | None], None]) -> None:
    """One request for what is missing. Raises OSError or HTTPException when it was cut."""
    if urlsplit(url).scheme not in {"http", "https"}:
        raise _RefusedError(f"expected an http or https address, got {url[:100]!r}")
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            return  # nothing is left; the checksum says whether it is the file
        raise
    with response, part.open("ab") as file:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            file.truncate(0)
            have = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise _RefusedError(f"asked for bytes {have}-, got {response.headers.get('Content-Range', '')[:60]!r}")
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() else None
        if (total or 0) > max_bytes:
            raise _RefusedError(f"expected at most {max_bytes} bytes, the server announces {total}")
        while chunk := response.read(_CHUNK_BYTES):
            have += len(chunk)
            if have > max_bytes:
                raise _RefusedError(f"expected at most {max_bytes} bytes, the server sends more")
            file.write(chunk)
            report(have, total)
    if total is not None and have < total:
        raise ConnectionError(f"cut after {have} of {total} bytes")


class _RefusedError(OSError):
    """The server answered, with something that asking again does not mend."""


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    return str(getattr(error, "reason", error)) or type(error).__name__
