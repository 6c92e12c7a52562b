"""Downloads against a real HTTP server on loopback that knows ranges and cuts connections."""

from __future__ import annotations

import gzip
import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from splitcore.data import mnist
from splitcore.data.download import fetch
from splitcore.errors import DataError

CONTENT = np.random.default_rng(0).bytes(300_000)


class Mirror(ThreadingHTTPServer):
    """Serves `content` under every path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.knows_ranges = True
        self.cut_after: list[int] = []
        """one entry a response: the connection closes after so many bytes of it"""
        self.status = 200
        self.asked: list[str | None] = []
        """the Range header of every request"""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file"


class Handler(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        mirror = self.server
        wanted = self.headers.get("Range")
        mirror.asked.append(wanted)
        start = 0
        if wanted is not None and mirror.knows_ranges:
            match = re.fullmatch(r"bytes=(\d+)-", wanted)
            assert match is not None
            start = int(match[1])
        if mirror.status != 200 or start >= len(mirror.content):
            self.send_error(416 if mirror.status == 200 else mirror.status)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(mirror.content) - 1}/{len(mirror.content)}")
        self.send_header("Content-Length", str(len(mirror.content) - start))
        self.end_headers()
        body = mirror.content[start:]
        self.wfile.write(body[: mirror.cut_after.pop(0)] if mirror.cut_after else body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with Mirror() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def is_content(path: Path) -> None:
    if path.read_bytes() != CONTENT:
        raise DataError("expected the content, got something else")


def get(target: Path, *urls: str, check: Callable[[Path], None] = is_content, max_bytes: int = 1 << 20) -> None:
    fetch(urls, target, max_bytes=max_bytes, check=check, progress=False, pause_s=0.01)


def test_a_file_arrives_whole_under_its_name(mirror: Mirror, tmp_path: Path) -> None:
    get(tmp_path / "new" / "file", mirror.url)
    assert (tmp_path / "new" / "file").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_a_cut_connection_is_resumed_where_it_stopped(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cut_after = [100_000, 50_000]
    get(tmp_path / "file", mirror.url)
    assert mirror.asked == [None, "bytes=100000-", "bytes=150000-"]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_part_left_by_an_earlier_call_is_resumed(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:250_000])
    get(tmp_path / "file", mirror.url)
    assert mirror.asked == ["bytes=250000-"]


def test_a_whole_part_needs_no_byte_more(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT)
    get(tmp_path / "file", mirror.url)
    assert mirror.asked == [f"bytes={len(CONTENT)}-"]


def test_a_server_without_ranges_is_read_from_the_start_again(mirror: Mirror, tmp_path: Path) -> None:
    mirror.knows_ranges = False
    mirror.cut_after = [100_000]
    get(tmp_path / "file", mirror.url)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_that_always_cuts_at_once_is_given_up_and_the_part_stays(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cut_after = [100_000] + [0] * 10
    with pytest.raises(DataError, match="cut after 100000 of 300000"):
        get(tmp_path / "file", mirror.url)
    assert (tmp_path / "file.part").stat().st_size == 100_000


def test_altered_content_is_refused_and_the_next_mirror_asked(mirror: Mirror, tmp_path: Path) -> None:
    with Mirror() as other:
        thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        other.content = CONTENT[:-1] + b"!"
        get(tmp_path / "file", other.url, mirror.url)
        other.shutdown()
        thread.join()
    assert mirror.asked == [None]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_part_that_does_not_fit_is_thrown_away(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"x" * 1000)
    with pytest.raises(DataError, match="got something else"):
        get(tmp_path / "file", mirror.url)
    get(tmp_path / "file", mirror.url)
    assert mirror.asked == ["bytes=1000-", None]


def test_a_file_larger_than_allowed_is_refused_before_it_is_stored(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="announces 300000"):
        get(tmp_path / "file", mirror.url, max_bytes=1000)
    assert (tmp_path / "file.part").stat().st_size == 0


def test_no_mirror_at_all_says_what_to_put_where(tmp_path: Path) -> None:
    with Mirror() as closed:
        url = closed.url
    with pytest.raises(DataError, match=rf"expected {tmp_path}/file.*refused.*put it there yourself"):
        get(tmp_path / "file", url)


def test_an_error_status_is_told_and_not_asked_again(mirror: Mirror, tmp_path: Path) -> None:
    mirror.status = 404
    with pytest.raises(DataError, match="HTTP 404"):
        get(tmp_path / "file", mirror.url)
    assert len(mirror.asked) == 1


def test_only_http_is_spoken(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(CONTENT)
    with pytest.raises(DataError, match="expected an http or https address"):
        get(tmp_path / "file", (tmp_path / "secret").as_uri())


def test_an_idx_data_set_is_downloaded_checked_and_loaded(mirror: Mirror, tmp_path: Path) -> None:
    labels = bytes([0, 0, 8, 1, 0, 0, 0, 4, 3, 1, 0, 2])
    mirror.content = gzip.compress(labels)
    answers = mnist.File("labels", len(labels), hashlib.md5(labels).hexdigest())
    images = bytes([0, 0, 8, 3, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 1, 9, 8, 7, 6])
    pixels = mnist.File("images", len(images), hashlib.md5(images).hexdigest())
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "images").write_bytes(images)
    published = mnist.Published("tiny", {"test": (pixels, answers)}, (), tuple("abcd"))
    dataset = mnist.load(published, "test", tmp_path, mirrors=(mirror.url + "/",), progress=False)
    assert dataset.labels.tolist() == [3, 1, 0, 2]
    assert dataset.images.tolist() == [[[[9]]], [[[8]]], [[[7]]], [[[6]]]]
    assert (tmp_path / "tiny" / "labels.gz").exists()
