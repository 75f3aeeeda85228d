"""A tokenizer written as the metadata of a GGUF file: the inverse of model/gguf_tokenizer_reader.py.

Each result is read again by that module. The export is refused unless the file's tokenizer gives the run's own ids on
the texts of comparison.py.
"""
import unicodedata
from pathlib import Path
from tempfile import TemporaryDirectory

import sentencepiece
import tokenizers
from tokenizers import pre_tokenizers

from interop.comparison import TEXTS
from model.config import LlamaConfig
from model.files import read_json, say_once
from model.gguf_layout import END_KEYS, END_TEXTS
from model.gguf_reader import GGUFFile
from model.gguf_tokenizer_reader import (
    BYTE,
    CONTROL,
    NORMAL,
    SPLITTINGS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    extract_gguf_tokenizer,
)
from model.stated_tokens import Added, padded, stated_beside
from model.tokenizer import Tokenizer, load_tokenizer
from model.tokenizer_files import beside, tokenizer_file

WORD_BEGIN = "\u2581"  # sentencepiece's mark
ADDED_SCORE, UNUSED_SCORE = -1e3, -1e4  # as llama.cpp's own converter writes them


def tokenizer_keys(directory: Path, config: LlamaConfig, eos_ids: tuple[int, ...]) -> dict[str, object]:
    """All keys tokenizer.ggml.* for the tokenizer of a model directory. Raises ValueError, naming the file, for a
    tokenizer that llama.cpp would read differently."""
    path, tokenizer = tokenizer_file(directory), load_tokenizer(directory)
    keys = sentencepiece_keys(path) if path.suffix == ".model" else json_keys(path)
    added = stated_beside(directory).added or {}
    place_added(keys, added)
    begin = tokenizer.encode("")
    if len(begin) > 1:
        raise ValueError(f"{path} puts {len(begin)} tokens around every prompt; a GGUF file can only name one, "
                         f"the begin token")
    bos = begin[0] if begin else config.bos_token_id
    ends = dict(zip(END_KEYS, eos_ids, strict=False))
    missing = config.vocab_size - len(keys["tokens"])
    if missing < 0:
        raise ValueError(f"{path} has {-missing} tokens more than the model's vocab_size {config.vocab_size}")
    fill_up(keys, config.vocab_size)
    keys.update({"add_bos_token": bool(begin), **({} if bos is None else {"bos_token_id": bos}),
                 **{f"{end}_token_id": i for end, i in ends.items()}})
    found = {f"tokenizer.ggml.{name}": value for name, value in keys.items()}
    found |= chat_templates(directory)
    again = check_ids(path, found, tokenizer, [*TEXTS, *texts_of_user_defined(keys)])
    note_added(path, tokenizer, again, added)
    if more := [keys["tokens"][i] for i in eos_ids[len(END_KEYS):] if keys["tokens"][i] not in END_TEXTS]:
        say_once(f"{path}: a GGUF file has keys for {len(END_KEYS)} end tokens, and the model has {len(eos_ids)}: "
                 f"{', '.join(map(repr, more))} will not end an answer in llama.cpp")
    return found


def chat_templates(directory: Path) -> dict[str, object]:
    """tokenizer.chat_template: of chat_template.jinja, as in transformers, or else of tokenizer_config.json. A list of
    templates there has one named default; the others become tokenizer.chat_template.NAME."""
    file = directory / "chat_template.jinja"
    try:
        stated = file.read_text(encoding="utf-8") if file.is_file() else beside(file).get("chat_template")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text ({error})") from None
    if isinstance(stated, str):
        return {"tokenizer.chat_template": stated}
    listed = stated if isinstance(stated, list) else []
    named = {str(t["name"]): t["template"] for t in listed
             if isinstance(t, dict) and "name" in t and isinstance(t.get("template"), str)}
    found: dict[str, object] = {"tokenizer.chat_template" if name == "default" else f"tokenizer.chat_template.{name}":
                                template for name, template in named.items()}
    others = [name for name in named if name != "default"]
    return {**found, **({"tokenizer.chat_templates": others} if others else {})}


def fill_up(keys: dict[str, list], size: int) -> None:
    """Unused tokens up to that size of the vocabulary."""
    first = len(keys["tokens"])
    keys["tokens"] += map(padded, range(first, size))
    keys["token_type"] += [UNUSED] * (size - first)
    if "scores" in keys:
        keys["scores"] += [UNUSED_SCORE] * (size - first)


def place_added(keys: dict[str, list], added: dict[int, Added]) -> None:
    """The tokens that only the files beside the tokenizer file name, at their ids."""
    for i, token in added.items():
        fill_up(keys, i + 1)
        if keys["token_type"][i] not in (NORMAL, UNUSED):
            continue  # the tokenizer file says what it is
        keys["tokens"][i], keys["token_type"][i] = token.text, CONTROL if token.special else USER_DEFINED
        if "scores" in keys:
            keys["scores"][i] = ADDED_SCORE


def note_added(path: Path, tokenizer: Tokenizer, again: Tokenizer, added: dict[int, Added]) -> None:
    """Says so if llama.cpp gives other ids to text around an added token. It puts sentencepiece's space before the text
    after each, and takes no spaces away beside it."""
    for token in added.values():
        if any(tokenizer.encode(text) != again.encode(text) for text in (f"a{token.text}b", f"a {token.text} b")):
            say_once(f"{path}: llama.cpp treats spaces around added tokens such as {token.text!r} in its own way: text "
                     f"beside them gets other ids there, all other text the same (this tokenizer: legacy, lstrip, "
                     f"rstrip in tokenizer_config.json)")
            return


def texts_of_user_defined(keys: dict[str, list]) -> list[str]:
    """A text around each normal token of score 0, the score of user-defined tokens. sentencepiece never splits such a
    token, wherever it stands, and a GGUF file cannot say so in the same way. A token of a single character, such as the
    line break of the embedded base, is a normal token to both."""
    tokens, scores, kinds = keys["tokens"], keys.get("scores", ()), keys["token_type"]
    marked = [token for token, score, kind in zip(tokens, scores, kinds, strict=False) if score == 0 and kind == NORMAL]
    return [f"a{token}b {token}".replace(WORD_BEGIN, " ") for token in marked]


def check_ids(path: Path, metadata: dict[str, object], tokenizer: Tokenizer, texts: list[str]) -> Tokenizer:
    """The tokenizer of the metadata, read again. Raises ValueError unless it gives the tokenizer's own ids for all
    texts."""
    with TemporaryDirectory() as written:
        try:
            extract_gguf_tokenizer(GGUFFile(path, metadata, {}), Path(written))
            again = load_tokenizer(Path(written))
        except ValueError as error:
            raise ValueError(f"{error} (in the GGUF file that would be written)") from None
        for text in map(composed, texts) if composes(path) else texts:
            if again.encode(text) != tokenizer.encode(text):
                raise ValueError(f"{path}: a GGUF file would give other tokens for {text[:40]!r}...: llama.cpp does "
                                 f"not have this kind of tokenizer. Use --format safetensors")
        return again


def composes(path: Path) -> bool:
    """Whether the tokenizer first composes letters and accents (NFC), as Qwen2's does. llama.cpp does not compose. It
    gives other ids for text that is not composed yet, which is rare, and the same ids for all other text."""
    return path.suffix == ".json" and (read_json(path).get("normalizer") or {}).get("type") == "NFC"


def composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


# ---- sentencepiece ------------------------------------------------------------------------------------------------

def sentencepiece_keys(path: Path) -> dict[str, list]:
    """tokenizer.ggml.* of a sentencepiece model. GGUF numbers the kinds of token as sentencepiece does."""
    p = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ids = range(p.vocab_size())
    tokens = [p.id_to_piece(i) for i in ids]
    kinds = [UNKNOWN if p.is_unknown(i) else CONTROL if p.is_control(i) else BYTE if p.is_byte(i)
             else UNUSED if p.is_unused(i) else NORMAL for i in ids]
    return {"model": "llama", "pre": "default", "tokens": tokens, "scores": [p.get_score(i) for i in ids],
            "token_type": kinds, "unknown_token_id": p.unk_id(),
            "add_space_prefix": p.encode("a", out_type=str)[0].startswith(WORD_BEGIN)}


def byte_fallback_keys(model: dict, added: list[dict], path: Path) -> dict[str, list]:
    """A sentencepiece BPE that was converted to a tokenizer.json. A token's score orders the merges, and so does the
    position of the first merge that makes it: score = -position."""
    tokens = tokens_of(model, added)
    scores = dict.fromkeys(tokens, 0.0)
    for place, merge in reversed(list(enumerate(merges_of(model)))):
        scores["".join(merge)] = -float(place)
    control = {token["content"] for token in added if token["special"]}
    kinds = [UNKNOWN if token == model["unk_token"] else CONTROL if token in control else BYTE if is_byte(token)
             else NORMAL for token in tokens]
    whole = tokenizers.Tokenizer.from_file(str(path))
    begins = whole.encode("a", add_special_tokens=False).tokens[0].startswith(WORD_BEGIN)
    return {"model": "llama", "pre": "default", "tokens": tokens, "scores": [scores[token] for token in tokens],
            "token_type": kinds, "unknown_token_id": tokens.index(model["unk_token"]), "add_space_prefix": begins}


def is_byte(token: str) -> bool:
    """`is_byte("<0x0A>")`"""
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


# ---- tokenizer.json -----------------------------------------------------------------------------------------------

def json_keys(path: Path) -> dict[str, list]:
    whole = read_json(path)
    model, added = whole["model"], whole.get("added_tokens") or []
    if model.get("type") != "BPE":
        raise ValueError(f"{path}: a tokenizer of kind {model.get('type')!r} is not written as GGUF; only BPE is. "
                         f"Use --format safetensors")
    return byte_fallback_keys(model, added, path) if model.get("byte_fallback") else byte_level_keys(model, added, path)


def byte_level_keys(model: dict, added: list[dict], path: Path) -> dict[str, list]:
    kinds = {token["content"]: CONTROL if token["special"] else USER_DEFINED for token in added}
    tokens = tokens_of(model, added)
    return {"model": "gpt2", "pre": splitting_of(path), "tokens": tokens,
            "token_type": [kinds.get(token, NORMAL) for token in tokens],
            "merges": [" ".join(merge) for merge in merges_of(model)]}


def splitting_of(path: Path) -> str:
    """The value of `tokenizer.ggml.pre` under which llama.cpp splits text as this file does, before any merge. It is
    found by the pieces of the fixed texts, not by how the file writes its rules. Raises ValueError if there is none."""
    own = tokenizers.Tokenizer.from_file(str(path))
    for name, splitting in SPLITTINGS.items():
        ours, theirs = own.pre_tokenizer, pre_tokenizers.Sequence(splitting.steps())
        if ours and all(ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text) for text in TEXTS):
            return name
    raise ValueError(f"{path} splits text in none of the ways that are known here for llama.cpp (tokenizer.ggml.pre): "
                     f"{', '.join(SPLITTINGS)}. Use --format safetensors")


def tokens_of(model: dict, added: list[dict]) -> list[str]:
    """The tokens, by id. Ids without a token get a placeholder."""
    vocabulary = {**model["vocab"], **{token["content"]: token["id"] for token in added}}
    by_id = {i: token for token, i in vocabulary.items()}
    return [by_id.get(i, padded(i)) for i in range(max(by_id) + 1)]


def merges_of(model: dict) -> list[tuple[str, str]]:
    """The merges as pairs. Older files write a pair as one text with a space."""
    return [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
