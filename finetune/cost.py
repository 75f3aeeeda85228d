"""What a training step costs: operations that it cannot do without.

| in a step of n tokens | operations |
|---|---|
| every frozen weight of the decoder and of the head | 2 n forward, 2 n for the gradient of its input |
| attention, rows of T tokens, H heads of d numbers | 2 products of n T H d / 2 pairs, once forward, twice backward |
| `--gradient-checkpointing` | the decoder's forward pass once more |
| a weight that trains (`--method full`) | 2 n more |

The adapters' own operations are left out: 1 to 3 % of the base's.
"""
from model.config import LlamaConfig


def linear_weights(config: LlamaConfig) -> int:
    """Weights of the decoder's linear layers."""
    h, q = config.hidden_size, config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    return config.num_hidden_layers * (2 * h * q + 2 * h * kv + 3 * h * config.intermediate_size)


def step_operations(config: LlamaConfig, tokens: int, length: int, checkpointing: bool = False,
                    full: bool = False) -> int:
    """Multiplications and additions of a step of `tokens` tokens in rows of `length`."""
    width = config.num_attention_heads * config.head_dim
    decoder = 2 * tokens * linear_weights(config)
    attention = 2 * 2 * tokens * length // 2 * width * config.num_hidden_layers
    head = 2 * tokens * config.vocab_size * config.hidden_size
    passes = 3 if full else 2
    return passes * (decoder + head) + 3 * attention + checkpointing * (decoder + attention)
