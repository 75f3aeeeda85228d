"""`LlamaConfig`: everything that the forward pass needs to know to build a model of any supported family."""
from dataclasses import dataclass


@dataclass(frozen=True)
class LlamaConfig:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None  # {"rope_type": "linear" | "llama3" | "yarn" | "longrope", ...}: model/rotary.py
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    model_type: str = "llama"
    # The fields in which families differ. The defaults are those of the first Llama.
    activation: str = "silu"
    attention_bias: bool = False                   # of q, k and v
    o_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None              # in the windowed layers: keys that a query sees, its own included
    windowed_layers: tuple[int, ...] = ()
    rope_local_theta: float | None = None          # the rotary base of windowed layers; None: as in all others
    unrotated_layers: tuple[int, ...] = ()         # layers without rotary positions
    partial_rotary_factor: float = 1.0             # the share of a head's dimensions that rotate: the first ones
    qk_norm: bool = False                          # a norm of every head of q and of k, before they rotate
    query_pre_attn_scalar: float | None = None     # scores are divided by its square root; None: by sqrt(head_dim)
    attention_multiplier: float | None = None      # scores are multiplied by it instead
    attention_softcap: float | None = None         # scores become cap * tanh(score / cap); None: no cap
    final_softcap: float | None = None             # the same for the logits
    zero_centered_norms: bool = False              # norms multiply by 1 + weight
    norms_after: bool = False                      # a second norm follows attention and the MLP
    embedding_scale: float = 1.0
    residual_multiplier: float = 1.0               # of what attention and the MLP add
    logits_divisor: float = 1.0

    def window(self, layer: int) -> int | None:
        return self.sliding_window if layer in self.windowed_layers else None

    def rotary(self, layer: int) -> str | None:
        """Which rotary positions a layer has: "all", "local" (with `rope_local_theta`), or None for none."""
        if layer in self.unrotated_layers:
            return None
        return "local" if self.rope_local_theta and layer in self.windowed_layers else "all"

    def rotates_anew_at(self, length: int) -> bool:
        """Whether a text that has grown to `length` tokens rotates all its keys by other angles than one token before:
        longrope, just beyond its original length. A cache is then of no use."""
        scaling = self.rope_scaling or {}
        return scaling.get("rope_type") == "longrope" and length == scaling["original_max_position_embeddings"] + 1

    @property
    def rotary_dim(self) -> int:
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def attention_scale(self) -> float:
        if self.attention_multiplier is not None:
            return self.attention_multiplier
        return (self.query_pre_attn_scalar or self.head_dim) ** -0.5
