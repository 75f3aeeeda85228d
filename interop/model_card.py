"""The model card of an export: README.md in a directory, `x.README.md` beside `x.gguf`.

Front matter as the Hugging Face hub reads it, then what the run's own files hold: base, method, data, scores, commands
and versions. Directories of this machine do not appear: a path is given by its last part.
"""
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml  # a dependency of huggingface_hub

from adapters import ADAPTERS
from finetune.as_command import shown, train_command
from finetune.config import RunConfig
from finetune.run import Run
from interop.base_facts import BaseFacts, base_facts
from interop.comparison import Difference
from interop.lost import Lost
from interop.trained import Trained
from model.files import read_json
from tasks import TASKS
from tasks.hub_data import HubData

CARD = "README.md"
LIBRARIES = {"safetensors": "transformers", "peft": "peft", "mlx": "mlx", "gptq": "transformers",
             "compressed-tensors": "transformers"}  # what loads a format
WHAT = {"safetensors": "the merged model", "peft": "the adapter, as a plain LoRA", "gguf": "for llama.cpp",
        "mlx": "for mlx-lm", "gptq": "its codes in the format of GPTQ",
        "compressed-tensors": "its codes in the format of compressed-tensors"}
ABSOLUTE = re.compile(r"(?<![\w:/.<])/(?:[^\s/'\"`()|]+/)+")  # the directories of an absolute path


def card_file(to: Path) -> Path:
    """`x.gguf` -> `x.README.md`; a directory -> its README.md."""
    return to.with_suffix(f".{CARD}") if to.suffix == ".gguf" else to / CARD


def model_card(trained: Trained, form: str, to: Path, facts: dict, difference: Difference, lost: Lost,
               options: tuple[str, ...] = ()) -> str:
    """The text. facts: what the export's `write` returned; options: flags of the export beside --format and --to."""
    run, base = (trained.run_of_result or trained).run, base_facts(trained)
    front = yaml.safe_dump(front_of(run, base, form, facts), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{front}---\n", f"# {to.stem if form == 'gguf' else to.name}\n", about(trained, base, form)]
    if run:
        parts += [section("Training", training_lines(run)), scores_of(run)]
    parts.append(section("This export", export_lines(form, facts, difference, lost)))
    parts.append(section("How it was made", commands(trained, form, to, options)))
    return without_directories("\n".join(filter(None, parts)), [trained.path, to])


def section(title: str, lines: list[str]) -> str:
    return "\n".join([f"## {title}\n", *lines, ""])


# ---- front matter -------------------------------------------------------------------------------------------------

def front_of(run: Run | None, base: BaseFacts | None, form: str, facts: dict) -> dict[str, Any]:
    config = run.config if run else None
    found: dict[str, Any] = dict(base.license) if base else {}
    if base and base.repo:
        holds_codes = "layers_of_codes" in facts or "Q" in facts.get("tensors", "")
        relation = "adapter" if form == "peft" else "quantized" if holds_codes else "finetune"
        found |= {"base_model": base.repo, "base_model_relation": relation}
    if form in LIBRARIES:
        found["library_name"] = LIBRARIES[form]
    found["pipeline_tag"] = "text-generation"
    data = {place.repo for place in places_of_data(config) if isinstance(place, HubData)} if config else set()
    found |= {"datasets": sorted(data)} if data else {}
    tags = [form, *([config.method, config.data.task] if config else [])]
    return found | {"tags": tags + ([f"{config.base.bits}-bit"] if config and config.base.bits < 16 else [])}


def places_of_data(config: RunConfig) -> list[object]:
    return [place for place in (config.data.data, config.data.test_data) if place is not None]


# ---- the text -----------------------------------------------------------------------------------------------------

def about(trained: Trained, base: BaseFacts | None, form: str) -> str:
    run = (trained.run_of_result or trained).run
    what = WHAT.get(form, f"in the format {form}")
    if base is None:
        origin = "It was trained from random weights."
    else:
        commit = f", commit {base.commit}" if base.commit else ""
        origin = f"Its base is {link(base)}{commit}."
        stated = base.license.get("license_name", base.license.get("license"))
        origin += f" The base's licence is {stated} (stated in {base.license_from})." if stated else \
            " No licence of the base is stated where it was read: look it up before you pass this on."
    method = f"Fine-tuned by {run.config.of_method.title}; {what}." if run else f"{what[0].upper()}{what[1:]}."
    return f"{method} {origin}\n"


def link(base: BaseFacts) -> str:
    return f"[{base.repo}](https://huggingface.co/{base.repo})" if base.repo else f"`{base.name}`"


def training_lines(run: Run) -> list[str]:
    config, task = run.config, TASKS[run.config.data.task]
    held = config.base.quantization or config.base.codes
    adapter = config.adapter
    lines = [f"method: {config.method} ({config.of_method.title})",
             f"base in training: {held or 'as it is, 16 or 32 bits'}"]
    if config.adapter_kind:
        taken = ADAPTERS[config.adapter_kind].options
        options = (option for option in ("rank", "lora_alpha", "scaling", "lam") if option in taken)
        lines.append(", ".join([f"adapter: beside the linear layers, {adapter.targets}",
                                *(f"{option} {getattr(adapter, option)}" for option in options)]))
    lr = config.training.lr
    stepping = config.training.optimizer if lr is None else f"learning rate {lr:g}"
    rows = ", ".join(shown(place) for place in places_of_data(config)) or "the task's own rows"
    lines += [f"task: {task.name}, {task.title}; data: {rows}; licence of the data set: {task.licence}",
              f"rows: {config.data.limit or 'all'}; seed: {config.data.seed}",
              f"{stepping}, batches of {config.training.batch_size} rows; {progress(run)}"]
    fingerprints = run.fingerprints
    lines += [f"sha256 of the {what}: `{digest}`" for what, digest in
              (("base", fingerprints.get("base")), ("training rows", (fingerprints.get("data") or {}).get("train")))
              if digest]
    return [f"- {line}" for line in lines]


def progress(run: Run) -> str:
    """Steps and tokens. A run that has not ended says so, and so does one that --patience has ended."""
    kept, done = read_if_whole(run.kept_file), read_if_whole(run.training_file)
    parts = [f"step {kept['step']} of {kept['steps']} was kept"] if kept.get("steps") else []
    if kept.get("validation_loss") is not None:
        parts.append(f"with a validation loss of {kept['validation_loss']:.4f}")
    facts = [" ".join(parts)] if parts else []
    if "tokens" in done and "trainable_parameters" in done:
        facts.append(f"{done['trainable_parameters']:,} trained parameters, {done['tokens']:,} tokens")
    if done.get("stopped_by") == "patience":
        facts.append(f"--patience {run.config.training.patience} ended the training early")
    return "; ".join(facts) or "training has not ended"


def scores_of(run: Run) -> str:
    """The table that train.py ended with, or the last one of eval.py: the first with scores, else with a validation
    loss. Earlier versions wrote less into it."""
    tables = [read_if_whole(file) for file in (run.results_file, run.eval_file)]
    stated, rows = next(((table, rows) for has in (has_scores, has_loss) for table in tables
                         if (rows := rows_with(table, has))), ({}, []))
    if not rows:
        return section("Scores", ["None: the run was not scored."])
    formats = TASKS[run.config.data.task].formats
    names = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    head = ["model", *names, "validation loss"]
    table = [[str(row.get("title", row.get("state"))), *(score(row, name, formats.get(name)) for name in names),
              "-" if (loss := row.get("validation_loss")) is None else f"{loss:.4f}"] for row in rows]
    lines = [f"{stated.get('test_rows', 'all')} test rows; protocol: {stated.get('protocol', 'not recorded')}\n",
             *("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *table))]
    return section("Scores", lines)


def has_scores(row: dict) -> bool:
    return bool(row["scores"])


def has_loss(row: dict) -> bool:
    """All that a run without test rows has."""
    return row.get("validation_loss") is not None


def rows_with(table: dict, has: Callable[[dict], bool]) -> list[dict]:
    rows = [{**row, "scores": row.get("scores") or {}} for row in table.get("rows", []) if isinstance(row, dict)]
    return [row for row in rows if has(row)]


def read_if_whole(file: Path) -> dict[str, Any]:
    """A damaged record must not cost an export, which does not need it. Whoever reads it for its scores is told."""
    try:
        return read_json(file) if file.is_file() else {}
    except (ValueError, OSError):
        return {}


def score(row: dict, name: str, how: str | None) -> str:
    value, error = row["scores"].get(name), row.get("standard_errors", {}).get(name)
    if value is None:
        return "-"
    how = how or ".2%"
    return f"{value:{how}}" + ("" if error is None else f" ± {error:{how}}")


def export_lines(form: str, facts: dict, difference: Difference, lost: Lost) -> list[str]:
    stated = [f"{name.replace('_', ' ')}: {value}" for name, value in facts.items()]
    lines = [f"format: {form}", *stated,
             f"largest weight difference to the run: {difference.largest_weight_difference:.3g}",
             f"largest logit difference to the run: {difference.largest_logit_difference:.3g}, of logits up to "
             f"{difference.largest_logit:.3g} ({difference.rows} fixed rows, float32)"]
    return [f"- {line}" for line in lines + [line.strip() for line in lost.lines()]]


def without_directories(text: str, places: list[Path]) -> str:
    """The text without the directories in which these places lie, those of the user, and other absolute ones."""
    for parent in (*(place.parent for place in places), *(place.resolve().parent for place in places), Path.cwd(),
                   Path.home()):
        if parent != Path("/") and str(parent) != ".":
            text = text.replace(f"{parent}/", "")
    return ABSOLUTE.sub("", text)


def command_of(run: Run) -> str:
    """Of a run of an earlier version, whose flags would be refused today, only the method."""
    try:
        return train_command(run.config)
    except ValueError:
        return f"python train.py --method {run.config.method} ..."


def commands(trained: Trained, form: str, to: Path, options: tuple[str, ...]) -> list[str]:
    run, name = (trained.run_of_result or trained).run, trained.name
    lines = [f"    {command_of(run)} --out {name.partition('/')[0]}"] if run else []
    lines.append(f"    {' '.join(['python export.py', name, '--format', form, *options, '--to', to.name])}")
    versions = run.saved.get("versions") if run else None
    if versions:
        lines += ["", ", ".join(f"{what} {version}" for what, version in versions.items())]
    return lines
