"""Append-only tables of JSON lines that survive the process: one write call a batch, nothing kept in user space."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

Row = dict[str, Any]


class Journal:
    """An append-only file of JSON lines, for one process at a time; two lose nothing either while the disk has room.

    After SIGKILL every appended row is still there; the one that was being written may be torn.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        size = os.fstat(self._fd).st_size
        # an earlier process was killed in mid-line: close the torn row before the next one, readers skip it
        self._torn = size > 0 and os.pread(self._fd, 1, size - 1) != b"\n"

    def append(self, *rows: Row) -> None:
        """All rows or, on a full disk, OSError: then the first of them may be there, and the rest is not.

        A short write is never passed over, and the torn row that it leaves does not spoil the next one.
        """
        if not rows:
            return
        option = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
        lines = [orjson.dumps(row, option=option) for row in rows]
        data = b"".join([b"\n", *lines] if self._torn else lines)
        while data:
            written = os.write(self._fd, data)
            self._torn = data[written - 1] != 0x0A if written else self._torn
            data = data[written:]

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read(path: Path) -> Iterator[Row]:
    """The rows of a journal, in order; a torn row is passed over. Nothing where there is no file."""
    if not path.exists():
        return
    with path.open("rb") as file:
        yield from rows_of(file)


def rows_of(lines: Iterable[bytes]) -> Iterator[Row]:
    """Rows from raw lines; one that is no JSON object is passed over: a process was killed while writing it."""
    for line in lines:
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(row, dict):
            yield row
