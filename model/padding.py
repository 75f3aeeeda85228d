"""Token rows of different lengths as one tensor."""
from collections.abc import Sequence

import torch
from torch import Tensor


def pad_right(rows: Sequence[list[int]], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Token ids (rows, T) padded on the right with 0, and a bool mask (rows, T) that is True at real tokens.

    `pad_right([[5, 6], [7]]) -> [[5, 6], [7, 0]], [[True, True], [True, False]]`"""
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows], dtype=torch.long, device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return tokens, torch.arange(longest, device=device) < lengths[:, None]
