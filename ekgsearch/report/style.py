"""How every figure looks, and how it becomes a PNG file or SVG markup that follows light and dark pages."""

import base64
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

FONT = "DejaVu Sans"
"""The font that matplotlib ships: text is measured with it, whatever the machine has installed."""

PALETTE = {
    "ink": "#1d2430",
    "muted": "#5c6675",
    "faint": "#a3abb7",
    "grid": "#e3e7ec",
    "track": "#dfe4ea",
    "surface": "#ffffff",
    "blue": "#0072b2",
    "orange": "#d55e00",
    "green": "#009e73",
    "purple": "#aa4499",
    "sky": "#88c3e6",
}
"""Colours by role, light theme; the series colours stay apart for all common kinds of colour blindness.

The page declares one custom property per name (`--blue` ...), once for light and once for dark.
"""

SERIES = ("blue", "orange", "green", "purple", "muted")
"""Palette names in the order in which series take them."""

DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (5, 1.4, 1.2, 1.4)), (0, (8, 2)))
"""Line dashes in the same order, so that no series is told by colour alone."""

_RC: dict[Any, Any] = {
    "font.family": FONT,
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.titlecolor": PALETTE["ink"],
    "axes.labelcolor": PALETTE["muted"],
    "axes.edgecolor": PALETTE["faint"],
    "axes.facecolor": PALETTE["surface"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "grid.color": PALETTE["grid"],
    "grid.linewidth": 0.8,
    "text.color": PALETTE["ink"],
    "xtick.color": PALETTE["faint"],
    "ytick.color": PALETTE["faint"],
    "xtick.labelcolor": PALETTE["muted"],
    "ytick.labelcolor": PALETTE["muted"],
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "figure.facecolor": PALETTE["surface"],
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.hspace": 0.06,
    "figure.constrained_layout.wspace": 0.06,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.labelcolor": PALETTE["ink"],
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "savefig.facecolor": PALETTE["surface"],
    "svg.fonttype": "none",
    "svg.image_inline": True,
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Apply the look to figures that are made or saved inside the block; nothing outside changes."""
    with mpl.rc_context({**mpl.rcParamsDefault, "backend": "Agg", **_RC}):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure (sizes in inches) that no global state of matplotlib knows."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def colour(name: str) -> str:
    """Return the hexadecimal value of a palette name."""
    return PALETTE[name]


def note(axes: Axes, text: str) -> None:
    """Write one muted sentence into the middle of empty axes, in place of data."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=PALETTE["muted"])


def label_point(axes: Axes, text: str, point: tuple[float, float], offset: tuple[float, float], **look: Any) -> None:
    """Write small muted text beside a point of the data, `offset` typographic points away."""
    look = {"fontsize": 7.5, "va": "center", **look}
    axes.annotate(text, point, xytext=offset, textcoords="offset points", color=colour("muted"), **look)


def to_png(figure: Figure, dots_per_inch: int = 160) -> bytes:
    """Render a figure as PNG bytes."""
    buffer = io.BytesIO()
    with figure_style():
        figure.savefig(buffer, format="png", dpi=dots_per_inch, metadata={"Software": "ekgsearch"})
    return buffer.getvalue()


def to_data_uri(png: bytes) -> str:
    """Return PNG bytes as a `data:` address for an image element."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def to_svg(figure: Figure, label: str, key: str) -> str:
    """Render a figure as SVG markup to be placed inside an HTML page.

    Palette colours become custom properties of the page, so the figure follows its light or dark theme; text stays
    text in the page's font; sizes are left to the page; nothing refers to any address.

    Args:
        figure: the figure.
        label: what a screen reader says in its place.
        key: distinguishes the identifiers of this figure from those of the other figures of the page.
    """
    buffer = io.StringIO()
    with figure_style(), mpl.rc_context({"svg.hashsalt": key}):
        empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=empty)
    markup = buffer.getvalue()
    markup = markup[markup.index("<svg") :]
    head, body = markup.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    width = re.search(r'width="([0-9.]+)pt"', head)
    assert box is not None, head
    assert width is not None, head
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r' transform="rotate\(-?0 [^)]*\)"', "", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = re.sub(r"font: ((?:\w+ )*?)([0-9.]+)px [^;\"]*", r"font: \1\2px var(--font)", body)
    for name, value in PALETTE.items():
        body = body.replace(value, f"var(--{name})")
    size = f"--plot-width: {float(width[1]):.0f}"
    return f'<svg class="plot" role="img" aria-label="{_attribute(label)}" style="{size}" {box[0]}>{body}'.rstrip()


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
