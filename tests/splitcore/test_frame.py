"""Frame ids: one text an id, one id a text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitcore.errors import WireError
from splitcore.frame import Frame, FrameId

WORDS = st.from_regex(r"[A-Za-z0-9_.:+-]{1,96}", fullmatch=True)


@given(run=WORDS, client=WORDS, sequence=st.integers(0, 10**12 - 1))
@settings(deadline=None)
def test_a_frame_id_comes_back_from_its_text(run: str, client: str, sequence: int) -> None:
    frame_id = FrameId(run, client, sequence)
    assert FrameId.parse(str(frame_id)) == frame_id


@given(text=st.text(max_size=300) | st.from_regex(r"[a/ ]{1,4}/[b]+/[0-9]+", fullmatch=True))
@settings(deadline=None)
def test_any_other_text_is_refused_or_is_the_text_of_its_id(text: str) -> None:
    try:
        frame_id = FrameId.parse(text)
    except WireError as refusal:
        assert len(str(refusal)) < 1000
        return
    assert str(frame_id) == text


@pytest.mark.parametrize(
    "text",
    ["", "//", "a/b", "a/b/", "a/b/c", "a/b/-1", "a/b/1/2", "/a/1", "a//1", "a/b/1\n", " a/b/1", "a b/c/1", "a/b/٣",
     "a/b/1.0", "a/b/" + "1" * 13, "x" * 97 + "/b/1", "a/b/007", "a/b/00"],
)  # fmt: skip
def test_what_is_no_frame_id_is_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(WireError, match="expected a frame id run/client/sequence"):
        FrameId.parse(text)


def test_frame_ids_sort_by_run_then_client_then_number() -> None:
    ids = [FrameId("a", "p", 10), FrameId("a", "p", 9), FrameId("b", "a", 0), FrameId("a", "q", 1)]
    assert [str(i) for i in sorted(ids)] == ["a/p/9", "a/p/10", "a/q/1", "b/a/0"]


def test_a_frame_keeps_its_id_over_attempts() -> None:
    first = Frame(id="r/c/1", payloads=(b"x",), shape=(1,))
    assert first.rows == 1 and first.attempt == 1 and first.origin == "client"
