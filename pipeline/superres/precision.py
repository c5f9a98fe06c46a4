"""The number format in which networks compute. All else that makes pixels stays float32 or float64.

float32 is IEEE 754's. The others are faster on a GPU and round more: TF32 the factors of convolutions and matrix
products to 10 bits, float16 to 10 and bfloat16 to 7 bits with what these operations give (torch's autocast).
"""

from __future__ import annotations

from contextlib import contextmanager
from threading import Condition
from typing import TYPE_CHECKING

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

FLOAT32, TF32 = "float32", "tf32"
PRECISIONS = (FLOAT32, TF32, "float16", "bfloat16")


def possible(precision: str, device_type: str) -> bool:
    """Return whether a kind of torch device computes in a precision. TF32 is a format of GPUs."""
    return precision != TF32 or device_type != "cpu"


def require_possible(precision: str, device_type: str) -> None:
    """Raise UsageError if a kind of torch device does not compute in a precision."""
    if not possible(precision, device_type):
        raise UsageError(
            f"precision {precision} on a {device_type.upper()}, which has no such format",
            "a GPU",
            f"leave --precision {precision} out, or run where torch sees a GPU",
        )


@contextmanager
def computing(precision: str, device_type: str) -> Iterator[None]:
    """Compute networks in a precision meanwhile. Other threads may do so too.

    Raises UsageError as `require_possible`.
    """
    import torch

    require_possible(precision, device_type)
    if precision in (FLOAT32, TF32):
        if device_type != "cuda":
            yield
            return
        with _SWITCH.held(allow_tf32=precision == TF32):
            yield
        return
    with torch.autocast(device_type, getattr(torch, precision), cache_enabled=False):
        yield


class _Switch:
    """TF32 on or off. It is a setting of the process, so threads that need the other one wait until nobody computes."""

    def __init__(self) -> None:
        self._free = Condition()
        self._users = 0
        self._allowed = False

    @contextmanager
    def held(self, *, allow_tf32: bool) -> Iterator[None]:
        """Hold the setting meanwhile. When nobody holds it, TF32 is off."""
        with self._free:
            self._free.wait_for(lambda: not self._users or self._allowed == allow_tf32)
            self._users += 1
            self._set(allow_tf32)
        try:
            yield
        finally:
            with self._free:
                self._users -= 1
                if not self._users:
                    self._set(False)
                    self._free.notify_all()

    def _set(self, allowed: bool) -> None:
        import torch

        self._allowed = allowed
        torch.backends.cudnn.allow_tf32 = allowed
        torch.backends.cuda.matmul.allow_tf32 = allowed


_SWITCH = _Switch()
