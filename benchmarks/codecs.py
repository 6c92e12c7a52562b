"""Every codec on the latents of the networks' shape table: time to encode and decode one, and its bytes. `make bench-codecs`.

The latents are synthetic (Gaussian fields with a falling spectrum, another spread and centre in each channel, their positive
part where the cut is behind a ReLU): shapes and times are those of the networks, bytes are those of such fields. Ranges and
priors are taken from other fields than are coded. Beside them, in the same run: the input as JPEG through Pillow, Zstandard of
the int8 codes at its level 3 (`+zstd` is level -3), and constriction's range coder with our tables, one stream and no lanes.
Times are processor time of one thread, the median of up to 15 calls. Writes benchmarks/results/codecs.json and
docs/results/codecs.md.
"""

from __future__ import annotations

import copy
import io
import json
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from PIL import Image
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from splitcore.codec import Codec, fit  # noqa: E402
from splitcore.codec.entropy import Entropy, EntropyCodec  # noqa: E402
from splitcore.codec.prior import Prior  # noqa: E402
from splitcore.codec.rans import Rans  # noqa: E402
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
    "ResNet-50 layer2, ReLU": (512, 28, 28),
    "ResNet-50 layer1, ReLU": (256, 56, 56),
}
NAMES = (
    "identity", "float16", "uniform8/channel", "uniform8/channel+zstd", "uniform4/channel", "uniform4/channel+zstd",
    "uniform4/channel/sample", "uniform1/channel", "jpeg50", "jpeg75", "jpeg95", "jpeg75/rgb-triples", "jpeg95/rgb-triples",
)  # fmt: skip
STEPS = (0.25, 1.0)
"""of the entropy coder's grid, in standard deviations"""
FITTED = 16
"""latents that ranges and priors are taken from; none of them is measured"""
CALLS, SECONDS = 15, 1.0
BAR = 1.02
"""bytes of the entropy coder over its model's entropy, above 10 kB"""
console = Console(width=120)


def fields(shape: tuple[int, int, int], k: int, seed: int, relu: bool = False) -> F32:
    """k smooth fields [k, *shape]; the seed draws the fields, the channels' spread and centre are the same for all."""
    rng, own = np.random.default_rng(seed), np.random.default_rng(0)
    C, H, W = shape
    spectrum = (0.05 + np.hypot(np.fft.fftfreq(H)[:, None], np.fft.rfftfreq(W)[None])) ** -1.5
    z = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((k, C, H, W))) * spectrum, (H, W))
    z /= z.std()
    out: F32 = (z * own.uniform(0.5, 2, (C, 1, 1)) + own.normal(0, 1, (C, 1, 1))).astype(np.float32)
    return np.maximum(out, 0) if relu else out


def spec_of(latents: F32, step: float) -> LatentSpec:
    lo, hi = latents.min((0, 2, 3)), latents.max((0, 2, 3))
    prior = Prior.counted(latents, [step] * latents.shape[1])
    return LatentSpec(latents.shape[1:], tuple(lo.tolist()), tuple((hi + 1e-3).tolist()), float(latents.std()), prior)


def milliseconds(call: Callable[[], object]) -> float:
    call()
    times, end = list[float](), time.monotonic() + SECONDS
    while len(times) < CALLS and (time.monotonic() < end or not times):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return 1e3 * float(np.median(times))


@dataclass
class Cost:
    """One codec on one latent."""

    encode: float
    """ms"""
    decode: float
    """ms"""
    size: int
    """bytes"""
    error: float | None = None
    """root mean square, in standard deviations"""
    over: float | None = None
    """bytes over the model's entropy"""


@dataclass
class Book:
    """What is printed, and what is written."""

    results: list[dict[str, Any]] = field(default_factory=list)
    costs: dict[str, dict[str, Cost]] = field(default_factory=dict)
    """what was coded -> codec -> cost"""

    def note(self, name: str, value: float, unit: str, bar: float | None = None) -> None:
        self.results.append({"name": name, "value": round(value, 4), "unit": unit, "bar": bar, "better": "lower"})

    def add(self, what: str, name: str, cost: Cost) -> None:
        self.costs.setdefault(what, {})[name] = cost
        self.note(f"{what}, {name}: encode", cost.encode, "ms")
        self.note(f"{what}, {name}: decode", cost.decode, "ms")
        self.note(f"{what}, {name}: size", cost.size, "bytes")
        if cost.over is not None:
            bar = BAR if cost.size > 10_000 and name.startswith("entropy") else None
            self.note(f"{what}, {name}: bytes over the model's entropy", cost.over, "ratio", bar)

    def show(self, what: str, shape: tuple[int, ...]) -> None:
        table = Table(box=None, header_style="bold", title=f"{what}: {' x '.join(map(str, shape))}")
        for column in ("codec", "encode ms", "decode ms", "bytes", "rms error / std", "over entropy"):
            table.add_column(column, justify="left" if column == "codec" else "right")
        for name, c in self.costs[what].items():
            rest = ("" if value is None else f"{value:.3f}" for value in (c.error, c.over))
            table.add_row(name, f"{c.encode:.3f}", f"{c.decode:.3f}", f"{c.size:,}", *rest)
        console.print(table)


def constrictions_own(codec: EntropyCodec, latents: F32) -> Cost:
    """Their range coder, channel by channel with our tables; what is escaped costs its escape, and no bytes behind."""
    prior = codec.latent.prior
    assert prior is not None
    models = [constriction.stream.model.Categorical(np.diff(cdf) / 65536, perfect=False) for cdf in prior.cdf]
    places, _ = codec._places(codec.symbols(latents))
    rows = places[0].astype(np.int32).reshape(len(models), -1)

    def encode() -> Any:
        coder = constriction.stream.queue.RangeEncoder()
        for row, model in zip(rows, models, strict=True):
            coder.encode(row, model)
        return coder.get_compressed()

    words = encode()

    def decode() -> None:
        coder = constriction.stream.queue.RangeDecoder(words)
        for model in models:
            coder.decode(model, rows.shape[1])

    size = 4 * len(words)
    return Cost(milliseconds(encode), milliseconds(decode), size, over=8 * size / codec.bits(latents)[0])


def entropy(fitted: F32, z: F32, step: float) -> Iterator[tuple[str, Cost]]:
    spec = spec_of(fitted, step * float(fitted.std()))
    codec = fit(Entropy(), spec)
    assert isinstance(codec, EntropyCodec) and spec.prior is not None
    [payload] = codec.encode(z)
    error = float(np.sqrt(np.mean((codec.decode([payload]) - z) ** 2)) / spec.std)
    over = 8 * len(payload) / codec.bits(z)[0]
    plain = copy.copy(codec)
    plain._coder = Rans(spec.prior.cdf, np.arange(spec.channels).repeat(spec.elements // spec.channels))
    assert plain.encode(z) == [payload]
    for by, each in (("constriction", codec), ("numpy", plain)):
        if each is codec and isinstance(codec._coder, Rans):
            continue  # constriction is not installed
        encode, decode = milliseconds(lambda c=each: c.encode(z)), milliseconds(lambda c=each: c.decode([payload]))
        yield f"entropy, step {step:g} std, by {by}", Cost(encode, decode, len(payload), error, over)
    if constriction is not None:
        yield f"constriction's range coder, step {step:g} std", constrictions_own(codec, z)


def zstd(int8: Codec, z: F32) -> Cost:
    def encode() -> bytes:
        return zstandard.ZstdCompressor(level=3).compress(int8.encode(z)[0])

    payload = encode()
    decode = milliseconds(lambda: int8.decode([zstandard.ZstdDecompressor().decompress(payload)]))
    return Cost(milliseconds(encode), decode, len(payload), float(np.sqrt(np.mean((int8.snap(z) - z) ** 2)) / int8.latent.std))


def measure(book: Book, what: str, shape: tuple[int, int, int]) -> None:
    fitted, z = (fields(shape, k, seed, "ReLU" in what) for k, seed in ((FITTED, 1), (1, 2)))
    spec = spec_of(fitted, float(fitted.std()))
    for name in NAMES:
        codec = fit(name, spec)
        payloads = codec.encode(z)
        error = float(np.sqrt(np.mean((codec.decode(payloads) - z) ** 2)) / spec.std)
        encode, decode = milliseconds(lambda c=codec: c.encode(z)), milliseconds(lambda c=codec, p=payloads: c.decode(p))
        book.add(what, name, Cost(encode, decode, len(payloads[0]), error))
    book.add(what, "zstd 3 of int8", zstd(fit("uniform8/channel", spec), z))
    for step in STEPS:
        for name, cost in entropy(fitted, z, step):
            book.add(what, name, cost)
    book.show(what, shape)


def picture(book: Book) -> None:
    """The input instead: a smooth image of 224 x 224 as JPEG."""
    z = fields((3, 224, 224), 1, 3)[0].transpose(1, 2, 0)
    image = Image.fromarray(np.clip(128 + 45 * z, 0, 255).astype(np.uint8))
    for quality in (50, 75, 90, 95):

        def write(quality: int = quality) -> bytes:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=quality)
            return buffer.getvalue()

        file = write()
        decode = milliseconds(lambda file=file: np.asarray(Image.open(io.BytesIO(file))))
        book.add("the input", f"jpeg at quality {quality}", Cost(milliseconds(write), decode, len(file)))
    book.show("the input", (3, 224, 224))


TEXT = """# What the codecs cost

`make bench-codecs` writes this file and [codecs.json](../../benchmarks/results/codecs.json). Two x86-64 cores shared with other
work, so times are processor time of one thread, the median of up to 15 calls; one latent at a time. The latents are synthetic:
Gaussian fields with a falling spectrum, another spread and centre in each channel, their positive part for the two cuts behind
a ReLU. Ranges and priors come from 16 other fields. Shapes and times are those of the networks; bytes are those of such fields:
they compare with one another, not with a trained network's.

{columns}

`zstd 3 of int8` is Zstandard at its level 3 of what `uniform8/channel` writes; `+zstd` is level -3. `entropy` is one
bitstream, which constriction codes where it is installed and numpy elsewhere (ARM); "constriction's range coder" is theirs
alone, with the same tables in one stream. Steps are in standard deviations.

simplejpeg is not used: of 300 grey pictures, its files of 264 (version 1.9.0) decode to other pixels than those of Pillow
13.0.0 at the same quality, by up to 19 levels, and `snap` must be the same on every machine. (Its decoder gave Pillow's pixels
for all of 20,400 streams, clean and mutated, when told to bear damage; that saves 0.1 ms of a mosaic.)
"""
SHOWN: dict[str, Callable[[Cost], str]] = {
    "Bytes": lambda c: f"{c.size:,}",
    "Milliseconds to encode": lambda c: f"{c.encode:.2f}",
    "Milliseconds to decode": lambda c: f"{c.decode:.2f}",
    "Error, root mean square in standard deviations": lambda c: "" if c.error is None else f"{c.error:.3f}",
}


def written(book: Book) -> str:
    whats = list(SHAPES)
    names = list(book.costs[whats[0]])
    top = row("", ("x".join(map(str, SHAPES[what])) for what in whats)) + "|---|" + "--:|" * len(whats) + "\n"
    columns = "The columns are " + "; ".join(f"{'x'.join(map(str, SHAPES[what]))} {what}" for what in whats) + "."
    text = TEXT.format(columns=textwrap.fill(columns, 127))
    for title, shown in SHOWN.items():
        text += f"\n## {title}\n\n{top}"
        text += "".join(row(name, (shown(book.costs[what][name]) for what in whats)) for name in names)
    text += (
        f"\n## Bytes over the model's entropy\n\nAt most {BAR} is wanted above 10,000 bytes; fewer are in brackets.\n\n{top}"
    )
    for name in (name for name in names if book.costs[whats[0]][name].over and "numpy" not in name):
        costs = (book.costs[what][name] for what in whats)
        text += row(name, (f"{c.over:.4f}" if c.size > 10_000 else f"({c.over:.4f})" for c in costs))
    text += "\n## The input, 3x224x224, as JPEG by Pillow\n\n| | bytes | encode ms | decode ms |\n|---|--:|--:|--:|\n"
    for name, c in book.costs["the input"].items():
        text += row(name, (f"{c.size:,}", f"{c.encode:.2f}", f"{c.decode:.2f}"))
    return text


def row(name: str, cells: Iterable[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |\n"


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
    (ROOT / "docs" / "results" / "codecs.md").write_text(written(book))
    console.print(f"written to {out.relative_to(ROOT)} and docs/results/codecs.md")


if __name__ == "__main__":
    main()
