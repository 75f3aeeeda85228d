"""The tables of the comparison of methods, as columns and rows of text."""
from collections import Counter
from collections.abc import Iterable, Sequence

from experiments.cells.plan import Cell
from experiments.claims.evidence import LEVEL, Cells, Facts, Judged, mean_cell, p_cell
from experiments.claims.method_rows import (
    Found,
    Which,
    as_trained,
    at_k_bits,
    first_table,
    loss_of,
    rounded_afterwards,
    tested,
)
from experiments.plans.method_rows import FACTORS, REFERENCE

Table = dict
Tests = dict[tuple[str, int], Judged]
STATES = {"as trained": as_trained, "at k bits": at_k_bits}


def score(found: Found, which: Which) -> str:
    """Percent; mean and standard deviation over the seeds."""
    return mean_cell(found.scores(which), 1)


def loss(found: Found, which: Which) -> str:
    """Validation loss in nats a target token, likewise."""
    return mean_cell(found.losses(which), 3)


def value(found: Found) -> str:
    """The chosen one of those that were tried, marked if it is the first or the last of them."""
    best = found.best
    return "-" if best is None else f"{best['tags']['value']:g}{' (edge)' if found.at_edge else ''}"


def difference(judged: Judged | None) -> str:
    """`+1.2 [+0.1, +2.3], p 0.03 *`: percentage points; p is corrected, a star means below LEVEL."""
    if judged is None:
        return "-"
    star = " *" if judged.adjusted is not None and judged.adjusted < LEVEL else ""
    return f"{judged.points}, {p_words(judged)}{star}"


def p_words(judged: Judged) -> str:
    """`p 0.03`; a p that a float cannot hold is below the smallest one."""
    return "p < 1e-300" if judged.adjusted == 0 else f"p {p_cell(judged)}"


def deployed(found: Found) -> str:
    """Bits a weight of the model at k bits, or of the merged one in 16 bits."""
    if not found.finals:
        return "-"
    states = list(found.states(at_k_bits).values())
    return f"{states[0]['bits_per_weight']:.2f}" if states else "16.00"


def parameters(found: Found) -> str:
    counts = [facts["training"]["trainable_parameters"] for facts in found.finals.values() if facts["states"]]
    return f"{counts[0]:,}" if counts else "-"


def against_reference(found: Sequence[Found]) -> dict[str, Tests]:
    """By state: each row of the first table against REFERENCE at the same width. A width and state is one family."""
    of_states: dict[str, Tests] = {name: {} for name in STATES}
    for pairs in reference_pairs(found):
        for name, which in STATES.items():
            of_states[name] |= tested(pairs, which)
    return of_states


def reference_pairs(found: Sequence[Found]) -> list[list[tuple[Found, Found]]]:
    """(row, REFERENCE) of each width."""
    rows = first_table(found)
    return [[(other, reference) for other in rows if other.row != REFERENCE and other.bits in (reference.bits, 16)]
            for reference in rows if reference.row == REFERENCE]


def methods_table(found: Sequence[Found], bits: int, tests: dict[str, Tests]) -> Table:
    """One width of the first table, with the rows of 16 bits above. `tests`: of `against_reference`."""
    rows = []
    for one in (one for one in first_table(found) if one.bits in (16, bits)):
        exact = "rounded afterwards" if one.states(rounded_afterwards) else "merged"
        rows.append([one.title, str(one.bits), value(one), str(len(one.finals)),
                     score(one, as_trained) if one.finals else "not run", loss(one, as_trained), score(one, at_k_bits),
                     loss(one, at_k_bits), exact if one.states(at_k_bits) else "-",
                     *(difference(tests[name].get((one.row, bits))) for name in STATES), deployed(one),
                     parameters(one)])
    return {"caption": f"{bits} bits, and 16 for comparison. Validation loss in nats a target token. p is corrected; * "
                       "is below 0.05. \"edge\": the best rate is the lowest or the highest that was tried. "
                       "Differences are over the seeds that both rows have.",
            "rows": rows, "columns": [
        "method", "bits", "rate", "seeds", "as trained, %", "loss as trained", "at k bits, %", "loss at k bits", "how",
        f"as trained - {REFERENCE}, points", f"at k bits - {REFERENCE}, points", "bits a weight", "parameters"]}


def rates_table(found: Sequence[Found]) -> Table:
    """Validation losses by rate, and which is best. Rows without a rate that was run are left out."""
    shown = sorted((one for one in first_table(found) if one.rates), key=lambda one: -one.bits)
    every = sorted({factor for one in shown for factor in (*one.factors, *one.factors_run)})
    rows, extra = [], 0
    for one in shown:
        asked = one.factors
        extra += len(set(one.factors_run) - set(asked))
        tried = [at_rate(one.at_factor(factor), asked=factor in asked) for factor in every]
        left = sum(cell == "not run" for cell in tried)
        rows.append([one.title, str(one.bits), *tried, value(one) + f", {left} not run" * bool(left)])
    return {"caption": "Validation loss by learning rate at seed 0, written as rate: loss. LoTA-QAF has a threshold "
                       f"(omega) in its place. \"-\": neither in the plan nor run. \"extra\": run before the plan was "
                       f"changed, and never chosen; cells: {extra}. \"edge\": the lowest or the highest that was run.",
            "rows": rows, "columns": ["method", "bits", *map(times_usual, every), "best"]}


def times_usual(factor: float) -> str:
    if factor == 1:
        return "the usual rate"
    return f"usual * {factor:g}" if factor > 1 else f"usual / {1 / factor:g}"


def at_rate(facts: Facts | None, asked: bool = True) -> str:
    if facts is None:
        return "not run" if asked else "-"
    best = loss_of(facts)
    said = f"{facts['tags']['value']:g}: {'diverged' if best is None else f'{best:.3f}'}"
    return said if asked else f"{said} (extra)"


def balance(found: Sequence[Found]) -> list[tuple[Found, Found]]:
    """(Q-BLoRA, QLoRA) of each lam and width."""
    plain = {one.bits: one for one in found if one.row == "qlora"}
    return [(one, plain[one.bits]) for one in first_table(found)
            if one.row.startswith("qblora-") and one.bits in plain]


def balance_table(found: Sequence[Found]) -> Table:
    """Does the gain of Q-BLoRA over QLoRA survive tuned rates?"""
    pairs = balance(found)
    tests = tested(pairs, as_trained)
    rows = []
    for one, plain in pairs:
        same = [gain(one, plain, factor) for factor in FACTORS]
        rows.append([one.title, str(one.bits), *same, loss_gain(one, plain),
                     difference(tests.get((one.row, one.bits)))])
    return {"caption": "Q-BLoRA minus QLoRA, of equal parameters. Validation loss: below 0 means that Q-BLoRA is "
                       "better. The first three columns: one seed at the same rate.",
            "rows": rows, "columns": ["method", "bits", "loss at usual / 3", "loss at the usual rate",
                                      "loss at usual * 3", "loss, each at its best rate",
                                      "as trained, each at its best rate, points"]}


def gain(one: Found, plain: Found, factor: float) -> str:
    a, b = (loss_of(facts) if (facts := found.at_factor(factor)) else None for found in (one, plain))
    return "-" if a is None or b is None else f"{a - b:+.3f}"


def loss_gain(one: Found, plain: Found) -> str:
    """Over the seeds that both have."""
    a, b = one.states(as_trained), plain.states(as_trained)
    return mean_cell([a[seed]["validation_loss"] - b[seed]["validation_loss"] for seed in sorted(a.keys() & b.keys())],
                     3, "+")


# ---- the other parts ------------------------------------------------------------------------------------------------

def part_table(found: Sequence[Found], part: str, caption: str, beside: Iterable[str]) -> Table:
    """The rows of a part, and rows of the first table at the same widths to compare them with."""
    widths = {one.bits for one in found if one.part == part}
    names = tuple(beside)
    chosen = [one for one in found if one.bits in widths
              and (one.part == part or one.part == "methods" and one.row in names)]
    rows = [[titled(one), str(one.bits), value(one), score(one, as_trained),
             loss(one, as_trained), score(one, at_k_bits), loss(one, at_k_bits), parameters(one)]
            for one in sorted(chosen, key=lambda one: -one.bits)]
    return {"caption": caption, "rows": rows, "columns": ["method", "bits", "rate", "as trained, %", "loss as trained",
                                                          "at k bits, %", "loss at k bits", "parameters"]}


def titled(found: Found) -> str:
    return f"{found.title}, {found.slower:g} times fewer steps" if found.slower != 1 else found.title


def costs_table(costs: dict) -> Table:
    """Shen et al., Table 5, of `python -m experiments.method_costs`."""
    rows = []
    for row in costs["rows"]:
        after, inference = row["seconds_after_training"], row["inference_mb"]
        training = f"{row['base_mb']:.1f} + {row['peak_mb'] - row['base_mb']:.1f}"
        rows.append([row["title"], str(row["bits"]), training, *numbers(inference, 1),
                     f"{row['seconds_before_training']:.2f}", f"{1000 * row['step_seconds']:.1f}",
                     f"{row['step_to_lora']:.2f}", *numbers(after, 2)])
    how = "as train.py --mem-report measures it" if "CPU" in costs["device"] else "at the peak"
    memory = f"Memory for fine-tuning is the base + the rest, {how}."
    model = "the embedded base" if costs["model"] == "base" else costs["model"]
    return {"caption": f"Costs with {model} on {costs['device']}. {memory} All rows took turns in one process: quote "
                       f"the ratios, not the seconds.", "rows": rows,
            "columns": ["method", "bits", "to fine-tune, MB", "merged, MB", "rounded afterwards, MB",
                        "loading and quantizing, s", "step, ms", "step / LoRA's", "merging, s",
                        "merging and rounding, s"]}


def numbers(of_states: dict[str, float], digits: int) -> list[str]:
    return [f"{of_states[key]:.{digits}f}" if key in of_states else "-" for key in ("merged", "requantized")]


def bases_table(bases: Iterable[Facts]) -> Table:
    """The untrained bases: what rounding alone costs."""
    rows = [[facts["tags"]["title"], str(facts["tags"]["bits"]), f"{state['validation_loss']:.3f}",
             f"{100 * state['scores'][state['metric']]:.1f}", f"{state['bits_per_weight']:.2f}"]
            for facts in bases for state in facts["states"].values()]
    return {"caption": "The bases before training, named after a method that uses them.", "rows": rows,
            "columns": ["base of", "bits", "validation loss", "score, %", "bits a weight"]}


def identity(tags: dict) -> tuple:
    return tuple(tags.get(name) for name in ("row", "part", "bits", "role", "factor", "seed", "slower"))


def progress_table(cells: Cells, planned: Sequence[Cell]) -> Table:
    """How many of the planned cells were run, by width and kind. Names of a real model's rates differ with its width,
    so cells are known by their tags."""
    def kind(tags: dict) -> str:
        if tags["part"] != "methods":
            return "further parts"
        return {"base": "bases", "rate": "rates"}.get(tags["role"], "seed 0" if tags["seed"] == 0 else "seeds 1, 2")

    plan = planned[0].name.split("-")[0]
    asked = {identity(cell.tags): (cell.tags["bits"], kind(cell.tags)) for cell in planned}
    found = {identity(facts["tags"]) for facts in cells.facts.values() if facts["plan"] == plan}
    done, asked = Counter(asked[key] for key in found & asked.keys()), Counter(asked.values())
    kinds = [name for name in ("bases", "rates", "seed 0", "seeds 1, 2", "further parts")
             if any(name == other for _, other in asked)]
    widths = sorted({bits for bits, _ in asked}, reverse=True)
    rows = [[str(bits), *(f"{done[bits, name]} of {asked[bits, name]}" if asked[bits, name] else "-"
                          for name in kinds)] for bits in widths]
    return {"caption": f"Cells that were run, of those planned: {sum(done.values())} of {asked.total()}.",
            "columns": ["bits", *kinds], "rows": rows}
