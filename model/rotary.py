"""Rotary positions: the frequencies of each scaling that is read, and the angles of a pass.

    cos, sin = a * cos(position * f_i), a * sin(position * f_i)      i = 0 .. d/2 - 1,   d = `rotary_dim`

| `rope_type` | f_i, from theta^(-2i/d) |
|---|---|
| none | as it is |
| linear | divided by `factor` |
| llama3 | slow ones divided by `factor`, fast ones kept, blended between |
| yarn | the same, with a blend that is linear in i |
| longrope | divided by `short_factor[i]`; in a pass longer than the original length, by `long_factor[i]` |

a is 1, but for yarn (0.1 ln(factor) + 1) and longrope (sqrt(1 + ln(factor) / ln(original length))). A config may state
it as `attention_factor`.

longrope decides by the length of the pass, that is by its longest row with what is cached, as transformers does. So the
keys of one text are rotated by two tables if a cache is begun below the original length and goes on beyond it.
`generate` then reads the text again (as transformers' `generate` does).

Sources: Peng et al., YaRN, Sec. 3; Ding et al., LongRoPE, Sec. 3; transformers 5.24 for what absent keys mean.
"""
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.config import LlamaConfig


@dataclass(frozen=True)
class Rotary:
    """The rotary positions of one kind of layer."""
    frequencies: Tensor           # (rotary_dim/2,), float32
    factor: float = 1.0           # a above
    long: Tensor | None = None    # longrope: the frequencies of passes longer than `original`
    original: int | None = None

    def to(self, device: torch.device) -> "Rotary":
        return replace(self, frequencies=self.frequencies.to(device),
                       long=None if self.long is None else self.long.to(device))

    def angles(self, positions: Tensor, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin, (B, 1, T, rotary_dim). length: of the pass, cached tokens included."""
        frequencies = self.frequencies if self.original is None or length <= self.original else self.long
        return rotary_angles(frequencies, positions, dtype, self.factor)


def rotary(config: LlamaConfig, kind: str) -> Rotary:
    """kind: one of `config.rotary(layer)`."""
    if kind == "local":
        return Rotary(plain_frequencies(config.rope_local_theta, config.rotary_dim))
    scaling = config.rope_scaling or {}
    if scaling.get("rope_type") != "longrope":
        return Rotary(rotary_frequencies(config), attention_factor(config))
    plain = plain_frequencies(config.rope_theta, config.rotary_dim)
    short, long = (plain / torch.tensor(scaling[name], dtype=torch.float32) for name in ("short_factor", "long_factor"))
    return Rotary(short, attention_factor(config), long, scaling["original_max_position_embeddings"])


def plain_frequencies(theta: float, dim: int) -> Tensor:
    """theta^(-2i/dim) for i in 0 .. dim/2-1, float32."""
    exponent = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim
    return 1.0 / theta ** exponent


def rotary_frequencies(config: LlamaConfig) -> Tensor:
    """Those of layers without a rotary base of their own; those of longrope up to its original length.
    Shape (rotary_dim/2,), float32."""
    frequencies = plain_frequencies(config.rope_theta, config.rotary_dim)
    scaling = {name: value for name, value in (config.rope_scaling or {}).items() if name != "rope_type"}
    if not scaling:
        return frequencies
    match config.rope_scaling["rope_type"]:
        case "linear":
            return frequencies / scaling["factor"]
        case "llama3":
            return llama3_frequencies(frequencies, **scaling)
        case "yarn":
            return yarn_frequencies(frequencies, config.rope_theta, scaling)
        case _:
            return frequencies / torch.tensor(scaling["short_factor"], dtype=torch.float32)


def llama3_frequencies(frequencies: Tensor, factor: float, low_freq_factor: float, high_freq_factor: float,
                       original_max_position_embeddings: int) -> Tensor:
    """Llama 3.1's scaling: slow rotations are divided by `factor`, fast ones kept, and those between blended."""
    turns = original_max_position_embeddings * frequencies / (2 * math.pi)  # full turns within the original context
    keep = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    return keep * frequencies + (1 - keep) * frequencies / factor


YARN = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}  # what absent or null keys mean


def yarn_frequencies(frequencies: Tensor, theta: float, scaling: dict) -> Tensor:
    """YaRN: frequencies of more than `beta_fast` turns within the original context are kept, those of fewer than
    `beta_slow` are divided by `factor`. Between, the share falls linearly with the index i, not with the turns."""
    stated = {**YARN, **scaling}
    dim, original = 2 * len(frequencies), stated["original_max_position_embeddings"]

    def index(turns: float) -> float:
        """The i whose frequency makes so many turns: theta^(-2i/dim) * original = 2 pi turns."""
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))
    first, last = index(stated["beta_fast"]), index(stated["beta_slow"])
    if stated["truncate"]:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    steps = torch.arange(dim // 2, dtype=torch.float32)
    divided = torch.clamp((steps - first) / (last - first or 0.001), 0, 1)
    return frequencies / stated["factor"] * divided + frequencies * (1 - divided)


def attention_factor(config: LlamaConfig) -> float:
    """The factor of cos and sin, as stated, or as the method's paper suggests. Scores grow with its square."""
    scaling = config.rope_scaling or {}
    if "attention_factor" in scaling or scaling.get("rope_type") not in ("yarn", "longrope"):
        return scaling.get("attention_factor", 1.0)
    original = scaling["original_max_position_embeddings"]
    factor = scaling.get("factor") or config.max_position_embeddings / original
    if factor <= 1:
        return 1.0
    if scaling["rope_type"] == "longrope":
        return math.sqrt(1 + math.log(factor) / math.log(original))
    above, below = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if above and below:
        return (0.1 * above * math.log(factor) + 1) / (0.1 * below * math.log(factor) + 1)
    return 0.1 * math.log(factor) + 1


def rotary_angles(frequencies: Tensor, positions: Tensor, dtype: torch.dtype,
                  factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """cos and sin of position * frequency, (B, 1, T, rotary_dim). Angles are float32, or float64 in a float64 model."""
    wide = torch.promote_types(dtype, torch.float32)
    angles = positions[:, None, :, None].to(wide) * frequencies.to(wide)
    angles = torch.cat((angles, angles), dim=-1)
    cos, sin = angles.cos(), angles.sin()
    if factor != 1:
        cos, sin = cos * factor, sin * factor
    return cos.to(dtype), sin.to(dtype)
