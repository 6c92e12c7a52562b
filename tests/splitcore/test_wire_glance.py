"""What is read of a message at a glance is what the whole reading finds."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from splitcore.errors import WireError
from splitcore.frame import Frame, Reply
from splitcore.wire import glance, oip

ids = st.from_regex(r"\A[a-z0-9]{1,20}/[a-z0-9ü]{1,20}/[0-9]{1,6}\Z")
attempts = st.integers(1, (1 << 31) - 1)


def frames(name: str, attempt: int, payloads: list[bytes], model: str, timeout: int | None) -> Frame:
    return Frame(
        id=name, payloads=tuple(payloads), codec="float16", shape=(3, 2), attempt=attempt, model=model, timeout_us=timeout,
        origin="query" if timeout else "client",
    )  # fmt: skip


@given(
    name=ids, attempt=attempts, payloads=st.lists(st.binary(max_size=300), min_size=1, max_size=5), model=st.text(max_size=5),
    timeout=st.none() | st.integers(1, 10**9),
)  # fmt: skip
def test_a_request_has_the_id_the_attempt_the_rows_and_the_bytes_that_it_has(
    name: str, attempt: int, payloads: list[bytes], model: str, timeout: int | None
) -> None:
    message = oip.pack_request(frames(name, attempt, payloads, model, timeout))
    seen, whole = glance.request(message), oip.unpack_request(message)
    assert seen is not None
    assert (seen.frame.id, seen.frame.attempt, seen.frame.rows) == (whole.id, whole.attempt, whole.rows)
    assert seen.payload_bytes == sum(map(len, whole.payloads))


@given(name=ids, rows=st.integers(1, 4))
def test_plain_latents_are_counted_too(name: str, rows: int) -> None:
    message = oip.pack_request(Frame(id=name, payloads=tuple(bytes(24) for _ in range(rows)), shape=(3, 2)))
    seen = glance.request(message)
    assert seen is not None
    assert (seen.frame.rows, seen.payload_bytes) == (rows, 24 * rows)


@given(name=ids, error=st.none() | st.text(min_size=1, max_size=20), bare=st.booleans())
def test_an_answer_has_the_id_and_the_error_that_it_has_in_both_dialects(name: str, error: str | None, bare: bool) -> None:
    reply = Reply(id=name, labels=np.array([3]), error=None if bare else error, model="digits")
    message = oip.pack_reply(reply) if bare else oip.pack_stream_reply(reply)
    whole = oip.unpack_stream_reply(message)
    assert glance.answer(message) == (whole.id, whole.error)


@given(message=st.binary(max_size=80), at=st.integers(0, 60), cut=st.integers(0, 10), spoilt=st.binary(max_size=3))
def test_no_bytes_do_more_than_be_nobodys(message: bytes, at: int, cut: int, spoilt: bytes) -> None:
    good = oip.pack_request(frames("r/c/0", 2, [b"abc"], "", None))
    for each in (message, good[:at] + spoilt + good[at + cut :]):
        seen = glance.request(each)
        glance.answer(each)
        try:
            whole = oip.unpack_request(each)
        except WireError:
            continue  # the receiver will refuse it; the books hold what it seemed to be, as lost
        if seen is not None:
            assert (seen.frame.id, seen.frame.rows) == (whole.id, whole.rows)
