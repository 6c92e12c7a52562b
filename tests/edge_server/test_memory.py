"""What is refused is freed at once: a flood of frames that do not fit leaves the server as large as it was."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from splitcore.frame import Frame

from .conftest import Peer, Process

MIB = 1 << 20


def resident_bytes(pid: int) -> int:
    """Of a process, from /proc."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc, which is Linux's")
async def test_refused_frames_leave_nothing_behind(process: Process) -> None:
    peer = Peer(process.grpc)
    payload = np.zeros(2 * MIB, "<f4").tobytes()  # 8 MiB, of a shape that the model does not have

    def frames(n: int) -> list[Frame]:
        return [Frame(id=f"m/a/{k}", payloads=(payload,), shape=(2 * MIB,)) for k in range(n)]

    assert all("INVALID_ARGUMENT" in (reply.error or "") for reply in await peer.ask(frames(4)))
    before = resident_bytes(process.pid())
    await peer.ask(frames(60))
    await peer.channel.close()
    grew = resident_bytes(process.pid()) - before
    for _ in range(200):  # what gRPC holds of a closed connection goes a little later
        if grew < 100 * MIB:
            break
        await asyncio.sleep(0.1)
        grew = resident_bytes(process.pid()) - before
    assert grew < 100 * MIB
