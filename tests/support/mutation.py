"""Messages that nobody should send: valid ones bent at random, and odd ones by hand. One seed, one sequence."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator, Sequence

from splitcore.wire import open_inference_pb2 as pb

MUTATIONS = int(os.environ.get("LATENTBED_MUTATIONS", "4000"))
"""mutated messages of all hostile tests together; each takes its share. `make fuzz` says 100,000"""

WORDS = (
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"\x80" * 9 + b"\1",
    b"\xff" * 9 + b"\x7f",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    b"\r\n\r\n",
    b"\0",
    b'"',
    b"9" * 40,
    b"-1",
    b"NaN",
    b"%00%s%n",
    b"../../",
    b"\x1b[31m",
)
HUGE = (0, 1, -1, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63), 4096, 4097, 65536)


def mutated(message: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """One to four changes: bits, bytes, words, what is cut, doubled, moved, or comes from another message."""
    changed = bytearray(message)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        size = min(rng.choice((1, 1, 2, 4, 8, 64)), len(changed) - at)
        match rng.randrange(8):
            case 0 if size:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at : at + size] = rng.randbytes(size)
            case 2:
                del changed[at : at + size]
            case 3:
                changed[at:at] = rng.randbytes(rng.randint(1, 8))
            case 4:
                changed[at:at] = changed[at : at + 64]
            case 5:
                changed[at : at + rng.choice((0, 1, 4))] = rng.choice(WORDS)
            case 6:
                del changed[at:]
            case _ if others:
                other = rng.choice(others)
                changed[at:] = other[rng.randrange(len(other) + 1) :]
    return bytes(changed)


def bent(request: bytes, rng: random.Random) -> bytes:
    """A ModelInferRequest that still parses, with one to three fields that say something else."""
    message = pb.ModelInferRequest.FromString(request)
    for _ in range(rng.randint(1, 3)):
        match rng.randrange(9):
            case 0:
                message.id = rng.choice(("", "x" * 513, "\x00\x1b[2J\n", "a/b/" + "9" * 12, "run/phone/-1", "é" * 512))
            case 1:
                message.inputs[0].shape[:] = [rng.choice(HUGE) for _ in range(rng.randrange(12))]
            case 2:
                message.inputs[0].datatype = rng.choice(("FP32", "BYTES", "FP16", "INT64", "", "BF16" * 9))
            case 3:
                message.parameters[rng.choice(("lb_attempt", "timeout", "priority"))].int64_param = rng.choice(HUGE)
            case 4:
                message.parameters["lb_codec"].string_param = rng.choice(
                    ("jpeg95", "uniform8/tensor+zstd", "entropy/00000000", "", "z" * 99)
                )
            case 5:
                message.parameters["lb_shape"].string_param = ",".join(str(rng.choice(HUGE)) for _ in range(rng.randrange(12)))
            case 6:
                message.raw_input_contents[:] = [rng.randbytes(rng.choice((0, 3, 64))) for _ in range(rng.randrange(4))]
            case 7:
                message.outputs.add(name=rng.choice(("label", "scores", "nobody", "")))
            case _:
                message.model_name = rng.choice(("", "nobody", "../..", "m" * 9999, "\x00"))
    return message.SerializeToString()


def poisoned(value: float, elements: int, shape: Sequence[int], frame_id: str) -> bytes:
    """A float32 latent with one number that is none."""
    message = pb.ModelInferRequest(id=frame_id, raw_input_contents=[bytes(4 * (elements - 1)) + struct.pack("<f", value)])
    message.inputs.add(name="latent", datatype="FP32", shape=[1, *shape])
    return message.SerializeToString()


def hostile(seeds: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """`count` messages: two thirds bent in their bytes, a third in their fields."""
    rng = random.Random(seed)
    for _ in range(count):
        message = rng.choice(seeds)
        yield bent(message, rng) if rng.random() < 0.33 else mutated(message, rng, seeds)
