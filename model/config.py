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
    rope_scaling: dict | None = None  # {"rope_type": "linear" | "llama3", "factor": ..., ...}
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
    query_pre_attn_scalar: float | None = None     # scores are divided by its square root; None: by sqrt(head_dim)
    attention_softcap: float | None = None         # scores become cap * tanh(score / cap); None: no cap
    final_softcap: float | None = None             # the same for the logits
    zero_centered_norms: bool = False              # norms multiply by 1 + weight
    norms_after: bool = False                      # a second norm follows attention and the MLP
    embedding_scale: float = 1.0

    def window(self, layer: int) -> int | None:
        return self.sliding_window if layer in self.windowed_layers else None

    @property
    def attention_scale(self) -> float:
        return (self.query_pre_attn_scalar or self.head_dim) ** -0.5
