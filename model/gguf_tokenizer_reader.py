"""GGUF files in: the tokenizer, extracted into the files that a model directory has.

A run that keeps these files no longer needs the GGUF file to make token ids. The ids are those of llama.cpp for the
same file.
"""
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from model.files import write_bytes, write_json, write_text
from model.gguf_file import GGUFFile

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type, as in sentencepiece
KINDS_OF_TOKENS = set(range(1, 7))
LARGEST_SCORE = 3.4e38
SENTENCEPIECE_BPE = 2                     # TrainerSpec.model_type

# The patterns that split text before any merge, as published with Llama 3 (tiktoken) and Qwen2 (its tokenizer.json).
# llama.cpp uses them under the names in `tokenizer.ggml.pre`. They differ in the number of digits that stay together.
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
           r"\s+(?!\S)|\s+")
LLAMA_3_SPLIT = PATTERN.replace("DIGITS", r"\p{N}{1,3}")
QWEN_2_SPLIT = PATTERN.replace("DIGITS", r"\p{N}")


def split_by(pattern: str) -> list:
    return [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


@dataclass(frozen=True)
class Splitting:
    """What a value of `tokenizer.ggml.pre` means."""
    steps: Callable[[], list]
    whole_words: bool = False  # a piece that is itself a token is kept whole, whatever the merges say
    begin: bool = False        # add a begin token if the file does not say


# Differs from Qwen2's own tokenizer.json, which first composes letters and accents (NFC), because llama.cpp does not.
SPLITTINGS = {
    "smollm": Splitting(lambda: [pre_tokenizers.Digits(individual_digits=True),
                                 pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    "llama-bpe": Splitting(lambda: split_by(LLAMA_3_SPLIT), whole_words=True, begin=True),
    "qwen2": Splitting(lambda: split_by(QWEN_2_SPLIT))}


def extract_gguf_tokenizer(file: GGUFFile, directory: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json, or tokenizer.model. Also chat_template.jinja, if the file has a
    template.

    Raises ValueError for an unsupported kind, and for metadata that do not make a tokenizer."""
    kind = file.get("tokenizer.ggml.model", str)
    if kind not in KINDS:
        raise ValueError(f"{file.path}: tokenizer {kind!r} is not supported; supported: {', '.join(KINDS)}")
    if file.get("tokenizer.ggml.add_eos_token", bool, False):
        raise ValueError(f"{file.path}: tokenizer.ggml.add_eos_token is true, but an end token after every prompt "
                         f"is not supported")
    directory.mkdir(parents=True, exist_ok=True)
    KINDS[kind](file, directory)
    if template := file.get("tokenizer.chat_template", str, ""):
        write_text(directory / "chat_template.jinja", template)


def special_token(file: GGUFFile, kind: str) -> tuple[int, str] | None:
    """Id and text of the file's `bos` or `eos` token; None if it has none."""
    tokens, key = token_list(file), f"tokenizer.ggml.{kind}_token_id"
    if key not in file.metadata:
        return None
    token = file.get(key, int)
    if not 0 <= token < len(tokens):
        raise ValueError(f"{file.path}: tokenizer.ggml.{kind}_token_id is {token}, but there are {len(tokens)} tokens")
    return token, tokens[token]


def token_list(file: GGUFFile) -> list[str]:
    """Every token's text, by id. Raises ValueError for an empty list, for texts that two ids have, and for another
    number of token types or scores."""
    tokens = file.list_of("tokenizer.ggml.tokens", str)
    if len(set(tokens)) < len(tokens) or not tokens:
        raise ValueError(f"{file.path}: tokenizer.ggml.tokens holds {len(tokens)} tokens, but {len(set(tokens))} "
                         f"different ones")
    for name, kind in (("token_type", int), ("scores", float)):
        key = f"tokenizer.ggml.{name}"
        if key in file.metadata and len(file.list_of(key, kind)) != len(tokens):
            raise ValueError(f"{file.path}: {key} holds {len(file.metadata[key])} values, but there are {len(tokens)} "
                             f"tokens")
    return tokens


def begin_token(file: GGUFFile, default: bool) -> tuple[int, str] | None:
    """The token before every prompt, or None. Raises ValueError if the file asks for one and names none."""
    if not file.get("tokenizer.ggml.add_bos_token", bool, default):
        return None
    file.get("tokenizer.ggml.bos_token_id")
    return special_token(file, "bos")


# ---- byte-level BPE -----------------------------------------------------------------------------------------------

def extract_byte_level(file: GGUFFile, directory: Path) -> None:
    write_text(directory / "tokenizer.json", byte_level(file).to_str(pretty=True))
    ends = {f"{kind}_token": special_token(file, kind) for kind in ("bos", "eos")}
    write_json(directory / "tokenizer_config.json", {name: token[1] for name, token in ends.items() if token})


def byte_level(file: GGUFFile) -> tokenizers.Tokenizer:
    name = file.get("tokenizer.ggml.pre", str)
    if name not in SPLITTINGS:
        supported = ", ".join(SPLITTINGS)
        raise ValueError(f"{file.path}: tokenizer.ggml.pre {name!r} is not supported; supported: {supported}")
    tokens, splitting = token_list(file), SPLITTINGS[name]
    merges = [tuple(merge.split(" ")) for merge in file.list_of("tokenizer.ggml.merges", str)]
    try:
        bpe = models.BPE({token: i for i, token in enumerate(tokens)}, merges, ignore_merges=splitting.whole_words)
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{file.path}: tokens and merges do not make a byte-level BPE ({error})") from None
    tokenizer = tokenizers.Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splitting.steps())
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, file.list_of("tokenizer.ggml.token_type", int), strict=True):
        if kind in (CONTROL, USER_DEFINED):
            tokenizer.add_tokens([tokenizers.AddedToken(token, special=kind == CONTROL, normalized=False)])
    if begin := begin_token(file, splitting.begin):
        tokenizer.post_processor = processors.TemplateProcessing(single=[begin[1], "$A"], special_tokens=[begin[::-1]])
    return tokenizer


# ---- sentencepiece ------------------------------------------------------------------------------------------------

def extract_sentencepiece(file: GGUFFile, directory: Path) -> None:
    """Writes tokenizer.model. Also tokenizer_config.json, if there are added tokens: one id each wherever their text
    stands, with sentencepiece's space before the text after them (`legacy`), as in llama.cpp."""
    model = sentencepiece_model(file)
    write_bytes(directory / "tokenizer.model", model)
    if added := added_tokens(file):
        names = {f"{kind}_token": special_token(file, kind) for kind in ("bos", "eos")}
        write_json(directory / "tokenizer_config.json", {
            **{name: token[1] for name, token in names.items() if token},
            "add_bos_token": begin_token(file, default=True) is not None, "legacy": True,
            "added_tokens_decoder": {str(i): {"content": text, "special": special}
                                     for i, (text, special) in added.items()}})


def added_tokens(file: GGUFFile) -> dict[int, tuple[str, bool]]:
    """id -> (text, whether it is special): control tokens other than the begin and end tokens, and all control and
    user-defined tokens behind the last piece of the vocabulary."""
    tokens, kinds = token_list(file), file.list_of("tokenizer.ggml.token_type", int)
    last = max((i for i, kind in enumerate(kinds) if kind in (NORMAL, BYTE)), default=-1)
    named = {token[0] for kind in ("bos", "eos") if (token := special_token(file, kind))}
    return {i: (token, kind == CONTROL) for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if token and (kind in (CONTROL, USER_DEFINED) if i > last else kind == CONTROL and i not in named)}


def sentencepiece_model(file: GGUFFile) -> bytes:
    """The tokenizer of LLaMA-1/2: a BPE whose merges are ordered by score.

    Text that no token covers becomes bytes, and nothing is normalized, so sentencepiece and llama.cpp give the same
    ids. Field numbers are those of sentencepiece_model.proto.
    Tokens added behind the pieces are control tokens to sentencepiece. Raises ValueError for user-defined tokens among
    the pieces, around which the two programs place spaces differently, and for a vocabulary without an unknown
    token."""
    tokens = token_list(file)
    scores, kinds = (file.list_of(f"tokenizer.ggml.{name}", kind) for name, kind in (("scores", float),
                                                                                     ("token_type", int)))
    if wrong := set(kinds) - KINDS_OF_TOKENS:
        raise ValueError(f"{file.path}: tokenizer.ggml.token_type holds {min(wrong)}, but must hold 1 to 6")
    if not all(abs(score) <= LARGEST_SCORE for score in scores):
        raise ValueError(f"{file.path}: tokenizer.ggml.scores holds a value that is no finite float32")
    added = added_tokens(file)
    if inside := [i for i, kind in enumerate(kinds) if kind == USER_DEFINED and i not in added]:
        token = tokens[inside[0]]
        raise ValueError(f"{file.path}: user-defined tokens ({token!r}) are not supported in a tokenizer of kind "
                         f"'llama'")
    if UNKNOWN not in kinds:
        raise ValueError(f"{file.path}: a tokenizer of kind 'llama' needs an unknown token, and this one has none")
    unknown = tokens[kinds.index(UNKNOWN)]
    # sentencepiece has no begin (end) token if that name belongs to a token that is not a control token.
    begin, end = begin_token(file, default=True) or (None, unknown), special_token(file, "eos") or (None, unknown)
    pieces = [message({1: token, 2: score, 3: CONTROL if kind == USER_DEFINED else kind})
              for token, score, kind in zip(tokens, scores, kinds, strict=True)]
    trainer = message({3: SENTENCEPIECE_BPE, 35: True, 45: unknown, 46: begin[1], 47: end[1]})
    add_space_prefix = file.get("tokenizer.ggml.add_space_prefix", bool, True)
    normalizer = message({1: "identity", 3: add_space_prefix, 4: False})
    return b"".join(protobuf_field(1, piece) for piece in pieces) + message({2: trainer, 3: normalizer})


def message(fields: dict[int, int | float | str | bytes]) -> bytes:
    """A protocol buffer of these fields: number -> value."""
    return b"".join(protobuf_field(number, value) for number, value in fields.items())


def protobuf_field(number: int, value: int | float | str | bytes) -> bytes:
    """One field of a protocol buffer: its number and wire type, then the value."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(n: int) -> bytes:
    """Seven bits per byte, lowest first; the eighth bit says that more bytes follow. `varint(300) == b"\\xac\\x02"`"""
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


KINDS = {"gpt2": extract_byte_level, "llama": extract_sentencepiece}
