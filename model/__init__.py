"""The language model itself: a Llama forward, its configuration, tokenizers, checkpoints in and out, generation.

| code name | meaning | shape |
|---|---|---|
| `tokens` | token ids | (B, T) |
| `mask` | True where a key is a real token, False where it is padding | (B, S), S = cached + T |
| `positions` | place of a token in its own sequence, padding not counted | (B, T) |
| `x` | the residual stream | (B, T, hidden_size) |
| `q, k, v` | queries, keys, values | (B, heads, T, head_dim) |
| `cos, sin` | rotary angles of each position | (B, 1, T, head_dim) |

`llama.py` the forward; `config.py` Hugging Face config.json -> `LlamaConfig`; `checkpoint.py` safetensors in and out,
tensor by tensor; `gguf.py` and `gguf_tokenizer.py` GGUF files in; `tokenizer.py` sentencepiece and tokenizers behind one
face; `generate.py` greedy generation; `base/` the small embedded Llama and how it was made.
"""
