"""The tables of the comparison of methods, as columns and rows of text."""
import statistics
from collections.abc import Iterable, Sequence

from experiments.methods.found import (
    Found,
    Tested,
    Which,
    as_trained,
    at_k_bits,
    family,
    rounded_afterwards,
)
from experiments.plans.method_rows import REFERENCE
from experiments.shared import spread

Table = dict
Against = dict[str, dict[tuple[str, int], Tested]]
LATE = 5        # the last fifth of the training
LEVEL = 0.05
STATES = (("as trained", as_trained), ("at k bits", at_k_bits))


def score(found: Found, which: Which) -> str:
    """Of the task's metric, in percent; mean and standard deviation over the seeds."""
    states = found.states(which)
    return spread([state["scores"][state["metric"]] for state in states], 1, scale=100) if states else "-"


def loss(found: Found, which: Which) -> str:
    """Validation loss in nats a target token, likewise."""
    states = found.states(which)
    return spread([state["validation_loss"] for state in states], 3) if states else "-"


def value(found: Found) -> str:
    """The chosen one of those that were tried, marked if it is the first or the last of them."""
    best = found.best
    return "-" if best is None else f"{best['tags']['value']:g}{' (edge)' if found.at_edge else ''}"


def difference(tested: Tested | None) -> str:
    """`+1.2 (p 0.03)*` in percentage points; a star below LEVEL."""
    if tested is None:
        return "-"
    p = "-" if tested.p is None else f"{tested.p:.2g}"
    star = "*" if tested.p is not None and tested.p < LEVEL else ""
    return f"{100 * tested.result.difference:+.1f} (p {p}){star}"


def deployed(found: Found) -> str:
    """Bits a weight of the model at k bits, or of the merged one in 16 bits."""
    states = found.states(at_k_bits)
    return f"{states[0]['bits_per_weight']:.2f}" if states else "16.00"


def parameters(found: Found) -> str:
    return f"{found.finals[0]['training']['trainable_parameters']:,}" if found.finals else "-"


def against_reference(found: Sequence[Found]) -> Against:
    """By state, then by row and width: tests of each row of the first table against REFERENCE at the same width."""
    tested: Against = {name: {} for name, _ in STATES}
    first = [one for one in found if one.part == "methods"]
    for reference in (one for one in first if one.row == REFERENCE):
        others = [one for one in first if one.row != REFERENCE and one.bits in (reference.bits, 16)]
        for name, which in STATES:
            pairs = [(other, reference) for other in others if which is as_trained or other.bits != 16]
            tested[name] |= {(t.a, reference.bits): t for t in family(pairs, which)}
    return tested


def methods_table(found: Sequence[Found], bits: int, tested: Against) -> Table:
    """One width of the first table, with the rows of 16 bits above. `tested`: of `against_reference`."""
    rows = []
    for one in (one for one in found if one.part == "methods" and one.bits in (16, bits)):
        exact = "rounded afterwards" if one.states(rounded_afterwards) else "merged"
        rows.append([one.title, str(one.bits), value(one), score(one, as_trained), loss(one, as_trained),
                     score(one, at_k_bits), loss(one, at_k_bits), exact if one.states(at_k_bits) else "-",
                     *(difference(tested[name].get((one.row, bits))) for name, _ in STATES), deployed(one),
                     parameters(one)])
    return {"caption": f"{bits} bits, and 16 for comparison.", "rows": rows, "columns": [
        "method", "bits", "rate", "as trained, %", "loss as trained", "at k bits, %", "loss at k bits", "how",
        f"as trained - {REFERENCE}, points", f"at k bits - {REFERENCE}, points", "bits a weight", "parameters"]}


def balance(found: Sequence[Found]) -> list[tuple[Found, Found]]:
    """(Q-BLoRA, QLoRA) of each lam and width."""
    plain = {one.bits: one for one in found if one.row == "qlora"}
    return [(one, plain[one.bits]) for one in found
            if one.part == "methods" and one.row.startswith("qblora-") and one.bits in plain]


def balance_table(found: Sequence[Found]) -> Table:
    """Does the gain of Q-BLoRA over QLoRA survive tuned rates?"""
    pairs = balance(found)
    tested = {(t.a, t.bits): t for t in family(pairs, as_trained)}
    rows = []
    for one, plain in pairs:
        same = [gain(one, plain, factor) for factor in (1 / 3, 1.0, 3.0)]
        rows.append([one.title, str(one.bits), *same, loss_gain(one, plain),
                     difference(tested.get((one.row, one.bits)))])
    return {"caption": "Q-BLoRA minus QLoRA, of equal parameters. Validation loss: below 0 means that Q-BLoRA is "
                       "better. The first three columns: one seed at the same rate.",
            "rows": rows, "columns": ["method", "bits", "loss at usual / 3", "loss at the usual rate",
                                      "loss at usual * 3", "loss, each at its best rate",
                                      "as trained, each at its best rate, points"]}


def gain(one: Found, plain: Found, factor: float) -> str:
    pair = [facts["training"]["best_validation_loss"] if (facts := found.at_factor(factor)) else None
            for found in (one, plain)]
    return "-" if None in pair else f"{pair[0] - pair[1]:+.3f}"


def loss_gain(one: Found, plain: Found) -> str:
    """Over the seeds that both have."""
    pairs = list(zip(one.states(as_trained), plain.states(as_trained), strict=False))
    return spread([a["validation_loss"] - b["validation_loss"] for a, b in pairs], 3, "+") if pairs else "-"


# ---- gradients ------------------------------------------------------------------------------------------------------

GRADIENTS = ("lora", "blora-2", "blora-4", "blora-8", "qlora", "qblora-2", "qblora-4", "qblora-8")


def gradients_table(found: Sequence[Found]) -> Table:
    rows = []
    for one in (one for one in found if one.part == "methods" and one.row in GRADIENTS):
        same = one.at_factor(1.0)
        norms = same["training"].get("gradient_norms") if same else None
        if not norms:
            continue
        first, late = fifth(norms, 0), fifth(norms, LATE - 1)
        tuned = [fifth(facts["training"]["gradient_norms"], LATE - 1) for facts in one.finals]
        losses = same["training"]["losses"]
        rows.append([one.title, str(one.bits), f"{first:.3f}", f"{late:.3f}", f"{fifth(losses, LATE - 1):.3f}",
                     spread(tuned, 3) if tuned else "-"])
    return {"caption": "Norm of the gradient over all adapters, before clipping: mean of the first and the last fifth "
                       "of the steps, at the same rate (seed 0), and at each row's best rate.",
            "rows": rows, "columns": ["method", "bits", "first fifth", "last fifth", "training loss, last fifth",
                                      "last fifth at the best rate"]}


def fifth(values: Sequence[float], i: int) -> float:
    """The mean of the i-th fifth."""
    n = len(values)
    return statistics.mean(values[i * n // LATE:(i + 1) * n // LATE])


# ---- the other parts ------------------------------------------------------------------------------------------------

def part_table(found: Sequence[Found], part: str, caption: str, beside: Iterable[str]) -> Table:
    """The rows of a part, and rows of the first table at the same widths to compare them with."""
    widths = {one.bits for one in found if one.part == part}
    names = tuple(beside)
    chosen = [one for one in found if one.bits in widths
              and (one.part == part or one.part == "methods" and one.row in names)]
    rows = [[titled(one), str(one.bits), value(one) if one.rates else "that of the row", score(one, as_trained),
             loss(one, as_trained), score(one, at_k_bits), loss(one, at_k_bits), parameters(one)]
            for one in sorted(chosen, key=lambda one: -one.bits)]
    return {"caption": caption, "rows": rows, "columns": ["method", "bits", "rate", "as trained, %", "loss as trained",
                                                          "at k bits, %", "loss at k bits", "parameters"]}


def titled(found: Found) -> str:
    return f"{found.title}, {found.slower:g} times fewer steps" if found.slower != 1 else found.title


def costs_table(costs: dict) -> Table:
    """Shen et al., Table 5."""
    rows = []
    for row in costs["rows"]:
        peak = row["peak_mb"]
        training = "-" if peak is None else f"{row['base_mb']:.1f} + {peak - row['base_mb']:.1f}"
        after, inference = row["seconds_after_training"], row["inference_mb"]
        rows.append([row["title"], str(row["bits"]), training, *(f"{inference[key]:.1f}" if key in inference else "-"
                                                                for key in ("merged", "requantized")),
                     f"{row['seconds_before_training']:.2f}", f"{1000 * row['step_seconds']:.1f}",
                     f"{row['step_to_lora']:.2f}", *(f"{after[key]:.2f}" if key in after else "-"
                                                     for key in ("merged", "requantized"))])
    return {"caption": f"{costs['model']} on {costs['device']}: memory for fine-tuning (base + the rest at the peak), "
                       f"memory for inference, and time.",
            "rows": rows, "columns": ["method", "bits", "to fine-tune, MB", "merged, MB", "rounded afterwards, MB",
                                      "loading and quantizing, s", "step, ms", "step / LoRA's", "merging, s",
                                      "merging and rounding, s"]}


def bases_table(bases: Sequence[dict]) -> Table:
    """The untrained bases: what rounding alone costs."""
    rows = []
    for facts in bases:
        for state in facts["states"].values():
            rows.append([facts["tags"]["title"], str(facts["tags"]["bits"]), f"{state['validation_loss']:.3f}",
                         f"{100 * state['scores'][state['metric']]:.1f}", f"{state['bits_per_weight']:.2f}"])
    return {"caption": "The bases before training, named after the method that uses them.", "rows": rows,
            "columns": ["base of", "bits", "validation loss", "score, %", "bits a weight"]}
