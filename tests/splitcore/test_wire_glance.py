"""What is read of a message at a glance is what the whole reading finds."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from splitcore.errors import WireError
from splitcore.frame import Frame, Reply
from splitcore.wire import glance, oip
from splitcore.wire.glance import Glancer

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
    seen, whole = Glancer()(message), oip.unpack_request(message)
    assert seen is not None
    assert (seen.frame.id, seen.frame.attempt, seen.frame.rows) == (whole.id, whole.attempt, whole.rows)
    assert seen.payload_bytes == sum(map(len, whole.payloads))


@given(name=ids, rows=st.integers(1, 4))
def test_plain_latents_are_counted_too(name: str, rows: int) -> None:
    message = oip.pack_request(Frame(id=name, payloads=tuple(bytes(24) for _ in range(rows)), shape=(3, 2)))
    seen = Glancer()(message)
    assert seen is not None
    assert (seen.frame.rows, seen.payload_bytes) == (rows, 24 * rows)


@given(name=ids, size=st.integers(1, 5000), rows=st.integers(1, 2), data=st.data())
def test_the_beginning_tells_what_the_whole_does_where_only_the_tensor_goes_on(
    name: str, size: int, rows: int, data: st.DataObject
) -> None:
    message = oip.pack_request(frames(name, 3, [bytes(size)] * rows, "digits", None))
    behind = len(message) - (size + 4) * rows
    cut = data.draw(st.integers(behind, len(message) - 1))
    seen = Glancer()(message[:cut], len(message))
    assert seen is not None and seen == Glancer()(message)
    assert Glancer()(message[:cut], len(message) + 1) is None
    assert Glancer()(message[: data.draw(st.integers(0, behind - 1))], len(message)) is None


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
        seen = Glancer()(each)
        glance.answer(each)
        try:
            whole = oip.unpack_request(each)
        except WireError:
            continue  # the receiver will refuse it; the books hold what it seemed to be, as lost
        if seen is not None:
            assert (seen.frame.id, seen.frame.rows) == (whole.id, whole.rows)


messages = st.builds(
    lambda *given: oip.pack_request(frames(*given)),
    ids, st.integers(1, 3), st.lists(st.binary(max_size=6), min_size=1, max_size=3), st.sampled_from(["", "m", "digits"]),
    st.none() | st.integers(1, 200),
)  # fmt: skip


@given(several=st.lists(messages, min_size=2, max_size=12), at=st.integers(0, 60), cut=st.integers(0, 10), whole=st.booleans())
def test_what_was_seen_before_changes_nothing_of_what_is_seen(several: list[bytes], at: int, cut: int, whole: bool) -> None:
    again = Glancer()
    for before, after in pairwise([several[0], several[0], *several]):
        beginning = after if whole else after[: len(after) - 1]
        for each in (before, beginning, after[:at] + before[at + cut :]):
            assert again(each, len(after)) == Glancer()(each, len(after))
            assert again(each) == Glancer()(each)


def test_of_a_layout_that_was_seen_only_the_id_is_read() -> None:
    """Nothing else of the second may be looked at: it is taken from the first."""
    again = Glancer()
    first, second = (oip.pack_request(frames(f"r/c/{n}", 2, [b"abc"], "m", None)) for n in (1, 23))
    assert again(first) is not None
    again._read = None  # type: ignore[assignment, method-assign]
    seen = again(second)
    assert seen is not None and (seen.frame.id, seen.frame.attempt, seen.payload_bytes) == ("r/c/23", 2, 3)
