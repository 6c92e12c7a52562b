"""Every codec on the latents of the networks' shape table: time to encode and decode one, and its bytes. `make bench-codecs`.

The latents are smooth synthetic ones (Gaussian fields with a falling spectrum, another spread and centre in each channel):
shapes and times are those of the networks, bytes are those of such fields. Beside them, measured in the same run: the input
as JPEG through Pillow, Zstandard of the int8 codes, and constriction's range coder with our own tables, where it is
installed (`pip install constriction==0.5.0`; there are no wheels for ARM). One thread, the median of several calls.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from splitcore.codec import fit  # noqa: E402
from splitcore.codec.entropy import Entropy, EntropyCodec  # noqa: E402
from splitcore.codec.prior import Prior  # noqa: E402
from splitcore.latent import F32, LatentSpec  # noqa: E402

try:
    import constriction
except ImportError:
    constriction = None

SHAPES = {
    "ver2, 3 channels": (3, 29, 29),
    "ver2, 12 channels": (12, 29, 29),
    "ver2, 24 channels": (24, 29, 29),
    "vgg16-fc-lite": (12, 28, 28),
    "layer1 (CR+BQ)": (12, 60, 60),
    "entropic student": (24, 55, 55),
    "vgg16-fc": (9, 112, 112),
}
NAMES = (
    "identity", "float16", "uniform8/channel", "uniform8/channel+zstd", "uniform6/channel", "uniform4/channel",
    "uniform4/channel+zstd", "uniform4/channel/sample", "uniform2/channel", "uniform1/channel", "jpeg25", "jpeg50", "jpeg75",
    "jpeg90", "jpeg95", "entropy",
)  # fmt: skip
FITTED = 32
"""latents that ranges and priors are taken from; none of them is measured"""
CALLS = 15
console = Console(width=120)


def fields(shape: tuple[int, int, int], k: int, seed: int) -> F32:
    """k smooth fields [k, *shape]; the seed draws the fields, the channels' spread and centre are the same for all."""
    rng, own = np.random.default_rng(seed), np.random.default_rng(0)
    C, H, W = shape
    spectrum = (0.05 + np.hypot(np.fft.fftfreq(H)[:, None], np.fft.rfftfreq(W)[None])) ** -1.5
    z = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((k, C, H, W))) * spectrum, (H, W))
    z /= z.std()
    out: F32 = (z * own.uniform(0.5, 2, (C, 1, 1)) + own.normal(0, 1, (C, 1, 1))).astype(np.float32)
    return out


def spec_of(latents: F32, step: float) -> LatentSpec:
    lo, hi = latents.min((0, 2, 3)), latents.max((0, 2, 3))
    prior = Prior.counted(latents, [step] * latents.shape[1])
    return LatentSpec(latents.shape[1:], tuple(lo.tolist()), tuple(hi.tolist()), float(latents.std()), prior)


def milliseconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(CALLS + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times[1:]))


class Book:
    """What is printed, and what is written."""

    def __init__(self) -> None:
        self.results: list[dict[str, Any]] = []

    def note(self, name: str, value: float, unit: str, bar: float | None = None) -> None:
        self.results.append({"name": name, "value": round(value, 4), "unit": unit, "bar": bar, "better": "lower"})

    def row(self, table: Table, what: str, name: str, encode: float, decode: float, size: int, error: float | None) -> None:
        self.note(f"{what}, {name}: encode", encode, "ms")
        self.note(f"{what}, {name}: decode", decode, "ms")
        self.note(f"{what}, {name}: size", size, "bytes")
        table.add_row(name, f"{encode:.3f}", f"{decode:.3f}", f"{size:,}", "" if error is None else f"{error:.3f}")


def coded_by_constriction(codec: EntropyCodec, latents: F32) -> tuple[Callable[[], Any], Callable[[], Any], int]:
    """Their range coder, channel by channel with our tables: a call that encodes, one that decodes, and the bytes."""
    prior = codec.latent.prior
    assert prior is not None
    models = [constriction.stream.model.Categorical(np.diff(cdf) / 65536, perfect=False) for cdf in prior.cdf]
    symbols = codec.symbols(latents)[0].reshape(len(models), -1)
    limits = [len(cdf) - 2 for cdf in prior.cdf]
    places = [
        np.clip(row - first, 0, limit).astype(np.int32)  # what is escaped costs its escape here, and no bytes behind
        for row, first, limit in zip(symbols, prior.offset, limits, strict=True)
    ]

    def encode() -> Any:
        coder = constriction.stream.queue.RangeEncoder()
        for row, model in zip(places, models, strict=True):
            coder.encode(row, model)
        return coder.get_compressed()

    words = encode()

    def decode() -> None:
        coder = constriction.stream.queue.RangeDecoder(words)
        for model in models:
            coder.decode(model, symbols.shape[1])

    return encode, decode, 4 * len(words)


def measure(book: Book, what: str, shape: tuple[int, int, int]) -> None:
    fitted, z = fields(shape, FITTED, 1), fields(shape, 1, 2)
    spec = spec_of(fitted, 0.25 * float(fitted.std()))
    table = Table(box=None, header_style="bold", title=f"{what}: {' x '.join(map(str, shape))}")
    for column in ("codec", "encode ms", "decode ms", "bytes", "rms error / std"):
        table.add_column(column, justify="left" if column == "codec" else "right")
    for name in NAMES:
        codec = fit(Entropy() if name == "entropy" else name, spec)
        payloads = codec.encode(z)
        error = float(np.sqrt(np.mean((codec.decode(payloads) - z) ** 2)) / spec.std)
        encode, decode = milliseconds(lambda c=codec: c.encode(z)), milliseconds(lambda c=codec, p=payloads: c.decode(p))
        book.row(table, what, name, encode, decode, len(payloads[0]), error)
        if isinstance(codec, EntropyCodec):
            # below 10 kB the lanes' states weigh more
            book.note(
                f"{what}, entropy: bytes over the model's entropy", 8 * len(payloads[0]) / codec.bits(z)[0], "ratio",
                1.02 if len(payloads[0]) > 10_000 else None,
            )  # fmt: skip
            if constriction is not None:
                write, read, size = coded_by_constriction(codec, z)
                book.row(table, what, "constriction, our tables", milliseconds(write), milliseconds(read), size, error)
                book.note(f"{what}, entropy: bytes over constriction's", len(payloads[0]) / size, "ratio")
    console.print(table)


def picture(book: Book) -> None:
    """The input instead: a smooth image of 224 x 224 as JPEG."""
    z = fields((3, 224, 224), 1, 3)[0].transpose(1, 2, 0)
    image = Image.fromarray(np.clip(128 + 45 * z, 0, 255).astype(np.uint8))
    table = Table(box=None, header_style="bold", title="the input, 3 x 224 x 224, as JPEG by Pillow")
    for column in ("quality", "encode ms", "decode ms", "bytes", ""):
        table.add_column(column, justify="right")
    for quality in (50, 75, 90, 95):

        def write(quality: int = quality) -> bytes:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=quality)
            return buffer.getvalue()

        file = write()
        encode = milliseconds(write)
        decode = milliseconds(lambda file=file: np.asarray(Image.open(io.BytesIO(file))))
        book.row(table, "the input", f"jpeg at quality {quality}", encode, decode, len(file), None)
    console.print(table)


def main() -> None:
    book = Book()
    picture(book)
    for what, shape in SHAPES.items():
        measure(book, what, shape)
    for result in book.results:
        if result["bar"] is not None:
            missed = result["value"] > result["bar"]
            console.print(f"{result['name']}: {result['value']:.4f} {'[bold red]above' if missed else 'below'} {result['bar']}")
    if constriction is None:
        console.print("constriction is not installed, not measured: pip install constriction==0.5.0")
    out = ROOT / "benchmarks" / "results" / "codecs.json"
    out.write_text(json.dumps(book.results, indent=1) + "\n")
    console.print(f"written to {out.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
