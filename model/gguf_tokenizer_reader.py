"""The tokenizer inside a GGUF file, written out as the files that a model directory has: whatever reads those reads it, and a run that
keeps them needs the GGUF file no more to make token ids. The ids are llama.cpp's for the same file.
"""
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from model.files import replace_file, write_json
from model.gguf_reader import GGUFFile

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # tokenizer.ggml.token_type; sentencepiece numbers its kinds alike
SENTENCEPIECE_BPE = 2                     # TrainerSpec.model_type

# What text is split into before any merge: the patterns published with Llama 3 (tiktoken) and Qwen2 (its tokenizer.json), which
# llama.cpp uses under the names that stand in `tokenizer.ggml.pre`. They differ in how many digits stay together.
LLAMA_3_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN_2_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def split_by(pattern: str) -> list:
    return [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


@dataclass(frozen=True)
class Splitting:
    """One value of `tokenizer.ggml.pre`."""
    steps: Callable[[], list]
    whole_words: bool = False  # a piece that is a token is taken as it is, whatever the merges say
    begin: bool = False        # a begin token where the file does not say


# Differs from Qwen2's own tokenizer.json, which composes letters and accents (NFC) first: llama.cpp does not.
SPLITTINGS = {
    "smollm": Splitting(lambda: [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    "llama-bpe": Splitting(lambda: split_by(LLAMA_3_SPLIT), whole_words=True, begin=True),
    "qwen2": Splitting(lambda: split_by(QWEN_2_SPLIT))}


def extract_gguf_tokenizer(file: GGUFFile, directory: Path) -> None:
    """tokenizer.json with tokenizer_config.json, or tokenizer.model. Raises ValueError for a kind that is not supported, and for
    metadata that do not make a tokenizer."""
    kind = file.get("tokenizer.ggml.model")
    if kind not in KINDS:
        raise ValueError(f"{file.path}: tokenizer {kind!r} is not supported; supported: {', '.join(KINDS)}")
    if file.metadata.get("tokenizer.ggml.add_eos_token"):
        raise ValueError(f"{file.path}: tokenizer.ggml.add_eos_token asks for an end token after every prompt, which is not supported")
    directory.mkdir(parents=True, exist_ok=True)
    KINDS[kind](file, directory)


def special_token(file: GGUFFile, kind: str) -> tuple[int, str] | None:
    """Id and text of the file's `bos` or `eos`."""
    tokens, token = file.get("tokenizer.ggml.tokens"), file.metadata.get(f"tokenizer.ggml.{kind}_token_id")
    if token is None:
        return None
    if token >= len(tokens):
        raise ValueError(f"{file.path}: tokenizer.ggml.{kind}_token_id is {token}, but there are {len(tokens)} tokens")
    return token, tokens[token]


def begin_token(file: GGUFFile, default: bool) -> tuple[int, str] | None:
    """What stands before every prompt, if anything does. Raises ValueError where the file asks for one and names none."""
    if not file.metadata.get("tokenizer.ggml.add_bos_token", default):
        return None
    file.get("tokenizer.ggml.bos_token_id")
    return special_token(file, "bos")


# ---- byte-level BPE -----------------------------------------------------------------------------------------------

def extract_byte_level(file: GGUFFile, directory: Path) -> None:
    tokenizer = byte_level(file)
    replace_file(directory / "tokenizer.json", lambda beside: tokenizer.save(str(beside)))
    ends = {f"{kind}_token": special_token(file, kind) for kind in ("bos", "eos")}
    write_json(directory / "tokenizer_config.json", {name: token[1] for name, token in ends.items() if token})


def byte_level(file: GGUFFile) -> tokenizers.Tokenizer:
    name = file.get("tokenizer.ggml.pre")
    if name not in SPLITTINGS:
        raise ValueError(f"{file.path}: tokenizer.ggml.pre {name!r} is not supported; supported: {', '.join(SPLITTINGS)}")
    tokens, splitting = file.get("tokenizer.ggml.tokens"), SPLITTINGS[name]
    merges = [tuple(merge.split(" ")) for merge in file.get("tokenizer.ggml.merges")]
    try:
        bpe = models.BPE({token: i for i, token in enumerate(tokens)}, merges, ignore_merges=splitting.whole_words)
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{file.path}: its tokens and merges are no byte-level BPE ({error})") from None
    tokenizer = tokenizers.Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splitting.steps())
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, file.get("tokenizer.ggml.token_type")):
        if kind in (CONTROL, USER_DEFINED):
            tokenizer.add_tokens([tokenizers.AddedToken(token, special=kind == CONTROL, normalized=False)])
    if begin := begin_token(file, splitting.begin):
        tokenizer.post_processor = processors.TemplateProcessing(single=[begin[1], "$A"], special_tokens=[begin[::-1]])
    return tokenizer


# ---- sentencepiece ------------------------------------------------------------------------------------------------

def extract_sentencepiece(file: GGUFFile, directory: Path) -> None:
    model = sentencepiece_model(file)
    replace_file(directory / "tokenizer.model", lambda beside: beside.write_bytes(model))


def sentencepiece_model(file: GGUFFile) -> bytes:
    """LLaMA-1/2's: BPE whose merges are ordered by score, with bytes for what no token covers and no normalization, so that
    sentencepiece and llama.cpp give the same ids. The numbers are those of sentencepiece_model.proto.

    Raises ValueError for user-defined tokens, around which the two put spaces differently."""
    tokens, scores, kinds = (file.get(f"tokenizer.ggml.{name}") for name in ("tokens", "scores", "token_type"))
    if USER_DEFINED in kinds:
        raise ValueError(f"{file.path}: user-defined tokens ({tokens[kinds.index(USER_DEFINED)]!r}) are not supported in a tokenizer of "
                         f"kind 'llama'")
    if UNKNOWN not in kinds:
        raise ValueError(f"{file.path}: a tokenizer of kind 'llama' without a token for the unknown, which sentencepiece must have")
    unknown = tokens[kinds.index(UNKNOWN)]
    begin, end = begin_token(file, default=True) or (None, unknown), special_token(file, "eos") or (None, unknown)  # not control: none
    pieces = [protobuf_field(1, protobuf_field(1, token) + protobuf_field(2, score) + protobuf_field(3, kind)) for token, score, kind in zip(tokens, scores, kinds)]
    trainer = protobuf_field(3, SENTENCEPIECE_BPE) + protobuf_field(35, True) + protobuf_field(45, unknown) + protobuf_field(46, begin[1]) + protobuf_field(47, end[1])
    normalizer = protobuf_field(1, "identity") + protobuf_field(3, file.metadata.get("tokenizer.ggml.add_space_prefix", True)) + protobuf_field(4, False)
    return b"".join(pieces) + protobuf_field(2, trainer) + protobuf_field(3, normalizer)


def protobuf_field(number: int, value: int | float | str | bytes) -> bytes:
    """One field of a protocol buffer: its number and how it is written, then the value."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(n: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow. `varint(300) == b"\\xac\\x02"`."""
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


KINDS = {"gpt2": extract_byte_level, "llama": extract_sentencepiece}
