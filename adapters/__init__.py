"""Adapters. All additive adapters share one identity (Shen et al., Eq. 2; the operators are those of Table 6):

    delta_W = scaling * R core C,   with average pooling   scaling / lam_in * kron(core, ones(lam_out, lam_in))

Averaging each group of lam_in inputs, multiplying by `core`, and repeating each output lam_out times IS multiplication
by that Kronecker product. It is constant on tiles of lam_in inputs x lam_out outputs.

| code name | meaning | shape | symbol in Shen et al. |
|---|---|---|---|
| `core` | the matrix between compressed inputs and outputs | (D_out/lam_out, D_in/lam_in) | B A, or H |
| `A`, `B` | low-rank factors of `core` | (R, D_in/lam_in), (D_out/lam_out, R) | qblora_A, qblora_B |
| `H` | the full core of QA-BLoRA; in `scaleoffset.py`, one number a block | (D_out/lam_out, D_in/lam_in) | qablora_H |
| `rank` | the nominal rank r; BLoRA's factors have R = lam * r, LoRA's R = r | | D_rank |
| `scaling` | s = lora_alpha / rank, or lora_alpha / sqrt(rank) with `--scaling rslora` | | s |
| `lam_in`, `lam_out` | inputs averaged, outputs repeated; written `4x8`, or `2` for `2x2` | | lambda_1, lambda_2 |
| `operators` | how inputs are compressed (C) and outputs restored (R); default avgpool | | Table 6 |
| `tile` | the largest rectangle on which delta_W is constant: lam, or 1x1 | | |
| `iec_a`, `iec_b` | the scalars of IR-QLoRA's two shortcuts | (1,) | |
| `log_factor` | ln of the factor on each scale, in `peqa.py` and `scaleoffset.py` | (D_out/n_out, D_in/n_in) | |
| `omega` | LoTA's threshold: a code moves by one where abs(B A) is larger | | |

| file | method | lam_in x lam_out | core | merges into |
|---|---|---|---|---|
| `lora.py` | LoRA, QLoRA | 1 x 1 | B A | 16 bits |
| `blora.py` | BLoRA, Q-BLoRA | lam x lam | B A, rank lam * r | 16 bits; k bits if lam is a multiple of the block |
| `qalora.py` | QA-LoRA | group x 1 | B A | k bits |
| `qablora.py` | QA-BLoRA | n_in x n_out of the block | H | k bits |
| `irqlora.py` | IR-QLoRA | 1 x 1 | (B + iec_b R)(A + iec_a P) | 16 bits |
| `peqa.py` | PEQA | not additive: (scale + d_scale) * (codes - z) | | k bits |
| `lota.py` | LoTA-QAF | not additive: codes + t, offset + scale * mu, of ternary B A | | k bits |
| `scaleoffset.py` | scale and offset | not additive: f * W_hat + H / 8, one f and one H for each block | | k bits |

`adapter.py` states the facts of a method, and has the equations that all additive methods share: `delta(x)`, the cheap
path that training uses; `delta_weight()`, the dense matrix that it equals; `lora_factors()`, the A and B of the plain
LoRA that it equals, for tools that know no other adapter. A method's file has its equation, its factors and their
initial values. `operators.py` has the three ways to compress and restore. `adapted.py` puts an adapter beside any base
layer; `rounded.py` lets it move the layer's codes. `merge.py` merges it, exactly, or says why not. `restoration.py`
puts it beside another base (Kanda & Hatano). `peft_in.py` reads adapters that PEFT saved. docs/papers.md lists the
errata that docstrings name.
"""
from torch import nn

from adapters.adapted import AdaptedLinear
from adapters.adapter import Adapter
from adapters.blora import BLoRA
from adapters.irqlora import IRQLoRA
from adapters.lora import LoRA
from adapters.lota import LoTA
from adapters.peqa import PEQA
from adapters.qablora import QABLoRA
from adapters.qalora import QALoRA
from adapters.scaleoffset import ScaleOffset

ADAPTERS: dict[str, type[Adapter]] = {
    kind.name: kind for kind in (LoRA, BLoRA, QALoRA, QABLoRA, IRQLoRA, PEQA, LoTA, ScaleOffset)}


def adapted_layer(base: nn.Module, adapter: Adapter, dropout: float = 0.0) -> AdaptedLinear:
    """Base and adapter as one layer. Raises ValueError for a base that the adapter does not go with: for PEQA one
    without integer zero points, for LoTA one without whole levels, for `scaleoffset` one without codes."""
    return adapter.layer(base, adapter, dropout)
