"""Methods that learn from a bank: unlabelled images beside those that are scored."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeVar

from jaxtyping import Float
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._door import Method
from zeroshot.methods._registry import name_of

OptionalSelf = TypeVar("OptionalSelf", bound="OptionalBank")
RequiredSelf = TypeVar("RequiredSelf", bound="RequiredBank")


@dataclass(frozen=True)
class OptionalBank(Method):
    """Learns from the bank, or from the images that are scored if there is none."""

    bank_: Float[Tensor, "b d"] | None = field(
        default=None, kw_only=True, repr=False, compare=False
    )

    @property
    def transductive(self) -> bool:
        """Unless there is a bank."""
        return self.bank_ is None

    def fit(self: OptionalSelf, bank: Float[Tensor, "b d"] | None = None) -> OptionalSelf:
        """A copy that learns from these images, if there are any."""
        return replace(self, bank_=bank)


@dataclass(frozen=True)
class RequiredBank(Method):
    """Learns from the bank alone; `k` is a number of its images or of classes."""

    k: int = 1
    bank_: Float[Tensor, "b d"] | None = field(
        default=None, kw_only=True, repr=False, compare=False
    )

    transductive: ClassVar[bool] = False

    def fit(self: RequiredSelf, bank: Float[Tensor, "b d"]) -> RequiredSelf:
        """A copy with this bank.

        Raises:
            UserError: `k` below 1.
        """
        if self.k < 1:
            raise UserError(f"{name_of(self)}: k={self.k}; k is at least 1")
        return replace(self, bank_=bank)

    @property
    def _bank(self) -> Float[Tensor, "b d"]:
        if self.bank_ is None:
            raise RuntimeError(f"this {type(self).__name__} has no bank yet: call fit(bank)")
        return self.bank_
