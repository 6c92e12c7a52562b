"""Entrypoint of every container: `enter.py COMMAND...`, as whoever should run it, with a token for the control APIs.

Where it starts as root (only `testbed` does, with no more than SETUID, SETGID and CHOWN), it takes the identity of the
owner of the run directory, so that the reports belong to the person on the host. An engine makes a missing bind mount
root's: then it is given to the owner of the checkout, and where that is root too, to uid 1000. Nothing runs as root.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

RUNS = Path("/runs")
CHECKOUT = Path("/opt/latentbed/scenarios")
"""a bind mount from the checkout: its owner is the checkout's"""
TOKEN = Path("/control/token")
NODES_GID = 10001
"""the group of all four containers, which may read the token"""


def owner() -> tuple[int, int]:
    """(uid, gid) to run as: never root."""
    for path in (RUNS, CHECKOUT):
        status = path.stat()
        if status.st_uid:
            return status.st_uid, status.st_gid or status.st_uid
    return 1000, 1000


def leave_root() -> None:
    uid, gid = owner()
    if RUNS.stat().st_uid == 0:
        os.chown(RUNS, uid, gid)
    os.setgroups([NODES_GID])
    os.setgid(gid)
    os.setuid(uid)


def make_token() -> None:
    """The first container to come writes it, readable for the group; the folder gives it the group."""
    draft = TOKEN.with_name(f"token.{secrets.token_hex(8)}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640), "w") as file:
        file.write(secrets.token_urlsafe(32) + "\n")
    try:
        os.link(draft, TOKEN)
    except FileExistsError:
        pass  # another container was first, and its token holds
    finally:
        draft.unlink()


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit("enter.py: expected a command to run, got none")
    if os.getuid() == 0:
        leave_root()
    if not TOKEN.exists():
        make_token()
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
