"""Flipped bits, cut ends and missing files, in every file of a run and of every kind that is read."""
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faults.bench import Bench
from tests.faults.events import KILL, Fault
from tests.faults.report import HANGS, LOST, NO_CHECKSUM, SAME, SENTENCE, SILENT, TRACEBACK, Report
from tests.faults.trial import Ended, content, run, without_times

TEXTS = (".json", ".jsonl")
# What --resume reads, and does not write again.
READ = {"tokenizer.model", "config.json", "base.safetensors", "kept.json"}
TABLES = ("results.json", "eval.json")
SCORED = ("--limit", "40", "--test-limit", "4", "--max-new-tokens", "3", "--dtype", "float32", "--out", "scored")


@dataclass
class Subject:
    """A directory, the files of it that are damaged, the command that reads them, and what has to stay the same."""
    name: str
    place: Path
    files: list[str]
    command: tuple[str, ...]
    results: Callable[[Path, Ended], object]
    resumes: bool = False
    said: frozenset[str] = frozenset()  # lines of the undisturbed command: they are no answer to the damage


def damages(data: bytes, text: bool, flips: int) -> Iterator[tuple[str, bytes | None]]:
    """What happens to a file: name and bytes; None: it is missing."""
    header = 8 + struct.unpack("<Q", data[:8])[0] if not text and len(data) > 8 else 0
    places = {0, len(data) - 1, *(len(data) * i // (flips + 1) for i in range(1, flips + 1))}
    if 8 < header < len(data):
        places |= {12, header // 2, header - 2, header, header + 2}
    for place in sorted(place for place in places if 0 <= place < len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 4
        yield f"bit flipped at byte {place}", bytes(flipped)
    for length in sorted({0, len(data) // 2, len(data) - 1}):
        if length < len(data):
            yield f"cut to {length} bytes", data[:length]
    if len(data) > 1:
        yield "second half zeros", data[:len(data) // 2] + bytes(len(data) - len(data) // 2)
    yield "missing", None


def subjects(bench: Bench) -> list[Subject]:
    return [resumed(bench), scored(bench), interrupted_scoring(bench), *exported(bench), judged(bench),
            base_of_a_run(bench)]


def files_of(place: Path, *left_out: str) -> list[str]:
    return [str(f.relative_to(place)) for f in sorted(place.rglob("*"))
            if f.is_file() and f.suffix != ".png" and not any(part in str(f.relative_to(place)) for part in left_out)]


def numbers(*files: str) -> Callable[[Path, Ended], object]:
    """Of a table of scores, its rows: what it says of the model's checksum may differ."""
    def found(cwd: Path, ended: Ended) -> object:
        there = [cwd / file for file in files if (cwd / file).is_file()]
        return [without_times(json.loads(file.read_text())["rows"]) if file.name in TABLES else content(file)
                for file in there]
    return found


def printed(cwd: Path, ended: Ended) -> object:
    return [line for line in ended.out.splitlines() if "answers of an interrupted" not in line]


def resumed(bench: Bench) -> Subject:
    return Subject("run, by --resume", bench.cut, files_of(bench.cut), ("train.py", "--resume", "x"),
                   lambda cwd, ended: {name: numbers(f"x/{name}")(cwd, ended) for name in bench.right
                                       if name not in READ}, resumes=True)


def states_and_adapter(bench: Bench) -> Subject:
    """For the short selection."""
    every = resumed(bench)
    every.files = [file for file in every.files if "/state/" in file or "adapter" in file][-3:]
    return every


def scored(bench: Bench) -> Subject:
    return Subject("run, by eval.py", bench.whole, files_of(bench.whole, "merged/"), ("eval.py", "x"),
                   numbers("x/eval.json", "x/predictions.jsonl"))


def interrupted_scoring(bench: Bench) -> Subject:
    cwd = bench.copy(bench.whole, "scoring")
    bench.eval(cwd, fault=Fault(KILL, 9))
    answers = [file for file in files_of(cwd) if "answers-" in file or "predictions" in file]
    return Subject("kept answers, by eval.py", cwd, answers, ("eval.py", "x"),
                   numbers("x/eval.json", "x/predictions.jsonl"))


def exported(bench: Bench) -> Iterator[Subject]:
    cwd = bench.copy(bench.whole, "exported")
    for kind, to, *more in (("gguf", "x.gguf", "--dtype", "float16"), ("peft", "peft"), ("safetensors", "dense")):
        ended = run(bench.tree, cwd, "export.py", "x", "--format", kind, "--to", to, "--allow-loss", *more)
        assert ended.status == 0, ended.out
    shutil.copytree(cwd / "x" / "merged", cwd / "merged")
    shutil.copytree(bench.base, cwd / "plain")
    peft = "peft/base" if (cwd / "peft" / "base").is_dir() else "plain"
    for name, files, model in (("GGUF export", ["x.gguf"], ("x.gguf",)),
                               ("PEFT export", files_of_below(cwd, "peft"), (peft, "--adapter", "peft")),
                               ("safetensors export", files_of_below(cwd, "dense"), ("dense",)),
                               ("merged model", files_of_below(cwd, "merged"), ("merged",)),
                               (f"base, {NO_CHECKSUM}", files_of_below(cwd, "plain"), ("plain",))):
        yield Subject(f"{name}, by eval.py --model", cwd, files, ("eval.py", "--model", *model, *SCORED),
                      numbers("scored/results.json", "scored/predictions.jsonl"))
    yield Subject("run, by export.py", bench.whole, ["x/adapter.safetensors", "x/base.safetensors", "x/config.json",
                                                     "x/tokenizer.model"],
                  ("export.py", "x", "--format", "peft", "--to", "peft", "--allow-loss"),
                  lambda cwd, ended: sorted((str(f.relative_to(cwd)), content(f)) for f in (cwd / "peft").rglob("*")
                                            if f.is_file()))


def files_of_below(cwd: Path, name: str) -> list[str]:
    return [str(Path(name) / file) for file in files_of(cwd / name)]


def base_of_a_run(bench: Bench) -> Subject:
    """The run knows the checksum of its base. Paths are absolute in it, so it is made where trials are."""
    cwd = bench.fresh()
    shutil.copytree(bench.base, cwd / "base")
    ended = run(bench.tree, cwd, "train.py", *bench.training, "--model", "base")
    assert ended.status == 0, ended.out
    return Subject("base of a run, by eval.py", bench.copy(cwd, "with-base"), ["base/model.safetensors"],
                   ("eval.py", "x"), numbers("x/eval.json", "x/predictions.jsonl"))


def judged(bench: Bench) -> Subject:
    cwd = bench.copy(bench.whole, "judged")
    task = ("judge.py", "x", "x:quantized", "--dry-run")
    return Subject("predictions, by judge.py", cwd, ["x/predictions.jsonl"], task, printed)


def undamaged(subject: Subject, bench: Bench) -> object:
    cwd = bench.copy(subject.place)
    ended = run(bench.tree, cwd, *subject.command)
    assert ended.status == 0, ended.out
    subject.said = frozenset(ended.out.splitlines())
    return subject.results(cwd, ended)


def kind_of(file: str) -> str:
    name = Path(file).name
    return "answers-*.part.jsonl" if name.startswith("answers-") else str(Path(file).parent / name) \
        if file.startswith("x/state") else name


def tensor_at(data: bytes, place: int) -> str | None:
    """The tensor of a safetensors file that holds this byte."""
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    for name, told in json.loads(data[8:begin]).items():
        start, end = told.get("data_offsets", (0, 0))
        if begin + start <= place < begin + end:
            return name
    return None


def one(bench: Bench, subject: Subject, file: str, data: bytes | None, right: object) -> tuple[str, Ended]:
    cwd = bench.copy(subject.place)
    target = cwd / file
    target.unlink()
    if data is not None:
        target.write_bytes(data)
    ended = run(bench.tree, cwd, *subject.command)
    if ended.status is None or ended.traceback:
        return (HANGS if ended.status is None else TRACEBACK), ended
    if ended.status:
        return (LOST if subject.resumes and "/state/" in file else SENTENCE), ended
    if subject.results(cwd, ended) == right:
        return SAME, ended
    new = "\n".join(line for line in ended.out.splitlines() if line not in subject.said)
    named = any(words in new for words in (Path(file).name, "is not what the run was trained from",
                                           "no row for the base: "))
    return (SENTENCE if named else SILENT), ended


def every_file(bench: Bench, report: Report, flips: int = 6, subjects_=None, most: int | None = None) -> None:
    for subject in subjects_ or subjects(bench):
        right = undamaged(subject, bench)
        for file in subject.files:
            data = (subject.place / file).read_bytes()
            ways = list(damages(data, Path(file).suffix in TEXTS, flips))
            for what, damaged in ways[::max(1, len(ways) // most)] if most else ways:
                outcome, ended = one(bench, subject, file, damaged, right)
                report.add(f"damage: {subject.name}", kind_of(file), outcome, f"{what}: {ended.sentence}",
                           **said(outcome, ended, file, what, data))


def said(outcome: str, ended: Ended, file: str, what: str, data: bytes) -> dict[str, int]:
    """Whether a sentence names the file, and the tensor."""
    counts = {}
    if outcome == SENTENCE and Path(file).name not in ended.out:
        counts["sentences that do not name the file"] = 1
    if outcome in (SENTENCE, LOST) and file.endswith(".safetensors") and what.startswith("bit"):
        if tensor := tensor_at(data, int(what.split()[-1])):
            counts["tensors hit"], counts["tensors named"] = 1, int(tensor in ended.out)
    return counts
