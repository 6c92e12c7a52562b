"""How requests wait, and how many of them are computed at once: the settings of the dynamic batcher.

Names and meanings are Triton's (model_config.proto, ModelDynamicBatching and ModelQueuePolicy). What differs:
`max_queue_size` counts rows, because a request here carries 1 to 4096 of them, and is never unlimited;
`allow_timeout_override` is on unless told otherwise, because a phone says its frames' deadline there, and a request may then
say one where `default_timeout_microseconds` says none; `max_queue_bytes` and `status` are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

TimeoutAction = Literal["REJECT", "DELAY"]
StatusStyle = Literal["grpc", "triton"]


@dataclass(frozen=True, kw_only=True)
class QueuePolicy:
    """What may wait at one level of priority, and what happens to what waits too long."""

    timeout_action: TimeoutAction = "REJECT"
    """REJECT: a request whose timeout has passed is refused; DELAY: it is computed when nothing of its level or above waits"""
    default_timeout_microseconds: int = 0
    """of requests that say none; 0: no timeout"""
    allow_timeout_override: bool = True
    """whether a request's own `timeout` counts; it may shorten the default, never lengthen it"""
    max_queue_size: int = 4096
    """rows that may wait; a request above that is refused at once"""

    def __post_init__(self) -> None:
        _at_least(1, self, "max_queue_size")
        _at_least(0, self, "default_timeout_microseconds")
        if self.timeout_action not in ("REJECT", "DELAY"):
            raise ValueError(f"expected timeout_action REJECT or DELAY, got {self.timeout_action!r}")

    def timeout_us(self, asked_us: int | None) -> int | None:
        """The timeout of a request that asks for this one; None: it waits as long as it takes."""
        default_us = self.default_timeout_microseconds or None
        if asked_us is None or not self.allow_timeout_override:
            return default_us
        return asked_us if default_us is None else min(asked_us, default_us)


def policy_of(text: str, default: QueuePolicy) -> tuple[int, QueuePolicy]:
    """`LEVEL:NAME=VALUE,...` as (level, policy); what it does not name is as in `default`. Raises ValueError."""
    level, _, settings = text.partition(":")
    known: dict[str, Callable[[str], str | int | bool]] = {
        "timeout_action": str,
        "default_timeout_microseconds": int,
        "allow_timeout_override": _flag,
        "max_queue_size": int,
    }
    changed: dict[str, Any] = {}
    for part in filter(None, settings.split(",")):
        name, _, value = part.partition("=")
        if name not in known:
            raise ValueError(f"expected one of {', '.join(known)} in a priority_queue_policy, got {name!r}")
        changed[name] = known[name](value)
    if not level.isdecimal() or not changed:
        raise ValueError(f"expected a priority_queue_policy LEVEL:NAME=VALUE,..., got {text!r}")
    return int(level), replace(default, **changed)


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"expected true or false, got {text!r}")
    return text == "true"


@dataclass(frozen=True, kw_only=True)
class BatchSettings(QueuePolicy):
    """Of one model's batcher. What it has of a QueuePolicy is Triton's `default_queue_policy`."""

    max_batch_size: int = 64
    """rows computed at once at most; a request with more is computed in slices"""
    preferred_batch_size: tuple[int, ...] = ()
    """rows: with a delay, a batch of such a size leaves at once. Of use where a runtime is faster at certain sizes only"""
    max_queue_delay_microseconds: int = 0
    """how long the oldest request waits for others; 0: whatever is queued goes the moment the tail is free"""
    max_queue_bytes: int = 512 << 20
    """bytes of payload that may wait, so that large latents cannot take the memory that `max_queue_size` rows would"""
    preserve_ordering: bool = False
    """the answers of one stream leave in the order of its requests"""
    priority_levels: int = 0
    """levels that a request may ask for by its `priority`, 1 the highest; 0: all requests are equal"""
    default_priority_level: int = 0
    """of requests that ask for none, or for one that there is not; 1 to `priority_levels` where there are levels"""
    priority_queue_policy: Mapping[int, QueuePolicy] = field(default_factory=dict)
    """by level, where another policy than the default is wanted"""
    status: StatusStyle = "grpc"
    """of a full queue and of a deadline: `grpc` RESOURCE_EXHAUSTED and DEADLINE_EXCEEDED, `triton` UNAVAILABLE for both"""

    def __post_init__(self) -> None:
        QueuePolicy.__post_init__(self)
        for name in ("max_batch_size", "max_queue_bytes"):
            _at_least(1, self, name)
        for name in ("max_queue_delay_microseconds", "priority_levels", "default_priority_level"):
            _at_least(0, self, name)
        if any(not 1 <= size <= self.max_batch_size for size in self.preferred_batch_size):
            raise ValueError(
                f"expected preferred_batch_size of 1 to max_batch_size {self.max_batch_size}, got {self.preferred_batch_size}"
            )
        if (
            bool(self.priority_levels) != bool(self.default_priority_level)
            or self.default_priority_level > self.priority_levels
        ):
            raise ValueError(
                f"expected a default_priority_level of 1 to priority_levels {self.priority_levels}, or both 0, "
                f"got {self.default_priority_level}"
            )
        if any(not 1 <= level <= self.priority_levels for level in self.priority_queue_policy):
            levels = sorted(self.priority_queue_policy)
            raise ValueError(f"expected priority_queue_policy for levels 1 to {self.priority_levels}, got {levels}")
        if self.status not in ("grpc", "triton"):
            raise ValueError(f"expected status grpc or triton, got {self.status!r}")

    @cached_property
    def policies(self) -> tuple[QueuePolicy, ...]:
        """By level, the highest first; one where there are no levels."""
        levels = range(1, self.priority_levels + 1) if self.priority_levels else (0,)
        return tuple(self.priority_queue_policy.get(level, self) for level in levels)

    def level(self, priority: int) -> int:
        """Where in `policies` a request with this `priority` waits. Triton's rule: one that there is not is the default."""
        asked = priority if 1 <= priority <= self.priority_levels else self.default_priority_level
        return max(asked - 1, 0)


def _at_least(least: int, settings: object, name: str) -> None:
    value = getattr(settings, name)
    if value < least:
        raise ValueError(f"expected {name} of {least} or more, got {value}")
