"""Loss lost by rounding, and accuracy after fine-tuning, of bases that saw other tokens: tables and the picture."""
import statistics
from pathlib import Path

from experiments.claims.pictures import BLUE, GREEN, MARKS, ORANGE, legend, panels, save
from experiments.shared import markdown
from tasks.pretrain import WINDOW

Table = dict                 # caption, columns, rows
TOKENS = 5632 * 16 * WINDOW  # that today's base has seen: 23.1 M
TODAY = "embedded"           # today's base itself, as it is in the repository
HELD_OUT = ("held_out_today", "held_out_wikitext2")
TEXTS = dict(zip(HELD_OUT, ("today's held-out text", "WikiText-2"), strict=True))
HOW = {"NF": "nf@64x1", "min-max 4x8": "minmax@4x8", "GPTQ": "gptq:minmax@32x1"}
BITS = (4, 3, 2)
LEAST_DRAWN = 1e-3  # nats a token: the noise of so many windows
LINES = {"today's text": "--", "the mix": "-"}  # that bases were trained on
COLORS = dict(zip(HOW, (BLUE, ORANGE, GREEN), strict=True))


def seen_tokens(found: dict, base: str) -> float:
    return TOKENS if base == TODAY else found["cells"][base]["tokens"]


def lost(found: dict, base: str, spec: str, text: str) -> float:
    """nats a token that rounding costs."""
    loss = found["cells"][f"{base}-rounding"]["loss"]
    return loss[spec][text] - loss["16"][text]


def rounded_bases(found: dict) -> list[str]:
    """By tokens seen."""
    names = [facts["tags"]["base"] for facts in found["cells"].values() if facts.get("kind") == "rounding"
             and "loss" in facts]
    return sorted(names, key=lambda base: (round(seen_tokens(found, base) / TOKENS, 2), base.startswith("mix")))


def loss_table(found: dict, text: str) -> Table:
    specs = [f"{how}-{bits}bit" for bits in BITS for how in HOW.values()]
    rows = [[base, f"{seen_tokens(found, base) / 1e6:.1f}",
             f"{found['cells'][f'{base}-rounding']['loss']['16'][text]:.4f}",
             *(f"{lost(found, base, spec, text):+.4f}" for spec in specs)] for base in rounded_bases(found)]
    return {"caption": f"The loss on {TEXTS[text]} at 16 bits, and what rounding adds to it. Nats a token.",
            "columns": ["base", "M tokens", "16 bits", *specs], "rows": rows}


def accuracy_table(found: dict) -> Table:
    """A column for each way of fine-tuning. Of several seeds, the mean."""
    cells = [facts for facts in found["cells"].values() if "accuracy" in facts]
    ways = list(dict.fromkeys(facts["tags"]["way"] for facts in sorted(cells, key=lambda f: f["tags"]["way"])))
    bases = list(dict.fromkeys(facts["tags"]["base"] for facts in cells))

    def mean(base: str, way: str) -> str:
        found = [100 * f["accuracy"] for f in cells if (f["tags"]["base"], f["tags"]["way"]) == (base, way)]
        return f"{statistics.mean(found):.1f}" if found else "not run"
    rows = [[base, *(mean(base, way) for way in ways)] for base in bases]
    seeds = sorted({facts["tags"]["seed"] for facts in cells})
    return {"caption": f"Accuracy on banking77 after fine-tuning, percent of all test rows; seeds {seeds}.",
            "columns": ["base", *ways], "rows": rows}


def tables(found: dict) -> list[Table]:
    return [*(loss_table(found, text) for text in HELD_OUT), accuracy_table(found)]


def draw(found: dict, path: Path, text: str = HELD_OUT[1]) -> None:
    """Loss lost by rounding against tokens seen: one panel a width."""
    bases = rounded_bases(found)
    lines = {name: names for name, start in (("today's text", "today"), ("the mix", "mix"))
             if (names := [base for base in bases if base.startswith(start)])}
    figure, axes = panels([f"{bits} bits" for bits in BITS], title_of(found, bases, text),
                          "nats a token lost by rounding")
    for panel, bits in zip(axes, BITS, strict=True):
        for where, names in lines.items():
            line = LINES[where]
            for how, spec in HOW.items():
                xs = [seen_tokens(found, base) / 1e6 for base in names]
                ys = [max(LEAST_DRAWN, lost(found, base, f"{spec}-{bits}bit", text)) for base in names]
                panel.plot(xs, ys, line, color=COLORS[how], marker=MARKS[COLORS[how]],
                           markerfacecolor="white" if line == "--" else COLORS[how], label=f"{how}, {where}")
        for how, spec in HOW.items():
            cost = max(LEAST_DRAWN, lost(found, TODAY, f"{spec}-{bits}bit", text))
            panel.plot(TOKENS / 1e6, cost, "*", markersize=11, color=COLORS[how], markeredgecolor="black",
                       label=f"{how}, today's base")
        panel.set(xscale="log", yscale="log", xlabel="million tokens seen", ylim=(LEAST_DRAWN, 20))
        panel.set_xticks(sorted({float(f"{seen_tokens(found, base) / 1e6:.2g}") for base in bases}))
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_formatter("{x:g}")
        panel.minorticks_off()
    legend(figure, axes, columns=len(lines) + 1)
    save(figure, path)


def title_of(found: dict, bases: list[str], text: str) -> str:
    """Of the base that saw the most tokens, beside today's."""
    longest = bases[-1]
    by_width = {bits: [max(LEAST_DRAWN, lost(found, longest, f"{how}-{bits}bit", text))
                       / max(LEAST_DRAWN, lost(found, TODAY, f"{how}-{bits}bit", text)) for how in HOW.values()]
                for bits in BITS}
    parts = [f"{min(ratios):.1f} to {max(ratios):.1f} at {bits} bits" for bits, ratios in by_width.items()]
    return (f"{seen_tokens(found, longest) / TOKENS:.3g} times as many tokens ({longest}): rounding costs "
            f"{', '.join(parts)} times what it costs today's base, in nats of {TEXTS[text]}")


def show(found: dict, file: Path) -> None:
    for table in tables(found):
        print(f"{table['caption']}\n\n{markdown(table['columns'], table['rows'])}\n")
    if TODAY in (bases := rounded_bases(found)) and len(bases) > 1:
        draw(found, file.with_suffix(".png"))
