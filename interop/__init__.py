"""The trained model, written for other tools. Each format is one file:

| `--format` | file | what is written | read by |
|---|---|---|---|
| safetensors | `hugging_face.py` | a dense model directory with Hugging Face names | transformers, vLLM |
| peft | `peft.py` | the adapter as the plain LoRA that it equals, and its base if that holds codes | PEFT |
| gguf | `gguf_writer.py` | one file: codes as Q4_1, Q5_1, Q4_0, Q5_0 or Q8_0, or dense weights | llama.cpp |

Each format has a class with three steps. Its constructor reads headers and refuses what the format cannot hold. `write`
writes the run's model. `reread` loads what was written. `hand_over.py` calls the steps in turn, and `comparison.py`
compares the two models, weight by weight and logit by logit. An export gets its final name only if it passes.

`trained.py` is the model that is exported. `gguf_metadata_writer.py` and `gguf_tokenizer_writer.py` write config and
tokenizer as GGUF metadata. `with_peft.py` exports a model with an adapter of PEFT merged into it. The way back is
elsewhere: adapters/peft_in.py reads PEFT's adapters, model/gguf_reader.py reads GGUF files.
"""
