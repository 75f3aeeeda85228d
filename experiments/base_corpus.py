"""Tokens to pre-train the embedded base on: the text of today, and a larger mix with freely licensed documentation.

    apt-get download PACKAGE ...        # those of PACKAGES, Debian 12; unpack each by: dpkg -x FILE.deb DEBS/PACKAGE
    python -m experiments.base_corpus DATA DEBS --to corpus [--tokens 36e6]

It writes four files of tokens (uint16, of the embedded tokenizer, compressed by xz), and about.json:

| file | what |
|---|---|
| today.xz | the training documents of `--task pretrain`, as tasks/pretrain.py holds them out with seed 0 |
| mix.xz | the same documents, training rows of more data sets, and paragraphs of PACKAGES, up to --tokens |
| held_out_today.xz | the validation documents of `--task pretrain` |
| held_out_wikitext2.xz | WikiText-2, test file: no base has seen any of it |

A paragraph goes into the mix once. A document is left out of the mix if it shares 13 words in a row with a held-out
text, or with a test or validation row of a data set in DATA.
"""
import argparse
import gzip
import hashlib
import html
import json
import lzma
import random
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.shared import experiment_parser, run_experiment
from finetune.config import EMBEDDED_BASE
from model.durable import replace_file
from model.files import write_json
from model.tokenizer import load_tokenizer
from tasks.pretrain import Pretrain
from tasks.rows import read_rows

# package of Debian 12 -> licence of its text
PACKAGES = {
    "wordnet-base": "WordNet 3.0 licence", "dict-jargon": "public domain", "dict-devil": "public domain",
    "debian-handbook": "CC BY-SA 3.0", "gnome-user-docs": "CC BY-SA 3.0", "sqlite3-doc": "public domain",
    "rust-doc": "MIT or Apache-2.0", "python3.11-doc": "PSF 2.0", "postgresql-doc-15": "PostgreSQL licence",
    "apache2-doc": "Apache-2.0", "nodejs-doc": "MIT", "python-django-doc": "BSD 3-Clause",
    "python-pandas-doc": "BSD 3-Clause", "python-scipy-doc": "BSD 3-Clause", "python-sklearn-doc": "BSD 3-Clause",
    "python-sympy-doc": "BSD 3-Clause", "sphinx-doc": "BSD 2-Clause",
    "nova-doc": "Apache-2.0", "neutron-doc": "Apache-2.0", "keystone-doc": "Apache-2.0", "cinder-doc": "Apache-2.0",
    "ironic-doc": "Apache-2.0", "erlang-doc": "Apache-2.0", "cmake-doc": "BSD 3-Clause", "bind9-doc": "MPL-2.0",
    "libreoffice-help-en-us": "MPL-2.0",
}
# file of DATA -> how a row is written; licences are in DATA's own README
MORE_ROWS = {
    "arc_easy/train.jsonl": lambda r: choices(r["question"], r["choices"]["text"]),
    "arc_challenge/train.jsonl": lambda r: choices(r["question"], r["choices"]["text"]),
    "openbookqa/train.jsonl": lambda r: choices(r["question_stem"], r["choices"]["text"]),
    "piqa/train.jsonl": lambda r: f"{r['goal']}\n{r['sol1'] if r['label'] == 0 else r['sol2']}",
    "winogrande/train.jsonl": lambda r: r["sentence"].replace("_", r[f"option{r['answer']}"]),
    "bitext_intent/train.jsonl": lambda r: f"{r['utterance']}\nIntent: {r['intent'].replace('_', ' ')}",
}
# never learned: what tasks are scored on, and everything of banking77, the task of the main job
SCORED = ("test.jsonl", "validation.jsonl", "dev.jsonl", "test.txt")
SHARED_WORDS, SHORTEST, PARAGRAPHS = 13, 60, 8  # words in a row; characters of a paragraph; paragraphs of a document
BLOCK = re.compile(r"<(p|li|dd|blockquote)\b[^>]*>(.*?)</\1>", re.DOTALL | re.IGNORECASE)
TAG, SPACE, WORD = re.compile(r"<[^>]*>"), re.compile(r"\s+"), re.compile(r"[a-z0-9]+")
PLAIN = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": " - ",
                       "\u2026": "...", "\u00b6": None, "\u2192": "->"})
OTHER_LANGUAGES = re.compile(r"/html/(?!en-US)[a-z]{2}-[A-Z]{2}/|\.(de|es|fr|ja|ko|pt-br|tr|zh-cn|da|ru)(\.[\w-]+)?$")


def choices(question: str, texts: list[str]) -> str:
    return "\n".join([f"Question: {question}", *(f"- {text}" for text in texts)])


# ---- text of packages -----------------------------------------------------------------------------------------------

def documents_of(package: str, folder: Path) -> Iterator[list[str]]:
    """The paragraphs of each file."""
    if package == "wordnet-base":
        return iter(glosses(folder))
    if package.startswith("dict-"):
        return dictionary(folder)
    return pages(folder)


def glosses(folder: Path) -> list[list[str]]:
    """`word, word: gloss` of each synset, twenty to a document."""
    lines = [line for file in sorted(folder.rglob("data.*")) for line in file.read_text("latin-1").splitlines()
             if line[:1].isdigit()]
    texts = [f"{', '.join(words_of_synset(line))}: {line.partition('|')[2].strip()}" for line in lines]
    return [["\n".join(texts[start:start + 20])] for start in range(0, len(texts), 20)]


def words_of_synset(line: str) -> list[str]:
    fields = line.split()
    return [fields[4 + 2 * i].replace("_", " ") for i in range(int(fields[3], 16))]


def dictionary(folder: Path) -> Iterator[list[str]]:
    """dictd's own files are gzip files of plain text."""
    for file in sorted(folder.rglob("*.dict.dz")):
        yield [SPACE.sub(" ", part).strip() for part in gzip.open(file, "rt", encoding="utf-8").read().split("\n\n")]


def pages(folder: Path) -> Iterator[list[str]]:
    """Paragraphs and list items of HTML and Mallard pages."""
    for file in sorted(path for path in folder.rglob("*") if {".html", ".page"} & set(path.suffixes)):
        if file.is_file() and not file.is_symlink() and not OTHER_LANGUAGES.search(str(file)) \
                and ("gnome" not in str(folder) or "/C/" in str(file)):
            found = BLOCK.finditer(file.read_text("utf-8", errors="replace"))
            yield [SPACE.sub(" ", html.unescape(TAG.sub("", block[2])).translate(PLAIN)).strip() for block in found]


# ---- what is left out -----------------------------------------------------------------------------------------------

def runs_of_words(text: str) -> set[int]:
    words = WORD.findall(text.lower())
    return {hash(tuple(words[i:i + SHARED_WORDS])) for i in range(len(words) - SHARED_WORDS + 1)}


def scored_text(data: Path) -> Iterator[str]:
    """Every text field of every scored row, and all rows of banking77."""
    for file in sorted(data.rglob("*")):
        if file.name in SCORED or file.parent.name == "banking77" and file.suffix == ".jsonl":
            rows = file.read_text("utf-8").split("\n")
            yield from (" ".join(strings(json.loads(row))) if file.suffix == ".jsonl" else row for row in rows if row)


def strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for part in inner for text in strings(part)]


class Mix:
    """Documents, each paragraph once, none that shares a run of words with what is held out."""

    def __init__(self, held_out: list[str]):
        self.banned = set().union(*map(runs_of_words, held_out))
        self.seen: set[bytes] = set()
        self.counts = {"repeated paragraphs": 0, "documents that share words with held-out text": 0}

    def new(self, paragraphs: list[str]) -> list[str]:
        """Documents of the paragraphs that are prose and were not there before."""
        kept = []
        for text in paragraphs:
            key = hashlib.md5(text.encode()).digest()
            if len(text) >= SHORTEST and text.isascii() and key not in self.seen:
                kept.append(text)
            self.counts["repeated paragraphs"] += key in self.seen
            self.seen.add(key)
        return self.allowed(["\n".join(kept[i:i + PARAGRAPHS]) for i in range(0, len(kept), PARAGRAPHS)])

    def allowed(self, documents: list[str]) -> list[str]:
        fine = [text for text in documents if self.banned.isdisjoint(runs_of_words(text))]
        self.counts["documents that share words with held-out text"] += len(documents) - len(fine)
        return fine


# ---- tokens ---------------------------------------------------------------------------------------------------------

def write_tokens(path: Path, documents: list[str], encode, end: int) -> dict:
    """Begin token, text, end token of each document."""
    ids = [token for text in documents for token in [*encode(text), end]]
    write_packed(path, np.array(ids, dtype=np.uint16))
    return {"documents": len(documents), "bytes": sum(len(text.encode()) for text in documents), "tokens": len(ids)}


def write_packed(path: Path, ids: np.ndarray) -> None:
    replace_file(path, lambda file: file.write(lzma.compress(ids.tobytes(), preset=1)))


def main() -> None:
    parser = experiment_parser(__doc__)
    parser.add_argument("data", type=Path, metavar="DATA", help="read the data sets in this directory")
    parser.add_argument("debs", type=Path, metavar="DEBS", help="read unpacked packages in this directory")
    parser.add_argument("--to", type=Path, default=Path("corpus"), help="write to this directory (default: corpus)")
    parser.add_argument("--tokens", type=float, default=36e6, help="end the mix at this many tokens (default: 36e6)")
    options = parser.parse_args()
    tokenizer, end = load_tokenizer(EMBEDDED_BASE), 2
    splits = Pretrain().splits(options.data, None, None, 0)
    today, held_out = ([example.answer for example in part] for part in (splits.train, splits.validation))
    wikitext = (options.data / "wikitext2" / "test.txt").read_text("utf-8")
    options.to.mkdir(parents=True, exist_ok=True)
    parts = {name: write_tokens(options.to / f"{name}.xz", texts, tokenizer.encode, end) for name, texts in
             (("held_out_today", held_out), ("held_out_wikitext2", [wikitext]), ("today", today))}
    mix = Mix([*held_out, wikitext, *scored_text(options.data)])
    parts["mix"] = write_mix(options, mix, today, parts["today"]["tokens"], lambda text: [*tokenizer.encode(text), end])
    write_json(options.to / "about.json", {"files": parts, "left out of the mix": mix.counts, "licences": PACKAGES})


def write_mix(options: argparse.Namespace, mix: Mix, today: list[str], tokens_today: int, encode) -> dict:
    """Today's documents and the rows of MORE_ROWS whole; then documents of the packages, in a random order, until
    there are `--tokens`."""
    sources = {"today": mix.allowed(today)}
    for name, written in MORE_ROWS.items():
        rows = read_rows(options.data / name, ())
        sources[name] = mix.allowed([written(row) for row in rows])
    chosen = [(name, text) for name, texts in sources.items() for text in texts]
    more = [(package, text) for package in PACKAGES for paragraphs in documents_of(package, options.debs / package)
            for text in mix.new(paragraphs)]
    random.Random(0).shuffle(more)
    counts: dict[str, int] = {}
    kept: list[np.ndarray] = []
    for name, text in [*chosen, *more]:
        ids = encode(text)
        if sum(counts.values()) + len(ids) > options.tokens:
            break
        counts[name] = counts.get(name, 0) + len(ids)
        kept.append(np.array(ids, dtype=np.uint16))
    random.Random(0).shuffle(kept)
    write_packed(options.to / "mix.xz", np.concatenate(kept))
    return {"documents": len(kept), "tokens": sum(counts.values()), "tokens of": counts}


if __name__ == "__main__":
    run_experiment(main)
