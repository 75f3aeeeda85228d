"""The language model itself: the forward pass of Llama and its relatives, their configurations, tokenizers and files.

| code name | meaning | shape |
|---|---|---|
| `tokens` | token ids | (B, T) |
| `mask` | True where a key is a real token, False where it is padding | (B, S), S = cached + T |
| `positions` | position of a token in its own sequence, padding not counted | (B, T) |
| `x` | the residual stream | (B, T, hidden_size) |
| `q, k, v` | queries, keys, values | (B, heads, T, head_dim) |
| `cos, sin` | cosine and sine of the rotary angles of each position | (B, 1, T, rotary_dim) |
| `angles` | cos and sin of each kind of layer (`LlamaConfig.rotary`) | |
| `window` | number of keys that a query sees, its own included; None: all keys up to its own | |
| `allowed` | per window: True where a query may attend to a key; None: all keys up to its own | (B or 1, 1, T, S) |
| `cap` | c of the soft cap c * tanh(x / c) | |

| file | content |
|---|---|
| `llama.py` | the forward pass |
| `config.py` | `LlamaConfig`: sizes, rotary positions, and the fields in which families differ |
| `rotary.py` | frequencies of every rotary scaling, and angles |
| `families.py` | what each family adds to its `config.json`, as data |
| `config_json.py` | `config.json` -> `LlamaConfig`, and back; `rotary_json.py` the part about rotary positions |
| `other_models.py` | what is not read, in words; the text part of a model of images |
| `stored_names.py` | layers that files join, or store under other names |
| `directory.py` | what a model directory holds: its config.json, and which files its weights are in |
| `checkpoint.py` | safetensors in and out, tensor by tensor |
| `files.py` | atomic writes, JSON, checksums |
| `gguf_layout.py` | types of GGUF tensors, shared with the writer in `interop/` |
| `gguf_architectures.py` | names, metadata and row order of each architecture, shared as well |
| `gguf_file.py` | the bytes of a GGUF file, checked before they are used |
| `finite.py` | which weight or layer holds a NaN or an infinity |
| `gguf_reader.py` | GGUF files in: configuration and tensors |
| `gguf_tokenizer_reader.py` | GGUF files in: the tokenizer |
| `hub.py` | models of the Hugging Face Hub |
| `tokenizer.py` | one interface for sentencepiece and tokenizers files |
| `generate.py` | greedy generation and sampling, in batches |
| `likelihood.py` | log-likelihoods of continuations, with shared text computed once |
| `padding.py` | token rows of different lengths as one tensor |
| `base/` | the small embedded Llama, and how it was made |
"""
