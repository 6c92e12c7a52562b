"""Journals against what kills them: SIGKILL, two writers, a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from splitcore.journal import Journal, read

LOOP = """
import sys
from pathlib import Path
from splitcore.journal import Journal
journal, who = Journal(Path(sys.argv[1])), sys.argv[2]
print("go", flush=True)
for i in range(int(sys.argv[3])):
    journal.append(*({"who": who, "i": 3 * i + j, "filling": who * (i % 700)} for j in range(3)))
"""


def appending(path: Path, who: str, batches: int) -> subprocess.Popen[bytes]:
    """A process that appends batches of three rows."""
    return subprocess.Popen([sys.executable, "-c", LOOP, path, who, str(batches)], stdout=subprocess.PIPE)


def test_every_appended_row_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.jsonl"
    with appending(path, "a", 10_000_000) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"go\n"
        while not path.exists() or path.stat().st_size < 500_000:
            assert writer.poll() is None
        writer.send_signal(signal.SIGKILL)
    whole = path.read_bytes().count(b"\n")
    rows = [row["i"] for row in read(path)]
    assert rows == list(range(len(rows))) and len(rows) >= whole > 100


def test_a_torn_last_row_is_passed_over_and_closed_by_the_next_writer(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"i":0}\n{"i":1,"te')
    assert list(read(path)) == [{"i": 0}]
    with Journal(path) as journal:
        journal.append({"i": 2})
        journal.append({"i": 3})
    assert list(read(path)) == [{"i": 0}, {"i": 2}, {"i": 3}]
    assert path.read_bytes() == b'{"i":0}\n{"i":1,"te\n{"i":2}\n{"i":3}\n'


def test_a_row_that_lacks_only_its_end_of_line_counts(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"i":0}')
    with Journal(path) as journal:
        journal.append({"i": 1})
    assert list(read(path)) == [{"i": 0}, {"i": 1}]


def test_lines_that_are_no_objects_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\n[1]\n3\nnull\n"x"\n\xff\xfe\n\0\0\0\0{"i":9}\n{"i":1}\n\n' + b"[" * 5000 + b'\n{"i":2}\n')
    assert list(read(path)) == [{"i": 1}, {"i": 2}]
    assert list(read(tmp_path / "absent")) == []


def test_rows_of_two_processes_do_not_interleave(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with appending(path, "a", 1500) as one, appending(path, "b", 1500) as other:
        assert one.wait() == other.wait() == 0
    lines = path.read_bytes().splitlines()
    rows = list(read(path))
    assert len(rows) == len(lines) == 2 * 4500
    for who in "ab":
        assert [row["i"] for row in rows if row["who"] == who] == list(range(4500))
    # the three rows of one call stand together
    assert all(rows[i]["i"] + 1 == rows[i + 1]["i"] for i in range(len(rows) - 1) if rows[i]["i"] % 3 < 2)


def test_numbers_of_numpy_are_written_as_numbers(tmp_path: Path) -> None:
    with Journal(tmp_path / "rows.jsonl") as journal:
        journal.append({"a": np.int64(3), "b": np.float32(0.5), "c": np.arange(2)})
        journal.append()
    assert list(read(tmp_path / "rows.jsonl")) == [{"a": 3, "b": 0.5, "c": [0, 1]}]


def test_a_row_that_cannot_be_written_leaves_no_part_of_its_batch(tmp_path: Path) -> None:
    with Journal(tmp_path / "rows.jsonl") as journal:
        with pytest.raises(TypeError):
            journal.append({"i": 0}, {"i": object()})
        journal.append({"i": 1})
    assert list(read(tmp_path / "rows.jsonl")) == [{"i": 1}]


def test_a_closed_journal_takes_no_rows(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "rows.jsonl")
    journal.close()
    journal.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        journal.append({"i": 0})


FULL = """
import resource, sys
from pathlib import Path
from splitcore.journal import Journal, read
path, limited = Path(sys.argv[1]), sys.argv[2] == "limit"
if limited:
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
journal, told, i = Journal(path), [], 0
while True:
    try:
        journal.append({"i": i, "filling": "x" * 100})
    except OSError as error:
        assert error.strerror in ("File too large", "No space left on device"), error
        break
    told.append(i)
    i += 1
assert [row["i"] for row in read(path)] == told
size = path.stat().st_size
if limited:
    assert size == 5000, "the last row is torn"
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
else:
    (path.parent / "ballast").unlink()
for i in (i, i + 1):
    journal.append({"i": i, "filling": "x" * 100})
    told.append(i)
assert [row["i"] for row in read(path)] == told, "room again: the torn row has not spoilt the next one"
print(len(told))
"""


def test_a_file_that_may_not_grow_is_an_error_and_loses_no_row_before_or_after(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path / "rows.jsonl", "limit"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small file system, which only Linux can without a device")
def test_a_full_disk_is_an_error_and_loses_no_row_before_or_after(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    script = (
        'mount -t tmpfs -o size=64k small "$1" || exit 77\n'
        'head -c 20000 /dev/zero > "$1/ballast"\n'
        'exec "$2" -c "$3" "$1/rows.jsonl" disk\n'
    )
    # a mount namespace of its own: the mount goes when the process does
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", tmp_path, sys.executable, FULL],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode == 77 or "Operation not permitted" in done.stderr:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40
