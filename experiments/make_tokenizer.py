"""Train the embedded base's SentencePiece tokenizer on its pre-training text.

    python -m experiments.make_tokenizer DATA

DATA is a directory with the data sets of `--task pretrain` (tasks/pretrain.py). The tokenizer is written to
model/base/tokenizer.model.
"""
import argparse
import io
from pathlib import Path

import sentencepiece

from finetune.config import EMBEDDED_BASE
from model.files import write_bytes
from tasks.pretrain import documents

VOCABULARY = 4096


def options_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="read the data sets in this directory")
    return parser


def main() -> None:
    data = options_parser().parse_args().data
    model = io.BytesIO()
    lines = [line for text in documents(data) for line in text.split("\n") if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=VOCABULARY,
        # Decoding must give back the encoded text: no Unicode folding, all spaces and line breaks kept, a token for
        # every byte.
        normalization_rule_name="identity", remove_extra_whitespaces=False, byte_fallback=True,
        character_coverage=0.9995, user_defined_symbols=["\n"], split_digits=True,
        max_sentence_length=100_000, num_threads=1)
    write_bytes(EMBEDDED_BASE / "tokenizer.model", model.getvalue())


if __name__ == "__main__":
    main()
