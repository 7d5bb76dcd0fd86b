"""float32 masters of bfloat16 weights, in the 16 bits that the weights lack.

An update of 1e-6 would be lost in bfloat16's 8 bits of precision, so that weights need masters. A master beside each
weight would take 4 bytes; kept as a remainder it takes 2, and is put together for one parameter at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor


def join(weight: Tensor, remainder: Tensor) -> Tensor:
    """The float32 master of a bfloat16 weight: its 16 bits in front, and the signed remainder added to them."""
    bits = weight.view(torch.int16).to(torch.int32).bitwise_left_shift_(16).add_(remainder)
    return bits.view(torch.float32)


def split(master: Tensor, weight: Tensor, remainder: Tensor) -> None:
    """Write a float32 master into the nearest bfloat16 weight and the remainder that `join` needs; spoils the master.

    Ties are rounded away from zero and not to even: the remainder of the other kind can be 2¹⁵, one more than fits.
    """
    bits = master.view(torch.int32)
    remainder.copy_(bits)  # keeps the low 16 bits, read as a signed number
    weight.view(torch.int16).copy_(bits.add_(1 << 15).bitwise_right_shift_(16))
