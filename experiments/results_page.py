"""Write docs/results.md from experiments/results/*.json.

    python -m experiments.results_page            # write the page
    python -m experiments.results_page --check    # exit 1 if the page and the JSON files differ

There are two kinds of JSON file. A file that an experiment script writes keeps the script's shape. Its title,
provenance and findings are in provenance.json, and a function below makes its tables. cells*.json are raw cells of
experiments.run, which experiments.findings judges; they have no section. Every other file is a record with its tables
in it. A record has these fields: title, date, machine, commit, command (a list), about, tables (columns and rows),
findings, and if there are any, pictures (alternative text and file) and claims (of papers: for the table at the top).
"""
import argparse
import json
import statistics
import sys
import textwrap
from pathlib import Path

from experiments.benchmarks import seconds, share
from experiments.claims import base_tokens
from experiments.claims.verdicts import verdicts_table
from experiments.shared import markdown, spread
from model.files import write_text

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "results.md"
WIDTH = 120  # columns of text; tables may be wider

Table = dict  # caption (optional), columns: list[str], rows: list[list[str]]


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def percent(value: float, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f}"


# ---- tables of the files that experiment scripts write ------------------------------------------------------------

def methods_tables() -> list[Table]:
    columns = ["method", "bits", "as trained, %", "merged, %", "loss as trained", "loss merged", "merged into",
               "bits a weight, base", "bits a weight, merged", "trainable parameters", "step time / LoRA",
               "peak memory, MB"]
    rows = read("methods_60_steps")["rows"]
    return [{"columns": columns, "rows": [[str(row[name]) for name in columns] for row in rows]}]


def restoration_tables() -> list[Table]:
    data = read("restoration")
    scores = {(mean["trained_bits"], mean["bits"] if mean["restored"] else None): mean for mean in data["averages"]}
    widths = sorted({bits for _, bits in scores if bits})
    trained_at = sorted({trained for trained, _ in scores}, reverse=True)
    accuracy = [[f"{trained} bits", *(accuracy_cell(scores, trained, bits) for bits in (None, *widths))]
                for trained in trained_at]
    return [{"caption": "Accuracy in percent.", "rows": accuracy,
             "columns": ["trained at", "as trained", *(f"restored to {bits} bits" for bits in widths)]},
            {"caption": "What restoring brought each run, beside how far it moved the base. MB count the weights.",
             "columns": ["trained at", "restored to", "MB", "gain in accuracy, points", "gain in validation loss, nats",
                         "norm(W_l - W_k) / norm(delta_W)"],
             "rows": gains(data["runs"], trained_at, widths)}]


def accuracy_cell(scores: dict, trained: int, bits: int | None) -> str:
    if bits == trained:
        return "the same"
    mean = scores[trained, bits]
    return f"{percent(mean['score'])} ± {percent(mean['deviation'], 1)}"


def gains(runs: list[dict], trained_at: list[int], widths: list[int]) -> list[list[str]]:
    before = {run["run"]: run for run in runs if not run["restored"]}
    rows = []
    for trained in trained_at:
        for bits in widths:
            group = [run for run in runs
                     if run["restored"] and (run["trained_bits"], run["bits"]) == (trained, bits)]
            if bits == trained or not group:
                continue
            points = [run["score"] - before[run["run"]]["score"] for run in group]
            nats = [before[run["run"]]["validation_loss"] - run["validation_loss"] for run in group]
            ratios = [run["restoration_ratio"] for run in group]
            rows.append([f"{trained} bits", f"{bits} bits", f"{statistics.mean(run['megabytes'] for run in group):.2f}",
                         spread(points, 1, "+", 100), spread(nats, 4, "+"), f"{statistics.mean(ratios):.2f}"])
    return rows


SFT_STATES = ("SFT for the same extra steps", "SFT -> PTQ (nf)", "SFT -> PTQ (gptq)", "SFT -> PTQ -> QLoRA (nf)",
              "SFT -> PTQ -> QLoRA (gptq)", "PTQ -> QLoRA (nf), as many steps in all",
              "PTQ -> QLoRA (gptq), as many steps in all")  # in the order of the file's comparisons


def sft_tables() -> list[Table]:
    seeds = [seed["comparisons"] for seed in read("sft_ptq_qlora")["seeds"].values()]
    rows = [["SFT, 16 bits", spread([one[0]["mean_b"] for one in seeds], 1, scale=100), "-", "-"]]
    for name, *found in zip(SFT_STATES, *seeds, strict=True):
        rows.append([name, spread([one["mean_a"] for one in found], 1, scale=100),
                     spread([one["difference"] for one in found], 1, "+", 100),
                     ", ".join(f"{one['p_value']:.2g}" for one in found)])
    return [{"columns": ["state", "accuracy, %", "difference to SFT, points", "p of each seed (exact McNemar test)"],
             "rows": rows}]


PAPERS_METRIC = {"hellaswag": "acc_norm"}  # how we read the tables of Shen et al.; acc for all other tasks


def benchmark_tables() -> list[Table]:
    rows = []
    for task, result in read("benchmarks")["tasks"].items():
        states = result["rows"]
        cells = [share(state, metric) for state in states for metric in ("acc", "acc_norm")]
        rows.append([task, str(result["test_rows"]), PAPERS_METRIC.get(task, "acc"), *cells,
                     *(seconds(state) for state in states), f"{result['processor_seconds']:.0f}"])
        for category in (name for name in states[0]["scores"] if name not in ("acc", "acc_norm")):
            accuracies = [cell for state in states for cell in (share(state, category), "")]
            rows.append([f"{task}, {category}", "", "acc", *accuracies, "", "", ""])
    columns = ["task", "rows", "the papers report", "16 bits, acc, %", "16 bits, acc_norm, %", "NF4, acc, %",
               "NF4, acc_norm, %", "16 bits, s", "NF4, s", "processor, s"]
    return [{"columns": columns, "rows": rows}]


def before_and_after_tables() -> list[Table]:
    tasks = (("qlora_sql_create_context", ("exact_match", "compiles")),
             ("qlora_gsm8k", ("strict_match", "flexible_extract")))
    columns = ["state", "SQL exact match, %", "SQL compiles, %", "validation loss", "s", "GSM8K strict, %",
               "GSM8K flexible, %", "validation loss", "s"]
    sql, gsm8k = (before_and_after_rows(*task) for task in tasks)
    return [{"columns": columns, "rows": [first + second[1:] for first, second in zip(sql, gsm8k, strict=True)]}]


def before_and_after_rows(name: str, metrics: tuple[str, ...]) -> list[list[str]]:
    return [[row["state"], *(f"{percent(row['scores'][metric], 1)} ± {percent(row['standard_errors'][metric], 1)}"
                             for metric in metrics), f"{row['validation_loss']:.4f}", f"{row['seconds']:.0f}"]
            for row in read(name)["rows"]]


def base_tokens_tables() -> list[Table]:
    return base_tokens.tables(read("base_tokens"))


MADE_BY_SCRIPTS = {"base_tokens": base_tokens_tables, "methods_60_steps": methods_tables,
                   "restoration": restoration_tables, "sft_ptq_qlora": sft_tables,
                   "benchmarks": benchmark_tables, "before_and_after": before_and_after_tables}
PICTURES = {"base_tokens": ("loss lost by rounding against tokens seen", "../experiments/results/base_tokens.png"),
            "restoration": ("accuracy against the memory of the weights", "../experiments/results/restoration.png")}
ORDER = ("main_job", "main_job_history", "methods_60_steps", "full_length", "rounding", "restoration",
         "restoration_low_lr", "sft_ptq_qlora", "real_model_loading", "real_model_perplexity", "gguf_fine_tuning",
         "gguf_round_trip", "mlx_score", "benchmarks", "before_and_after",
         "base_tokens")
# records of experiments/findings.py and of experiments/same_cells.py, where the cells were run
CELLS = ("methods", "methods_real", "plr", "plr_recipe", "ptq_qlora", "scale", "same_cells")
FILES = {"before_and_after": ("qlora_sql_create_context", "qlora_gsm8k")}  # where they do not have the section's name


def records() -> dict[str, dict]:
    """Every section of the page in its order. Raises FileNotFoundError or KeyError for a section without its JSON."""
    provenance = read("provenance")
    return {name: {**provenance[name], "tables": MADE_BY_SCRIPTS[name]()} if name in MADE_BY_SCRIPTS else read(name)
            for name in order()}


def order() -> list[str]:
    """Of the sections. Those of cells are there once their cells have been judged."""
    return [*(name for name in CELLS if (RESULTS / f"{name}.json").is_file()), *ORDER]


GENERATED = "<!-- Generated by python -m experiments.results_page. Edit the JSON files, not this page. -->"
INTRODUCTION = """All measured tables, each with its date, machine, commit and command. A commit is one of this
repository. A command is written for today's command line. Different sections were measured on different machines, so
their times and memory cannot be compared. A fact that was not written down at the time is marked "not recorded"."""


def files_of(section: str) -> tuple[str, ...]:
    """The names of its JSON files: those of experiments.method_costs belong to their plan's."""
    costs = sorted(path.stem for path in RESULTS.glob(f"{section}_costs_*.json"))
    return FILES.get(section, (section, *costs))


# ---- the page -----------------------------------------------------------------------------------------------------

def page() -> str:
    sections = records()
    contents = [f"- [{record['title']}](#{anchor(record['title'])})" for record in sections.values()]
    claims = verdicts_table(sections, {name: anchor(record["title"]) for name, record in sections.items()})
    head = ["# Results", GENERATED, wrapped(INTRODUCTION), *([captioned(claims)] if claims["rows"] else []),
            "\n".join(contents)]
    return "\n\n".join([*head, *(section(name, record) for name, record in sections.items())]) + "\n"


def section(name: str, record: dict) -> str:
    files = ", ".join(f"[{file}.json](../experiments/results/{file}.json)" for file in files_of(name))
    facts = "\n".join([f"- Date: {record['date']}", bullet(f"Machine: {record['machine']}"),
                       bullet(f"Commit: {record['commit']}"), f"- Data: {files}"])
    parts = [f"## {record['title']}", facts, "```\n" + "\n".join(record["command"]) + "\n```",
             *map(wrapped, record["about"]), *map(captioned, record["tables"])]
    pictures = [PICTURES[name]] if name in PICTURES else []
    pictures += [(alt, f"../experiments/results/{file}") for alt, file in record.get("pictures", ())]
    parts += ["![{}]({})".format(*picture) for picture in pictures]
    if record["findings"]:
        parts.append("\n".join(bullet(finding) for finding in record["findings"]))
    return "\n\n".join(parts)


def captioned(table: Table) -> str:
    text = markdown(table["columns"], table["rows"])
    return f"{wrapped(table['caption'])}\n\n{text}" if "caption" in table else text


def wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def bullet(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="- ", subsequent_indent="  ", break_long_words=False,
                         break_on_hyphens=False)


def anchor(title: str) -> str:
    """The anchor that GitHub gives a heading: `anchor("A file, in") == "a-file-in"`."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page differs")
    options = parser.parse_args()
    text = page()
    if not options.check:
        write_text(PAGE, text)
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit(f"{PAGE} differs from {RESULTS}/*.json: run python -m experiments.results_page")


if __name__ == "__main__":
    main()
