"""What `auto` chose among couplings, and how it reads."""

from dataclasses import dataclass
from typing import Any, Literal

LEAST_PAIRS = 50
"""Pairs below which none can be held out."""
SHUFFLES = 200
"""Shuffles of the held-out texts that the choice is compared with."""


@dataclass(frozen=True)
class Trial:
    """How well a coupling retrieves the texts of held-out images."""

    coupling: Any
    """Not fitted."""
    reciprocal_rank: float
    recall_1: float
    recall_5: float


@dataclass(frozen=True)
class Report:
    """What was chosen, what else there was, and whether the encoders couple."""

    chosen: Trial
    others: tuple[Trial, ...]
    """The best of every other method, best first."""
    margin: float
    """Mean reciprocal rank of the chosen one, less that of the first of the others."""
    error: float
    """Standard error of the margin over held-out pairs."""
    pairs: int
    """Anchor pairs that the choice was made on."""
    held_out: int
    splits: int
    shuffled: float
    """The best mean reciprocal rank against shuffled texts, of `SHUFFLES` shuffles."""
    verdict: Literal["couple", "hardly couple", "do not couple", "too few pairs to tell"]

    def lines(self) -> list[str]:
        """All of it in sentences."""
        if not self.splits:
            return [
                f"auto chose {self.chosen.coupling!r}: {self.pairs} pairs are too few to set any "
                f"aside (that takes {LEAST_PAIRS}), so nothing says whether these encoders couple"
            ]
        best = self.chosen
        lines = [
            f"auto chose {best.coupling!r}",
            f"held-out images find their text first in {best.recall_1:.3f}, among five in "
            f"{best.recall_5:.3f} ({self.splits} x {self.held_out} of {self.pairs} pairs; chance "
            f"{1 / self.held_out:.3f} and {5 / self.held_out:.3f})",
        ]
        if self.others:
            lines.append(
                f"next best: {self.others[0].coupling!r}, {self.others[0].recall_1:.3f} and "
                f"{self.others[0].recall_5:.3f}; its mean reciprocal rank is lower by "
                f"{self.margin:.3f} (standard error {self.error:.3f})"
            )
        lines.append(
            f"these encoders {self.verdict}: mean reciprocal rank {best.reciprocal_rank:.3f}, "
            f"{self.shuffled:.3f} at best of {SHUFFLES} choices on shuffled texts"
        )
        return lines
