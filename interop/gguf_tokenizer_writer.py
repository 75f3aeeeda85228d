"""A tokenizer written as the metadata of a GGUF file: the inverse of model/gguf_tokenizer_reader.py, by which each result is read again, so that the ids
of the file are the run's, on the texts of comparison.py at least, or the export is refused.
"""
import unicodedata
from pathlib import Path
from tempfile import TemporaryDirectory

import sentencepiece

from interop.comparison import TEXTS
from model.config import LlamaConfig
from model.files import read_json
from model.gguf_reader import GGUFFile
from model.gguf_tokenizer_reader import CONTROL, SPLITTINGS, UNKNOWN, USER_DEFINED, extract_gguf_tokenizer
from model.tokenizer import beside, load_tokenizer, tokenizer_file
from tokenizers import Tokenizer, pre_tokenizers

NORMAL, UNUSED, BYTE = 1, 5, 6
WORD_BEGIN = "\u2581"  # sentencepiece's mark


def tokenizer_keys(directory: Path, config: LlamaConfig, eos_ids: tuple[int, ...]) -> dict[str, object]:
    """tokenizer.ggml.*, complete, of the tokenizer in a model directory. Raises ValueError, naming the file, for one that llama.cpp would read
    otherwise."""
    path, tokenizer = tokenizer_file(directory), load_tokenizer(directory)
    keys = sentencepiece_keys(path) if path.suffix == ".model" else json_keys(path)
    begin = tokenizer.encode("")
    if len(begin) > 1:
        raise ValueError(f"{path} puts {len(begin)} tokens around every prompt; a GGUF file says of one only, the begin token")
    bos = begin[0] if begin else config.bos_token_id
    ends = dict(zip(("eos", "eot"), eos_ids))
    missing = config.vocab_size - len(keys["tokens"])
    if missing < 0:
        raise ValueError(f"{path} has {-missing} tokens more than the vocab_size {config.vocab_size} of the model")
    keys["tokens"] += [f"[PAD{i}]" for i in range(len(keys["tokens"]), config.vocab_size)]
    keys["token_type"] += [UNUSED] * missing
    if "scores" in keys:
        keys["scores"] += [-1e4] * missing
    keys.update({"add_bos_token": bool(begin), **({} if bos is None else {"bos_token_id": bos}), **{f"{end}_token_id": i for end, i in ends.items()}})
    found = {f"tokenizer.ggml.{name}": value for name, value in keys.items()}
    template = beside(path).get("chat_template")
    if isinstance(template, str):
        found["tokenizer.chat_template"] = template
    check_ids(path, found, tokenizer, [*TEXTS, *texts_of_user_defined(keys)])
    return found


def texts_of_user_defined(keys: dict[str, list]) -> list[str]:
    """Text around each token of score 0, as user-defined ones have it: sentencepiece takes them whole wherever they stand, which a GGUF file cannot
    say of them in the same way. One of a single character, as the small base's line break, is a normal token to both."""
    marked = [token for token, score, kind in zip(keys["tokens"], keys.get("scores", ()), keys["token_type"]) if score == 0 and kind == NORMAL]
    return [f"a{token}b {token}".replace(WORD_BEGIN, " ") for token in marked]


def check_ids(path: Path, metadata: dict[str, object], tokenizer, texts: list[str]) -> None:
    """Raises ValueError unless these metadata, read again, give the tokenizer's own ids."""
    with TemporaryDirectory() as written:
        try:
            extract_gguf_tokenizer(GGUFFile(path, metadata, {}), Path(written))
            again = load_tokenizer(Path(written))
        except ValueError as error:
            raise ValueError(f"{error} (as it would be in a GGUF file)") from None
        for text in map(composed, texts) if composes(path) else texts:
            if again.encode(text) != tokenizer.encode(text):
                raise ValueError(f"{path}: a GGUF file would make other tokens of {text[:40]!r}...: llama.cpp knows no tokenizer like this")


def composes(path: Path) -> bool:
    """Whether letters and accents are composed (NFC) before anything else, as Qwen2's tokenizer.json has it. llama.cpp does not: it gives other ids
    for text that is not composed, which is rare, and the same ids for all else."""
    return path.suffix == ".json" and (read_json(path).get("normalizer") or {}).get("type") == "NFC"


def composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


# ---- sentencepiece ------------------------------------------------------------------------------------------------

def sentencepiece_keys(path: Path) -> dict[str, list]:
    """The numbers of the kinds of token are the same in both."""
    p = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ids = range(p.vocab_size())
    tokens = [p.id_to_piece(i) for i in ids]
    kinds = [UNKNOWN if p.is_unknown(i) else CONTROL if p.is_control(i) else BYTE if p.is_byte(i) else UNUSED if p.is_unused(i) else NORMAL for i in ids]
    return {"model": "llama", "pre": "default", "tokens": tokens, "scores": [p.get_score(i) for i in ids], "token_type": kinds,
            "unknown_token_id": p.unk_id(), "add_space_prefix": p.encode("a", out_type=str)[0].startswith(WORD_BEGIN)}


def byte_fallback_keys(model: dict, added: list[dict], path: Path) -> dict[str, list]:
    """A sentencepiece BPE that was converted into a tokenizer.json: a token's score says when it is made, and so does the place of the first
    merge that makes it."""
    tokens = tokens_of(model, added)
    scores = dict.fromkeys(tokens, 0.0)
    for place, merge in reversed(list(enumerate(merges_of(model)))):
        scores["".join(merge)] = -float(place)
    control = {token["content"] for token in added if token["special"]}
    kinds = [UNKNOWN if token == model["unk_token"] else CONTROL if token in control else BYTE if is_byte(token) else NORMAL for token in tokens]
    begins = Tokenizer.from_file(str(path)).encode("a", add_special_tokens=False).tokens[0].startswith(WORD_BEGIN)
    return {"model": "llama", "pre": "default", "tokens": tokens, "scores": [scores[token] for token in tokens], "token_type": kinds,
            "unknown_token_id": tokens.index(model["unk_token"]), "add_space_prefix": begins}


def is_byte(token: str) -> bool:
    """`is_byte("<0x0A>")`"""
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


# ---- tokenizer.json -----------------------------------------------------------------------------------------------

def json_keys(path: Path) -> dict[str, list]:
    whole = read_json(path)
    model, added = whole["model"], whole.get("added_tokens") or []
    if model.get("type") != "BPE":
        raise ValueError(f"{path}: a tokenizer of kind {model.get('type')!r} has no place in a GGUF file of these architectures; BPE has")
    return byte_fallback_keys(model, added, path) if model.get("byte_fallback") else byte_level_keys(model, added, path)


def byte_level_keys(model: dict, added: list[dict], path: Path) -> dict[str, list]:
    kinds = {token["content"]: CONTROL if token["special"] else USER_DEFINED for token in added}
    tokens = tokens_of(model, added)
    return {"model": "gpt2", "pre": splitting_of(path), "tokens": tokens, "token_type": [kinds.get(token, NORMAL) for token in tokens],
            "merges": [" ".join(merge) for merge in merges_of(model)]}


def splitting_of(path: Path) -> str:
    """The value of `tokenizer.ggml.pre` under which text is split as this file splits it before any merge. Told by the pieces of the texts, not
    by how the file spells its rules. Raises ValueError where there is none."""
    own = Tokenizer.from_file(str(path))
    for name, splitting in SPLITTINGS.items():
        steps = pre_tokenizers.Sequence(splitting.steps())
        if own.pre_tokenizer and all(own.pre_tokenizer.pre_tokenize_str(text) == steps.pre_tokenize_str(text) for text in TEXTS):
            return name
    raise ValueError(f"{path} splits text in a way that has no name here for llama.cpp (tokenizer.ggml.pre); known: {', '.join(SPLITTINGS)}")


def tokens_of(model: dict, added: list[dict]) -> list[str]:
    """By id. Ids that nobody has get names of their own."""
    vocabulary = {**model["vocab"], **{token["content"]: token["id"] for token in added}}
    by_id = {i: token for token, i in vocabulary.items()}
    return [by_id.get(i, f"[PAD{i}]") for i in range(max(by_id) + 1)]


def merges_of(model: dict) -> list[tuple[str, str]]:
    """Pairs, which older files write with a space between them."""
    return [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
