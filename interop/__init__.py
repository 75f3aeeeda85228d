"""The model that was trained, for other tools. One format a file:

| `--format` | file | what comes out | read by |
|---|---|---|---|
| safetensors | `hugging_face.py` | a dense model directory with Hugging Face names | transformers, vLLM |
| peft | `peft.py` | the adapter as the plain LoRA that it equals, and its base where that is codes | PEFT |
| gguf | `gguf.py` | one file: codes as Q4_1, Q4_0, Q8_0, or dense | llama.cpp |

Each has a class with three steps, which `hand_over.py` takes in turn: its constructor looks at headers and refuses what cannot be; `write`
writes the model that the run is; `reread` loads what was written. `comparison.py` then compares the two, weight by weight and logit by logit, and
only what passes gets its final name. `trained.py` is the model that leaves; `peft_in.py` is the way back, PEFT's adapters into eval.py;
`gguf_metadata.py` and `gguf_tokenizer.py` write config and tokenizer as GGUF metadata.
"""
