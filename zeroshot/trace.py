"""The trace of a generated text: the candidates of each step, their scores and the choice."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeroshot.errors import NotAvailableError
from zeroshot.output.atomic import whole
from zeroshot.packaging.extras import how_to_install

SHOWN = 6
"""Number of candidates per step in the figure of a trace; the first is the chosen one."""


@dataclass(frozen=True)
class Candidate:
    """One of the `k` most likely tokens, with the terms of its score."""

    token: int
    text: str
    probability: float
    """Probability by the language model, between 0 and 1."""
    penalty: float
    """Largest cosine of its hidden state with those of the preceding text."""
    guide: float
    """Score by the image: `beta f(v)` for MaGiC, 0 without a guide."""
    total: float
    """`(1 - alpha) probability - alpha penalty + guide`: the largest is chosen."""

    def row(self) -> dict[str, Any]:
        """As JSON-ready fields, with the seven digits of float32."""
        return {k: float(f"{v:.7g}") if isinstance(v, float) else v for k, v in vars(self).items()}


@dataclass(frozen=True)
class TraceStep:
    """One choice: the candidates, best first; the first one was chosen."""

    text: str
    """The text before it."""
    candidates: tuple[Candidate, ...]

    def row(self) -> dict[str, Any]:
        """As JSON-ready fields."""
        return {"text": self.text, "candidates": [c.row() for c in self.candidates]}


@dataclass(frozen=True)
class Trace:
    """The choices that made one text, including the end token."""

    steps: tuple[TraceStep, ...]

    def rows(self) -> list[dict[str, Any]]:
        """The steps as JSON-ready fields."""
        return [step.row() for step in self.steps]

    def __len__(self) -> int:
        return len(self.steps)

    def __repr__(self) -> str:
        text = self.steps[-1].text if self.steps else ""
        return f"Trace(text={text!r}, {len(self)} steps)"

    def figure(self, shown: int = SHOWN) -> Any:
        """A matplotlib figure of the `shown` best candidates per step, with the terms of the total.

        Raises:
            NotAvailableError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise NotAvailableError(
                f"the figure of a trace needs matplotlib: {how_to_install('plot')}"
            ) from None
        figure = Figure(figsize=(7, 0.9 + 0.32 * shown * max(1, len(self))), layout="constrained")
        axes = figure.subplots(max(1, len(self)), 1, squeeze=False)[:, 0]
        for step, ax in zip(self.steps, axes, strict=False):
            _draw(ax, step, shown)
        if self.steps:
            axes[0].legend(loc="lower right", fontsize="small")
            axes[-1].set_xlabel("part of the total")
        return figure

    def _repr_png_(self) -> bytes | None:
        """The figure in a notebook; the text alone without matplotlib."""
        data = io.BytesIO()
        try:
            self.figure().savefig(data, format="png", dpi=72)
        except NotAvailableError:
            return None
        return data.getvalue()

    def save(self, path: str | Path, shown: int = SHOWN) -> None:
        """The figure as a file; the suffix picks the format (.png, .svg, .pdf; without one, .png).

        Raises as `figure` and `output.atomic.whole`.
        """
        path = Path(path)
        path = path if path.suffix else path.with_name(f"{path.name}.png")
        figure = self.figure(shown)
        with whole(path) as file:
            figure.savefig(file, format=path.suffix[1:].lower())


def _draw(ax: Any, step: TraceStep, shown: int) -> None:
    """Draw stacked bars for the terms and a dot for the total of each candidate."""
    best: Sequence[Candidate] = step.candidates[:shown]
    positions = range(len(best))
    # total - guide = (1 - alpha) p - alpha penalty
    likely = [c.total - c.guide for c in best]
    guide = [c.guide for c in best]
    ax.barh(positions, likely, color="#8aa2c8", label="language model, less the penalty")
    left = [max(value, 0.0) for value in likely]
    ax.barh(positions, guide, left=left, color="#e2a04a", label="the image")
    ax.plot([c.total for c in best], positions, "k.", markersize=5, label="total")
    ax.set_yticks(positions, [repr(c.text)[1:-1] or "(end)" for c in best], fontsize="small")
    ax.invert_yaxis()
    ax.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    so_far = step.text if len(step.text) <= 60 else "..." + step.text[-57:]
    ax.set_title(f"{so_far or '(beginning)'} +", loc="left", fontsize="small")
    ax.spines[["top", "right"]].set_visible(False)
