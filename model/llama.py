"""The forward pass of Llama and its relatives, exact to the published checkpoints.

    x = x + attention(rms_norm(x))      grouped-query attention with rotary positions
    x = x + mlp(rms_norm(x))            SwiGLU

The other families (families.py) differ from this in details. A field of `LlamaConfig` then selects a small module or
function when the model is built. Module names are those of Hugging Face checkpoints, so a state dict loads without
renaming.

Every linear layer can be replaced by any module that maps (..., D_in) to (..., D_out), such as a quantized or an
adapted layer. This file imports none of them.
"""
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from model.config import LlamaConfig
from model.fused import FrozenLinear, FrozenNorm, GatedSiLU, Rotation, ShortAttention, grouped_attention, run
from model.rotary import Rotary, rotary

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu, "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh")}


class Linear(nn.Linear):
    """y = x @ weight.T + bias, computed in the type of x: float32 weights can serve a bfloat16 forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.weight.dtype != x.dtype and not any(p.requires_grad for p in self.parameters()):
            return run(FrozenLinear, x, self.weight, bias)
        return F.linear(x, self.weight.to(x.dtype), bias)


class RMSNorm(nn.Module):
    """weight * x / sqrt(mean(x^2) + eps), statistics in at least float32."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if not self.weight.requires_grad:
            return run(FrozenNorm, x, self.weight, self.eps)
        return self.weight.to(x.dtype) * self.normed(x).to(x.dtype)

    def normed(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)


class ZeroCenteredRMSNorm(RMSNorm):
    """(1 + weight) * x / sqrt(mean(x^2) + eps), statistics and product in at least float32.

    Gemma's norm: its checkpoints store weights minus 1."""

    def __init__(self, size: int, eps: float):
        super().__init__(size, eps)
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.normed(x)
        return ((1 + self.weight.to(normed.dtype)) * normed).to(x.dtype)


def new_norm(config: LlamaConfig, size: int | None = None) -> RMSNorm:
    kind = ZeroCenteredRMSNorm if config.zero_centered_norms else RMSNorm
    return kind(size or config.hidden_size, config.rms_norm_eps)


def repeat_heads(x: Tensor, times: int) -> Tensor:
    """(B, kv_heads, S, head_dim) -> (B, kv_heads * times, S, head_dim): each key-value head serves `times` queries."""
    return x if times == 1 else x.repeat_interleave(times, dim=1)


# Tokens, for training on a CPU. The fused kernel's forward is faster there, but its backward is slower than plain
# products. Measured in bfloat16, forward and backward, 9 heads: 16 ms against 3 for 32 x 28 tokens, 25 against 8 for
# 8 x 127, 50 against 58 for 8 x 256.
SHORT = 128

# New tokens, without autograd on a CPU. Up to so many, products are faster than the fused kernel. Measured in bfloat16:
# 0.2 ms against 1.8 for 1 token after 79 others in 32 rows, 1.9 against 3.4 for 4 after 696 in 16 rows.
FEW = 16

Allowed = dict[int | None, Tensor | None]  # a layer's window (None: no window) -> its `allowed_keys`
Angles = dict[str, tuple[Tensor, Tensor]]  # a layer's rotary positions (`LlamaConfig.rotary`) -> cos and sin


class KVCache:
    """Keys and values of every layer, in buffers allocated once. The first `length` tokens are filled."""

    def __init__(self, config: LlamaConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device):
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, capacity, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        end = self.length + k.shape[2]
        self.keys[layer, :, :, self.length:end] = k
        self.values[layer, :, :, self.length:end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def keep_rows(self, rows: Tensor) -> None:
        """Keep only these sequences of the batch."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]


def softcap(x: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(x / cap): close to x near 0, and never beyond cap. Without a cap: x."""
    return x if cap is None else cap * torch.tanh(x / cap)


def softcapped_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, scale: float, cap: float) -> Tensor:
    """softmax(softcap(q k^T * scale)) v, over the allowed keys. The fused kernels have no softcap."""
    k, v = (repeat_heads(x, q.shape[1] // x.shape[1]) for x in (k, v))
    if allowed is None:
        new, known = q.shape[-2], k.shape[-2]
        allowed = torch.ones(new, known, dtype=torch.bool, device=q.device).tril(known - new)
    scores = softcap(q @ k.transpose(-2, -1) * scale, cap).masked_fill(~allowed, -torch.inf)
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype) @ v


def fused_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, scale: float) -> Tensor:
    """softmax(q k^T * scale) v, over the allowed keys; None: all keys up to the query's own."""
    new, on_cpu, grad = q.shape[-2], q.device.type in ("cpu", "meta"), torch.is_grad_enabled()
    if on_cpu and not grad and new <= FEW and (new == 1 or allowed is not None):
        return grouped_attention(q, k, v, allowed, scale)
    short = on_cpu and grad and new <= SHORT
    if short and allowed is None and new == k.shape[-2]:
        return ShortAttention.apply(q, k, v, scale)
    causal, grouped = allowed is None and new > 1, q.shape[1] != k.shape[1]
    with sdpa_kernel(SDPBackend.MATH) if short else nullcontext():
        return F.scaled_dot_product_attention(q, k, v, allowed, is_causal=causal, scale=scale, enable_gqa=grouped)


class Attention(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim, self.scale = layer, config.head_dim, config.attention_scale
        self.window, self.rotary = config.window(layer), config.rotary(layer)
        cap = config.attention_softcap
        self.attend = fused_attention if cap is None else partial(softcapped_attention, cap=cap)
        q_size, kv_size = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, q_size, bias=config.attention_bias)
        self.k_proj = Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.v_proj = Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.o_proj = Linear(q_size, config.hidden_size, bias=config.o_bias)
        if config.qk_norm:
            self.q_norm, self.k_norm = new_norm(config, config.head_dim), new_norm(config, config.head_dim)
        self.qk_norm = config.qk_norm

    def forward(self, x: Tensor, angles: Angles, allowed: Allowed, cache: KVCache | None) -> Tensor:
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, heads, T, head_dim)
                   for proj in (self.q_proj, self.k_proj, self.v_proj))
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary:
            q, k = run(Rotation, q, *angles[self.rotary]), run(Rotation, k, *angles[self.rotary])
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        y = self.attend(q, k, v, allowed[self.window], self.scale)
        return self.o_proj(y.transpose(1, 2).flatten(2))  # (B, T, hidden_size)


class MLP(nn.Module):
    """down(activation(gate(x)) * up(x)): SwiGLU with SiLU, GeGLU with GELU."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(run(GatedSiLU, gate, up) if self.activation is F.silu else self.activation(gate) * up)


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""
    # The linear layers of its two halves in order of use, grouped by the input that they read. GPTQ calibrates them in
    # this order.
    halves = ((("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",)),
              (("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",)))
    stages = halves[0] + halves[1]

    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.input_layernorm = new_norm(config)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = new_norm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, angles: Angles, allowed: Allowed, cache: KVCache | None,
                places: Tensor | None = None) -> Tensor:
        """(B, T, hidden_size); or (n, hidden_size) at `places` (n,), counted through all rows."""
        x = self.with_attention(x, angles, allowed, cache)
        return self.with_mlp(x if places is None else x.flatten(0, 1)[places])

    def with_attention(self, x: Tensor, angles: Angles, allowed: Allowed, cache: KVCache | None) -> Tensor:
        return x + self.self_attn(self.input_layernorm(x), angles, allowed, cache)

    def with_mlp(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.post_attention_layernorm(x))


class DoublyNormedDecoderLayer(DecoderLayer):
    """x + norm(attention(norm(x))), then x + norm(mlp(norm(x))): the layer of Gemma 2 and 3.

    Here `post_attention_layernorm` follows attention, as its name says. In a Llama it precedes the MLP."""

    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__(config, layer)
        self.pre_feedforward_layernorm = new_norm(config)
        self.post_feedforward_layernorm = new_norm(config)

    def with_attention(self, x: Tensor, angles: Angles, allowed: Allowed, cache: KVCache | None) -> Tensor:
        return x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), angles, allowed, cache))

    def with_mlp(self, x: Tensor) -> Tensor:
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class ScaledDecoderLayer(DecoderLayer):
    """x + c * attention(norm(x)), then x + c * mlp(norm(x)): Granite's layer."""

    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__(config, layer)
        self.c = config.residual_multiplier

    def with_attention(self, x: Tensor, angles: Angles, allowed: Allowed, cache: KVCache | None) -> Tensor:
        return x + self.c * self.self_attn(self.input_layernorm(x), angles, allowed, cache)

    def with_mlp(self, x: Tensor) -> Tensor:
        return x + self.c * self.mlp(self.post_attention_layernorm(x))


def kind_of_layer(config: LlamaConfig) -> type[DecoderLayer]:
    if config.norms_after:
        return DoublyNormedDecoderLayer
    return DecoderLayer if config.residual_multiplier == 1 else ScaledDecoderLayer


class Decoder(nn.Module):
    """Everything but the vocabulary projection. `Llama` calls it `model`, because checkpoints have that prefix."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        # Without weights, nn.Embedding draws some: on the meta device this imports torch._dynamo, which takes 1.5 s.
        self.embed_tokens = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.hidden_size),
                                                         freeze=False)
        kind = kind_of_layer(config)
        self.layers = nn.ModuleList(kind(config, i) for i in range(config.num_hidden_layers))
        self.norm = new_norm(config)


class Llama(nn.Module):
    """tokens (B, T) -> logits (B, T, vocab_size). `dtype` is the type of activations; weights may have another."""

    def __init__(self, config: LlamaConfig, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.config, self.dtype = config, dtype
        self._rotaries: dict[torch.device, dict[str, Rotary]] = {}
        self.checkpointing = False  # True: training keeps a decoder layer's input only, and computes the layer again
        self.shared = False  # True: several processes share the decoder layers, and must compute each at the same time
        self.model = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    def rotaries(self, device: torch.device) -> dict[str, Rotary]:
        """The rotary positions of each kind of layer, copied to a device once and not at every forward pass."""
        if device not in self._rotaries:
            kinds = dict.fromkeys(self.config.rotary(layer) for layer in range(self.config.num_hidden_layers))
            self._rotaries[device] = {kind: rotary(self.config, kind).to(device) for kind in kinds if kind}
        return self._rotaries[device]

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        return KVCache(self.config, batch, capacity, self.dtype, self.device)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, cache: KVCache | None = None,
                at: Tensor | None = None) -> Tensor:
        """Logits (B, T, vocab_size), or (n, vocab_size) at the n positions where the boolean `at` (B, T) is True.

        mask: boolean (B, cached + T), True at real tokens. It may be None without padding. It may also be None with
        padding on the right whose logits nobody reads, because causality keeps that from real tokens.
        """
        return self.logits(self.hidden(tokens, mask, cache, None if at is None else at.flatten().nonzero()[:, 0]))

    def hidden(self, tokens: Tensor, mask: Tensor | None = None, cache: KVCache | None = None,
               places: Tensor | None = None) -> Tensor:
        """Output of the last decoder layer, (B, T, hidden_size); or (n, hidden_size) at `places` (n,), counted through
        all rows. No other token reads the last layer's MLP, so that it is computed at `places` only. The other
        arguments are those of `forward`."""
        x, angles, allowed = self.embed(tokens, mask, 0 if cache is None else cache.length)
        recomputes = self.checkpointing and torch.is_grad_enabled() and cache is None
        for layer in self.model.layers:
            at = places if layer is self.model.layers[-1] else None
            x = (checkpoint(layer, x, angles, allowed, None, at, use_reentrant=False) if recomputes
                 else layer(x, angles, allowed, cache, at))
        if cache is not None:
            cache.length += tokens.shape[1]
        return x

    def logits(self, x: Tensor) -> Tensor:
        """(..., vocab_size) from outputs of the last decoder layer x (..., hidden_size)."""
        logits = self.lm_head(self.model.norm(x))
        if self.config.logits_divisor != 1:
            logits = logits / self.config.logits_divisor
        return softcap(logits, self.config.final_softcap)

    def embed(self, tokens: Tensor, mask: Tensor | None = None,
              cached: int = 0) -> tuple[Tensor, Angles, Allowed]:
        """Inputs of the first decoder layer: x (B, T, hidden_size), rotary angles, and the allowed keys.

        The scale of the embeddings is rounded to the compute type, as in the training of the published models."""
        B, T = tokens.shape
        positions = token_positions(mask, cached, T, tokens.device)
        angles = self.angles(positions, cached + T)
        windows = {self.config.window(layer) for layer in range(self.config.num_hidden_layers)}
        allowed = {window: allowed_keys(mask, cached, T, window, tokens.device) for window in windows}
        return self.vectors(tokens), angles, allowed

    def angles(self, positions: Tensor, length: int) -> Angles:
        """length: of the pass, cached tokens included."""
        return {kind: rotary.angles(positions, length, self.dtype)
                for kind, rotary in self.rotaries(positions.device).items()}

    def vectors(self, tokens: Tensor) -> Tensor:
        """Scaled embeddings, (B, T, hidden_size)."""
        scale = torch.tensor(self.config.embedding_scale, dtype=self.dtype)
        return self.model.embed_tokens(tokens).to(self.dtype) * scale


def token_positions(mask: Tensor | None, cached: int, T: int, device: torch.device) -> Tensor:
    """(B or 1, T): the number of real tokens before this one in the same sequence."""
    if mask is None:
        return torch.arange(cached, cached + T, device=device)[None]
    return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, cached:]


def allowed_keys(mask: Tensor | None, cached: int, T: int, window: int | None, device: torch.device) -> Tensor | None:
    """(B or 1, 1, T, cached + T): query t may attend to key s if s is real and one of the last `window` tokens up to t.

    Every query may also attend to itself: a padded query then has a key, and its row, which nobody reads, holds no NaN.
    None means all keys up to t; attention has a faster path for that."""
    reach = window or cached + T
    if mask is None and (cached == 0 or T == 1) and cached + T <= reach:
        return None
    query = torch.arange(cached, cached + T, device=device)[:, None]
    key = torch.arange(cached + T, device=device)[None]
    near = (key <= query)[None]
    if window:
        position = token_positions(mask, 0, cached + T, device)  # padding between two tokens adds no distance
        near = near & (position[:, cached:, None] - position[:, None, :] < window)
    if mask is None:
        return near[:, None]
    return (near[:, None] & mask[:, None, None, :]) | (key == query)
