"""What the three nodes have in common as processes: how they say that they are ready, and what ends them."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

READY_FILE = "ready.json"
END_WITH_STDIN = "LATENTBED_END_WITH_STDIN"
"""environment: the node ends in order when its standard input does, so that it does not outlive who started it"""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def begin(state: Path) -> None:
    """The state folder is there, and does not say `ready` for an earlier process; the process may open what it needs."""
    state.mkdir(parents=True, exist_ok=True)
    (state / READY_FILE).unlink(missing_ok=True)
    # gRPC's core writes at INFO what peers say, byte for byte: a terminal's control sequences, and a disk's worth of them
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    _open_files()


def _open_files() -> None:
    """As many descriptors as the system lets this process have: a crowd of connections must not keep its journals closed."""
    if sys.platform == "win32":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # some systems have a lower limit than they say
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def keep_memory(pieces_mib: int = 5) -> None:
    """Freed memory stays with the process, in pieces of up to `pieces_mib` MiB, glibc's most being 32.

    glibc gives every stack of latents back at once, and fresh pages cost more than the arithmetic on them (measured: 9.4 us a
    row to quantise 1,176 elements with it, 1.6 without; a tail in torch whose activations are 4 MiB is 2.5 times slower with
    it). Elsewhere nothing happens.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        # by default what is larger than a usual stack goes back: a flood of 8 MiB messages leaves a node as large as it was
        libc.mallopt(_M_MMAP_THRESHOLD, pieces_mib << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 64 << 20)
        libc.mallopt(_M_ARENA_MAX, 1)  # a thread's own are given back whatever the thresholds say


def tell_ready(state: Path, *, control: str, grpc: str | None = None) -> None:
    """Writes `state/ready.json`: who finds it finds all of it, and may connect."""
    temporary = state / f"{READY_FILE}.new"
    temporary.write_text(json.dumps({"pid": os.getpid(), "grpc": grpc, "control": control}) + "\n")
    temporary.replace(state / READY_FILE)


def read_ready(state: Path) -> dict[str, Any] | None:
    """What the node in `state` wrote when it was ready; None: not yet."""
    try:
        return dict(json.loads((state / READY_FILE).read_text()))
    except FileNotFoundError:
        return None


def joined(host: str, port: int) -> str:
    """host:port as a URL has it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def on_end(end: Callable[[], None]) -> None:
    """Calls `end` on the running event loop at SIGTERM and SIGINT, and with END_WITH_STDIN at the end of standard input."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    if os.environ.get(END_WITH_STDIN):

        def read() -> None:
            if not os.read(0, 4096):
                loop.remove_reader(0)
                end()

        loop.add_reader(0, read)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop where it is installed, asyncio's own elsewhere."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
