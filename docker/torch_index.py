"""Prints pip's options for an extra package index, or nothing when the index does not answer within 3 s.

An index that cannot be reached costs pip minutes (half a minute without retries), so it is asked first, through the
same proxies as pip. Any answer counts, also a refusal: then pip has the better words for it.
"""

from __future__ import annotations

import os
import sys
import threading
import urllib.error
import urllib.request

PATIENCE_S = 3.0


def silence(url: str) -> str | None:
    """None when `url` answers, else why it is taken for silent."""
    outcome: list[str | None] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE_S).close()
        except urllib.error.HTTPError:
            outcome.append(None)
        except OSError as error:
            outcome.append(str(error))
        else:
            outcome.append(None)

    # the resolver of names knows no timeout; a thread that is left behind does
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    return outcome[0] if outcome else f"no answer in {PATIENCE_S:g} s"


if __name__ == "__main__":
    index = sys.argv[1] if len(sys.argv) > 1 else ""
    if index:
        reason = silence(f"{index.rstrip('/')}/torch/")
        if reason is None:
            print(f"--extra-index-url {index} --retries 0")
        else:
            print(f"{index}: {reason}; torch comes from pip's usual index", file=sys.stderr)
    sys.stdout.flush()
    os._exit(0)  # not waiting for the thread
