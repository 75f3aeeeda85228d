"""The language model itself: the forward of Llama and its relatives, configurations, tokenizers, checkpoints in and out, generation.

| code name | meaning | shape |
|---|---|---|
| `tokens` | token ids | (B, T) |
| `mask` | True where a key is a real token, False where it is padding | (B, S), S = cached + T |
| `positions` | place of a token in its own sequence, padding not counted | (B, T) |
| `x` | the residual stream | (B, T, hidden_size) |
| `q, k, v` | queries, keys, values | (B, heads, T, head_dim) |
| `cos, sin` | rotary angles of each position | (B, 1, T, head_dim) |
| `window` | how many keys a query sees, its own included; None: all up to its own | |
| `allowed` | for each window among the layers: True where a query may look at a key; None: at all up to its own | (B or 1, 1, T, S) |
| `cap` | c of the soft cap c * tanh(x / c) | |

`llama.py` the forward; `config.py` Hugging Face config.json -> `LlamaConfig`; `families.py` what of it each family has of its own
(Llama, Mistral, Qwen2, Gemma 2); `checkpoint.py` safetensors in and out, tensor by tensor; `gguf.py` and `gguf_tokenizer.py` GGUF
files in; `hub.py` models of the Hugging Face hub; `tokenizer.py` sentencepiece and tokenizers behind one face; `generate.py` greedy
generation and sampling; `likelihood.py` log-likelihoods of continuations, what they share computed once; `base/` the small embedded Llama and how it was made.
"""
