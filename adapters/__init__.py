"""Adapters. One identity for every additive one (blora.txt, Eq. 2):

    delta_W = scaling / lam_in * kron(core, ones(lam_out, lam_in))

Averaging each group of lam_in inputs, multiplying by `core`, repeating each output lam_out times IS multiplication by
that matrix, which is constant on tiles of lam_in inputs x lam_out outputs.

| code name | meaning | shape | symbol in blora.txt |
|---|---|---|---|
| `core` | what acts between the pooled inputs and the outputs before repetition | (D_out/lam_out, D_in/lam_in) | B A, or H |
| `A`, `B` | low-rank factors of `core` | (R, D_in/lam_in), (D_out/lam_out, R) | qblora_A, qblora_B |
| `H` | the full core of QA-BLoRA | (D_out/lam_out, D_in/lam_in) | qablora_H |
| `rank` | the nominal rank r; BLoRA's factors have R = lam * r, LoRA's R = r | | D_rank |
| `scaling` | s = lora_alpha / rank | | s |
| `lam_in`, `lam_out` | inputs averaged, outputs repeated; written `4x8`, or `2` for `2x2` | | lambda_1, lambda_2 |

| file | method | lam_in x lam_out | core |
|---|---|---|---|
| `lora.py` | LoRA, QLoRA | 1 x 1 | B A |
| `blora.py` | BLoRA, Q-BLoRA | lam x lam | B A, rank lam * r |
| `qablora.py` | QA-BLoRA | n_in x n_out of the block | H |

Each of these files holds `delta(x)`, the cheap path that training uses, and `delta_weight()`, the dense matrix that it
equals. `adapted.py` puts an adapter beside any base layer; `merge.py` folds it in, exactly, or refuses.
"""
from adapters.blora import BLoRA
from adapters.lora import LoRA
from adapters.qablora import QABLoRA

ADAPTERS = {adapter.name: adapter for adapter in (LoRA, BLoRA, QABLoRA)}
