"""Files from elsewhere: models as other tools write them, rows, texts. None has a checksum, so a flipped bit may be
another model or another text. What a run was trained on is recorded: when it goes on, the change must be known."""
import csv
import importlib.util
import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.faults.bench import SMALL, Bench
from tests.faults.damage import READ, SCORED, Subject, files_of, numbers
from tests.faults.events import KILL, LOG, Fault, read_log
from tests.faults.report import NO_CHECKSUM
from tests.faults.trial import contents, run

INTENTS = ("card_lost", "card_arrival", "top_up", "exchange_rate", "pin_blocked", "transfer_late")
ROWS, TESTS = 48, 6
ON_CODES = ("--method", "qablora", "--quantizer", "none", "--lam", "32x8")


def subjects(bench: Bench) -> list[Subject]:
    place = made(bench)
    return [*read_first(bench, place), *going_on(bench, place)]


# ---- the files -------------------------------------------------------------------------------------------------------

def made(bench: Bench) -> Path:
    """A directory of everything that comes from elsewhere."""
    cwd = bench.fresh()
    shutil.copytree(bench.base, cwd / "plain")
    write_rows(cwd)
    for make in (make_hub, remove_sums):
        if make is remove_sums:
            hand_over(bench, cwd)
        ended = bench.run_code(cwd, make)
        assert ended.status == 0, ended.out
    return bench.copy(cwd, "elsewhere")


def rows(begin: int, end: int) -> list[dict]:
    return [{"instruction": f"my {INTENTS[i % 6].replace('_', ' ')} case {i}", "intent": INTENTS[i % 6],
             "response": f"we see {i}"} for i in range(begin, end)]


def write_rows(cwd: Path) -> None:
    every = rows(0, ROWS)
    (cwd / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in every))
    (cwd / "rows.json").write_text(json.dumps({"data": every}))
    (cwd / "test.jsonl").write_text("".join(json.dumps({"instruction": row["instruction"], "intent": row["intent"]})
                                            + "\n" for row in rows(ROWS, ROWS + TESTS)))
    with open(cwd / "rows.csv", "w", newline="") as file:
        table = csv.DictWriter(file, list(every[0]))
        table.writeheader()
        table.writerows(every)
    if has_parquet():
        pyarrow = importlib.import_module("pyarrow")
        importlib.import_module("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(every), cwd / "rows.parquet")
    (cwd / "text.txt").write_text(" ".join(row["instruction"] for row in rows(0, 200)))


def has_parquet() -> bool:
    return importlib.util.find_spec("pyarrow") is not None


def make_hub() -> None:
    """A directory of the hub: two shards with an index, tokenizer.json and what stands beside it."""
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    shutil.copytree("plain", "hub", ignore=lambda *_: ["tokenizer.model", "model.safetensors"])
    tensors = load_file("plain/model.safetensors")
    names, weight_map = sorted(tensors), {}
    for number, part in enumerate((names[:4], names[4:]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, f"hub/{file}", {"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [row["instruction"] for row in rows(0, ROWS)],
        trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False,
                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.save("hub/tokenizer.json")
    ends = {"bos_token": "<s>", "eos_token": "</s>"}
    for name, value in {
            "model.safetensors.index.json": {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
                                             "weight_map": weight_map},
            "tokenizer_config.json": {**ends, "add_bos_token": True, "tokenizer_class": "LlamaTokenizerFast"},
            "special_tokens_map.json": ends,
            "generation_config.json": {"bos_token_id": 1, "eos_token_id": [2], "temperature": 0.6}}.items():
        Path("hub", name).write_text(json.dumps(value, indent=2))


def hand_over(bench: Bench, cwd: Path) -> None:
    """An adapter for peft, a directory of MLX and a GGUF file, each beside its twin as our export writes it."""
    for method in (("--method", "qablora", "--block", "32x1", "--lam", "32x8", "--out", "x"),):
        ended = run(bench.tree, cwd, "train.py", "--model", "plain", *method, *SMALL)
        assert ended.status == 0, ended.out
    for kind, to in (("peft", "peft"), ("mlx", "mlx"), ("gguf", "x.gguf")):
        ended = run(bench.tree, cwd, "export.py", "x", "--format", kind, "--to", to, "--allow-loss")
        assert ended.status == 0, ended.out
    shutil.copytree(cwd / "mlx", cwd / "mlx-export")
    shutil.rmtree(cwd / "x")


def remove_sums() -> None:
    """As other tools write them."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file
    for place in ("peft", "mlx"):
        for file in Path(place).rglob("*"):
            if file.name in ("SHA256SUMS", "export.json", "README.md"):
                file.unlink()
            elif file.suffix == ".safetensors":
                with safe_open(file, "pt") as opened:
                    stated = {k: v for k, v in (opened.metadata() or {}).items() if k != "sha256"}
                save_file(load_file(file), file, stated)
    for file in Path().glob("x.gguf?*"):
        file.unlink()


# ---- read for the first time -----------------------------------------------------------------------------------------

def read_first(bench: Bench, place: Path) -> Iterator[Subject]:
    scores = numbers("scored/results.json", "scored/predictions.jsonl")
    base = "peft/base" if (place / "peft" / "base").is_dir() else "plain"
    rounded = ("hub", "--quantizer", "gptq", "--block", "16x1", "--calibration", "text.txt", "--calibration-rows", "4")
    for name, files, model in (
            ("directory of the hub", below(place, "hub"), ("hub",)),
            ("PEFT directory", ["peft/adapter_config.json", "peft/adapter_model.safetensors"],
             (base, "--adapter", "peft")),
            ("MLX directory", below(place, "mlx"), ("mlx",)),
            ("GGUF file", ["x.gguf"], ("x.gguf",)),
            ("calibration text", ["text.txt"], rounded)):
        yield Subject(f"{name}, {NO_CHECKSUM}", place, files, ("eval.py", "--model", *model, *SCORED), scores)
    yield Subject("MLX export", place, below(place, "mlx-export"), ("eval.py", "--model", "mlx-export", *SCORED),
                  scores)
    yield Subject(f"test rows, {NO_CHECKSUM}", place, ["test.jsonl"],
                  ("eval.py", "--model", "hub", "--task", "bitext", "--data", "rows.csv", "--test-data", "test.jsonl",
                   *SCORED), scores)


def below(place: Path, name: str) -> list[str]:
    return [str(Path(name) / file) for file in files_of(place / name, "README")]


# ---- what a run was trained on ---------------------------------------------------------------------------------------

def going_on(bench: Bench, place: Path) -> Iterator[Subject]:
    """Each run goes on from the middle, and is scored again when it is whole."""
    on_rows = ("--model", "hub", "--method", "qablora", "--block", "16x1", "--task", "bitext", "--test-data",
               "test.jsonl", "--data")
    calibrated = ("--model", "hub", "--method", "qlora", "--quantizer", "gptq", "--block", "16x1", "--calibration",
                  "text.txt", "--calibration-rows", "4")
    formats = ("rows.jsonl", "rows.csv", "rows.json", *(["rows.parquet"] if has_parquet() else []))
    trained = [*((f"run on {rows}", (*on_rows, rows), [rows, "test.jsonl"] if rows == "rows.jsonl" else [rows])
                 for rows in formats),
               ("run on a directory of the hub", (*on_rows, "rows.csv"), below(place, "hub")),
               ("run calibrated on a text", calibrated, ["text.txt"]),
               ("run on an MLX directory", ("--model", "mlx", *ON_CODES), below(place, "mlx")),
               ("run on a GGUF file", ("--model", "x.gguf", *ON_CODES), ["x.gguf"])]
    for number, (name, asked, files) in enumerate(trained):
        whole, cut = both(bench, place, ("train.py", *asked, *SMALL, "--out", "x"), f"elsewhere-{number}")
        yield Subject(f"{name}, by eval.py", whole, files, ("eval.py", "x"),
                      numbers("x/eval.json", "x/predictions.jsonl"))
        ends = {f"x/{file}" for file in contents(whole / "x") if file not in READ and "state" not in file}
        yield Subject(f"{name}, by --resume", cut, files, ("train.py", "--resume", "x"),
                      partial(results_of, names=sorted(ends)))


def results_of(cwd: Path, ended, names: list[str]) -> object:
    return {name: numbers(name)(cwd, ended) for name in names}


def both(bench: Bench, place: Path, command: tuple[str, ...], name: str) -> tuple[Path, Path]:
    """A whole run, and one that was killed before its last state. Paths are absolute in a run, so it is made where
    trials are."""
    def trained(copy: str, fault: Fault) -> Path:
        cwd = bench.copy(place)
        ended = run(bench.tree, cwd, *command, fault=fault)
        assert ended.status in (0, -9), ended.out
        return bench.copy(cwd, copy)

    whole = trained(name, Fault(LOG, log=bench.place / "log-elsewhere"))
    saved = [e.number for e in read_log(bench.place / "log-elsewhere")
             if e.op == "rename" and e.other.endswith("/state/state.safetensors")]
    return whole, trained(f"{name}-cut", Fault(KILL, saved[-1]))
