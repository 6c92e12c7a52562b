"""The ledger of a window against a sender and a receiver that count for themselves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from adversary.relay.window import Window

sizes = st.integers(1, 5000)


@given(grants=st.lists(sizes, max_size=30), sends=st.lists(st.tuples(sizes, st.integers(0, 8000)), max_size=30))
def test_the_receiver_is_never_sent_more_than_it_granted_nor_the_sender_kept_short(
    grants: list[int], sends: list[tuple[int, int]]
) -> None:
    """Messages become longer or shorter, and wait for the receiver's window; the sender sends as much as it may."""
    window, initial = Window(4000), 4000
    may_send = receiver_takes = initial
    waiting = 0

    def settle() -> None:
        nonlocal may_send, receiver_takes, waiting
        n = min(waiting, window.allowance)
        if n > 0:
            window.queued -= n
            window.sent(n)
            waiting -= n
            receiver_takes -= n
        may_send += window.due()
        assert receiver_takes >= 0
        assert window.allowance == receiver_takes
        assert may_send == window.allowance + window.skew
        # at least what the receiver would take behind what waits for it
        assert may_send >= receiver_takes - waiting

    for (size, becomes), grant in zip(sends, [*grants, *[1] * len(sends)], strict=False):
        n = min(size, may_send)
        if n:
            may_send -= n
            window.received(n)
            window.queued += becomes
            waiting += becomes
        settle()
        window.granted(grant)
        receiver_takes += grant
        settle()


@given(steps=st.lists(st.tuples(st.booleans(), sizes), max_size=50))
def test_where_nothing_is_changed_every_update_passes_as_it_is(steps: list[tuple[bool, int]]) -> None:
    window = Window(65_535)
    for granted, n in steps:
        if granted:
            window.granted(n)
            assert window.due() == n
        elif n <= window.allowance:
            assert window.fits(n)
            window.passed(n)
            assert window.due() == 0


def test_a_message_that_is_not_whole_is_lent_only_what_it_lacks() -> None:
    window = Window(65_535)
    window.received(60_000)
    assert window.due(kept=60_000, floor=5000) == 0  # the rest fits
    assert window.due(kept=60_000, floor=6000) == 60_000  # it does not: all that is kept is lent
    assert window.due(kept=60_000, floor=6000) == 0
