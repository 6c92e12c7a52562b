"""Which head a phone recommends: never a slower one, never one that loses accuracy, and no core more than it is worth."""

from __future__ import annotations

import pytest

from mobile_client.settings import Row, Setting, choose, settings
from splitcore.artefact import HeadName, Int8Head


def made(points_lost: float = 0.1, snr_db: float = 30) -> Int8Head:
    return Int8Head(accuracy=0.9, points_lost=points_lost, agreement=0.99, snr_db=snr_db, calibrated_on="8 images")


def row(
    head: HeadName, median_ms: float, ratio: float = 1, *, threads: int = 1, spinning: bool = False, snr_db: float = 30
) -> Row:
    return Row(setting=Setting(head=head, threads=threads, spinning=spinning), median_ms=median_ms, ratio=ratio, snr_db=snr_db)


def test_the_faster_head_in_int8_is_recommended_and_the_slower_one_refused() -> None:
    rows = [row("float32", 10), row("int8-u8", 5, 2), row("int8-s8", 13, 0.8)]
    setting, refused = choose(rows, {"int8-u8": made(), "int8-s8": made()}, 1)
    assert setting.head == "int8-u8"
    assert list(refused) == ["int8-s8"]
    assert refused["int8-s8"] == "it is not 1.05 times as fast as float32: 13 ms at best, float32 10 ms"


@pytest.mark.parametrize("ratio", [0.3, 0.99, 1.0, 1.04])
def test_a_head_that_is_slower_or_as_fast_is_never_recommended(ratio: float) -> None:
    setting, refused = choose([row("float32", 10), row("int8-u8", 10 / ratio, ratio)], {"int8-u8": made()}, 1)
    assert setting.head == "float32"
    assert "not 1.05 times as fast" in refused["int8-u8"]


def test_a_head_that_lost_more_than_was_allowed_is_refused_however_fast_it_is() -> None:
    rows, heads = [row("float32", 10), row("int8-u8", 1, 10)], {"int8-u8": made(points_lost=1.5)}
    setting, refused = choose(rows, heads, 1)  # type: ignore[arg-type]
    assert setting.head == "float32"
    assert refused["int8-u8"] == "it loses 1.50 points of accuracy, more than 1"
    assert choose(rows, heads, 2)[0].head == "int8-u8"  # type: ignore[arg-type]


def test_a_head_whose_latents_are_worse_here_than_where_it_was_made_is_refused() -> None:
    rows = [row("float32", 10), row("int8-u8", 5, 2, snr_db=20)]
    setting, refused = choose(rows, {"int8-u8": made(snr_db=30)}, 1)
    assert setting.head == "float32"
    assert "20.0 dB here, 30.0 where it was made" in refused["int8-u8"]


def test_a_head_that_beats_float32_only_where_float32_is_slow_is_refused() -> None:
    rows = [row("float32", 10), row("int8-u8", 12, 0.83), row("float32", 90, threads=2), row("int8-u8", 11, 8, threads=2)]
    setting, refused = choose(rows, {"int8-u8": made()}, 1)
    assert (setting.head, setting.threads) == ("float32", 1)
    assert "11 ms at best, float32 10 ms" in refused["int8-u8"]


@pytest.mark.parametrize(("with_two_ms", "threads"), [(9.5, 1), (6, 2)])
def test_a_second_core_is_taken_only_where_it_is_worth_it(with_two_ms: float, threads: int) -> None:
    setting, _ = choose([row("float32", 10), row("float32", with_two_ms, threads=2)], {}, 1)
    assert setting.threads == threads


def test_spinning_threads_are_taken_only_where_they_are_worth_it() -> None:
    quiet, spinning = row("float32", 5, threads=2), row("float32", 4.8, threads=2, spinning=True)
    assert not choose([row("float32", 10), quiet, spinning], {}, 1)[0].spinning
    assert choose([row("float32", 10), quiet, spinning.model_copy(update={"median_ms": 3.0})], {}, 1)[0].spinning


def test_float32_is_measured_in_every_setting_in_which_another_head_is() -> None:
    for cores in (1, 2, 3, 6, 8):
        ways = settings(["float32", "int8-u8"], cores)
        assert {way.threads for way in ways} == {k for k in (1, 2, 4, 8, cores) if k <= cores}
        assert not any(way.spinning and way.threads == 1 for way in ways)
        for way in ways:
            assert way.model_copy(update={"head": "float32"}) in ways
