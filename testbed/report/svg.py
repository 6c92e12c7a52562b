"""matplotlib figures as inline SVG: colours are the page's CSS variables, text is text in the page's own font.

matplotlib knows no CSS, so every ink has a stand-in colour here that is replaced by `var(--ink-NAME)` in the SVG; the page
gives each a value for light, for dark and for paper.
"""

from __future__ import annotations

import io
import re
from contextlib import AbstractContextManager

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INKS = (
    "text", "muted", "grid", "paper",
    "blue", "vermillion", "green", "purple", "orange", "sky", "grey", "olive",
    "client1", "client2", "client3", "link1", "link2", "hold", "edge1", "edge2", "edge3",
)  # fmt: skip
STAND_IN = {name: f"#0100{number:02x}" for number, name in enumerate(INKS, start=1)}
_INK = re.compile(r"#0100([0-9a-f]{2})")
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "latentbed",  # the same run gives the same file
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": STAND_IN["grid"],
    "axes.labelcolor": STAND_IN["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.titlesize": 10,
    "axes.titlecolor": STAND_IN["muted"],
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.grid": True,
    "figure.facecolor": "none",
    "grid.color": STAND_IN["grid"],
    "grid.linewidth": 0.6,
    "text.color": STAND_IN["text"],
    "xtick.color": STAND_IN["muted"],
    "ytick.color": STAND_IN["muted"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.solid_capstyle": "round",
}


def style() -> AbstractContextManager[None]:
    """To be entered around the drawing."""
    context: AbstractContextManager[None] = rc_context(STYLE)  # type: ignore[arg-type]
    return context


def inline(figure: Figure, name: str, description: str) -> str:
    """An <svg> element that scales with its container. `name` keeps its ids apart from the page's other figures'."""
    out = io.StringIO()
    with style():
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        FigureCanvasSVG(figure).print_svg(out, metadata=metadata)  # type: ignore[no-untyped-call]
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", text)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # it would style the whole page
    text = re.sub(r'<g id="[^"]*"', "<g", text).replace("rotate(-0 ", "rotate(0 ")
    text = re.sub(r' transform="rotate\(0 [^"]*"', "", text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    text = re.sub(r"font-family:[^;\"]*;?|'DejaVu Sans'(, sans-serif)?", lambda m: "inherit" if m[0][0] == "'" else "", text)
    text = _INK.sub(lambda match: f"var(--ink-{INKS[int(match[1], 16) - 1]})", text)
    head = re.match(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', text)
    assert head is not None, "matplotlib writes a viewBox"
    escaped = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'<svg viewBox="{head[1]}" role="img" aria-label="{escaped}">' + re.sub(r"\n\s*", "\n", text[head.end() :])
