"""Train the embedded base's sentencepiece tokenizer on the text that the base is pre-trained on.

    python -m experiments.make_tokenizer DATA

DATA holds the data sets of `--task pretrain` (tasks/pretrain.py). Writes model/base/tokenizer.model.
"""
import io
import sys
from pathlib import Path

import sentencepiece

from finetune.config import EMBEDDED_BASE
from tasks.pretrain import documents

VOCABULARY = 4096


def main(data: Path) -> None:
    model = io.BytesIO()
    lines = [line for text in documents(data) for line in text.split("\n") if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=VOCABULARY,
        # Text must come back as it went in: no Unicode folding, no lost spaces or line breaks, every byte has a token.
        normalization_rule_name="identity", remove_extra_whitespaces=False, byte_fallback=True, character_coverage=0.9995,
        user_defined_symbols=["\n"], split_digits=True, max_sentence_length=100_000, num_threads=1)
    (EMBEDDED_BASE / "tokenizer.model").write_bytes(model.getvalue())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
