"""Pictures of the comparison of methods. Titles say what was found, from the numbers."""
import statistics
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from experiments.claims.method_rows import Found, as_trained, at_k_bits, first_table, loss_of, rounded_afterwards
from experiments.claims.method_tables import FIFTHS, fifth
from experiments.claims.pictures import BLACK, BLUE, GREEN, ORANGE, RED, save
from finetune.pictures import pyplot

LAMS = ((1, BLACK, "o"), (2, ORANGE, "s"), (4, BLUE, "^"), (8, RED, "D"))
WIDTHS = ((4, BLUE, "o"), (3, GREEN, "s"), (2, RED, "D"))
BINS = 20
TICKS = (-0.3, -0.1, 0, 0.1, 0.3, 1, 3, 10)


def mean(values: Sequence[float]) -> float:
    return statistics.mean(values)


def spread_of(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def row_of_panels(n: int, width: float, height: float, title: str) -> tuple[Any, list]:
    """Panels that share their y axis, under a title that is broken where it is wider than they are."""
    figure, axes = pyplot().subplots(1, n, figsize=(width * n + 1.5, height), sharey=True, squeeze=False,
                                     layout="constrained")
    first, *more = title.split("\n")
    figure.suptitle("\n".join([fill(first, int(11 * (width * n + 1.5))), *more]), fontsize=11)
    return figure, list(axes[0])


# ---- the scores -----------------------------------------------------------------------------------------------------

def draw_scores(found: Sequence[Found], path: Path, base: str) -> None:
    """A panel for each width: as trained (hollow) and at k bits (filled), beside LoRA at 16 bits."""
    rows = [one for one in first_table(found) if one.finals]
    titles = list(dict.fromkeys(one.title for one in rows if one.bits < 16))
    widths = [bits for bits, *_ in WIDTHS if any(one.bits == bits for one in rows)]
    figure, panels = row_of_panels(len(widths), 4, 0.36 * len(titles) + 2.2, f"{scores_title(rows)}\n{base}")
    lora = next((one for one in rows if one.row == "lora"), None)
    for axes, bits in zip(panels, widths, strict=True):
        for one in (one for one in rows if one.bits == bits):
            dots(axes, one, len(titles) - titles.index(one.title))
        if lora:
            axes.axvline(mean(lora.scores(as_trained)), color=BLACK, linestyle=":", linewidth=1)
        axes.set_title(f"{bits} bits", fontsize=10)
        axes.set_xlabel("test score, %")
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(titles), 0, -1), titles)
    figure.legend(handles=legend(lora), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    save(figure, path)


def dots(axes: Any, one: Found, y: float) -> None:
    trained, last = one.scores(as_trained), one.scores(at_k_bits)
    if trained and last:
        axes.plot([mean(trained), mean(last)], [y, y], color="0.6", linewidth=1.5, zorder=1)
    for values, filled, lift in ((trained, False, 0.12), (last, True, -0.12)):
        if values:
            color = RED if filled and one.states(rounded_afterwards) else BLUE
            axes.errorbar(mean(values), y + lift, xerr=spread_of(values), fmt="o", color=color, markersize=5.5,
                          markerfacecolor=color if filled else "white", capsize=2, elinewidth=1, zorder=2)


def legend(lora: Found | None) -> list:
    line = pyplot().Line2D
    shown = [("as trained", BLUE, "white"), ("merged into k bits", BLUE, BLUE), ("rounded afterwards", RED, RED)]
    return [*(line([], [], marker="o", linestyle="", color=color, markerfacecolor=face, label=text)
              for text, color, face in shown),
            *([line([], [], color=BLACK, linestyle=":", label="LoRA on 16 bits; bars: deviation over seeds")]
              if lora else [])]


def scores_title(rows: Sequence[Found]) -> str:
    """What rounding QLoRA afterwards costs at the narrowest width, and the best that ends in k bits there."""
    bits = min((one.bits for one in rows), default=16)
    ends = {one: mean(scores) for one in rows if one.bits == bits and (scores := one.scores(at_k_bits))}
    qlora = next((one for one in ends if one.row == "qlora"), None)
    if not ends:
        return "Methods at k bits"
    best = max(ends, key=lambda one: ends[one])
    if qlora is None:
        return f"At {bits} bits, {best.title} is best: {ends[best]:.1f} %"
    cost = mean(qlora.scores(as_trained)) - ends[qlora]
    return (f"At {bits} bits, rounding QLoRA afterwards costs {cost:.1f} points; "
            f"{best.title} ends there with {ends[best]:.1f} %")


# ---- the balancing factor -------------------------------------------------------------------------------------------

def lam_rows(found: Sequence[Found], bits: int) -> list[tuple[int, str, str, Found]]:
    """(lam, color, marker, row) of LoRA and BLoRA at 16 bits, of QLoRA and Q-BLoRA below."""
    plain, balanced = ("lora", "blora") if bits == 16 else ("qlora", "qblora")
    by_name = {one.row: one for one in first_table(found) if one.bits == bits}
    names = {1: plain, **{lam: f"{balanced}-{lam}" for lam, *_ in LAMS[1:]}}
    return [(lam, color, marker, by_name[names[lam]]) for lam, color, marker in LAMS if names[lam] in by_name]


def lam_widths(found: Sequence[Found]) -> list[int]:
    return [bits for bits in (16, 4, 3, 2) if lam_rows(found, bits)]


def draw_rates(found: Sequence[Found], path: Path, base: str) -> None:
    """Validation loss by learning rate, a line for each lam: whether a gain holds at every rate, or at the best."""
    widths = lam_widths(found)
    note = "bars: mean and deviation over seeds at the best rate"
    figure, panels = row_of_panels(len(widths), 3.2, 4.1, f"{rates_title(found)}\n{base}; {note}")
    for axes, bits in zip(panels, widths, strict=True):
        rows = lam_rows(found, bits)
        for lam, color, marker, one in rows:
            points = [(facts["tags"]["value"], loss_of(facts)) for facts in one.rates if loss_of(facts) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), color=color, marker=marker, markersize=5, label=f"lam {lam}")
            if one.best and (seeds := one.losses(as_trained)):
                axes.errorbar(one.best["tags"]["value"], mean(seeds), yerr=spread_of(seeds), color=color, capsize=4)
        axes.set(xscale="log", xlabel="learning rate", title=f"{bits} bits")
        rates = sorted({facts["tags"]["value"] for *_, one in rows for facts in one.rates})
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("validation loss, nats a target token")
    beside(panels[-1])
    save(figure, path)


def beside(axes: Any) -> None:
    """The legend to the right of the last panel, where it covers nothing."""
    axes.legend(fontsize=8, title="lam 1: (Q)LoRA", title_fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5),
                frameon=False)


def rates_title(found: Sequence[Found]) -> str:
    said: list[tuple[str, str, str]] = []
    for bits in lam_widths(found):
        losses = {lam: mean(seeds) for lam, _, _, one in lam_rows(found, bits) if (seeds := one.losses(as_trained))}
        if 1 in losses and len(losses) > 1:
            best = min((lam for lam in losses if lam > 1), key=losses.__getitem__)
            said.append((f"{losses[best] - losses[1]:+.3f}", str(bits), str(best)))
    if not said:
        return "Validation loss by rate and lam"
    gains, at, lams = (" / ".join(column) for column in zip(*said, strict=True))
    return f"Best lam minus lam 1, each at its best rate: {gains} nats at {at} bits (lam {lams})"


def draw_gradients(found: Sequence[Found], path: Path, base: str) -> None:
    """The gradient's norm by step at the same rate: mean and quartiles of 20 equal parts of the training."""
    widths = lam_widths(found)
    note = "all at the same rate; bands: quartiles"
    figure, panels = row_of_panels(len(widths), 3.2, 4.1, f"{gradients_title(found)}\n{base}; {note}")
    for axes, bits in zip(panels, widths, strict=True):
        for lam, color, marker, one in lam_rows(found, bits):
            same = one.at_factor(1.0)
            norms = same["training"].get("gradient_norms", []) if same else []
            if len(norms) < BINS:
                continue
            parts = [norms[i * len(norms) // BINS:(i + 1) * len(norms) // BINS] for i in range(BINS)]
            steps = [(i + 0.5) * len(norms) / BINS for i in range(BINS)]
            axes.plot(steps, list(map(mean, parts)), color=color, marker=marker, markersize=3.5, label=f"lam {lam}")
            low, high = zip(*map(quartiles, parts), strict=True)
            axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        axes.set(yscale="log", xlabel="step", title=f"{bits} bits")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("norm of the gradient")
    beside(panels[-1])
    save(figure, path)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def late_norms(found: Sequence[Found], bits: int) -> dict[int, float]:
    """By lam: the mean norm over the last fifth of the training at the usual rate, seed 0."""
    return {lam: fifth(facts["training"]["gradient_norms"], FIFTHS - 1) for lam, _, _, one in lam_rows(found, bits)
            if (facts := one.at_factor(1.0)) and facts["training"].get("gradient_norms")}


def gradients_title(found: Sequence[Found]) -> str:
    norms = {bits: late_norms(found, bits) for bits in lam_widths(found)}
    lora = norms.get(16, {}).get(1)
    narrow = [bits for bits in norms if bits < 16 and 1 in norms[bits]]
    widths = " / ".join(map(str, narrow))
    ratios = " / ".join(f"{norms[bits][1] / lora:.2f}" for bits in narrow) if lora else "not compared"
    lowered = " / ".join(f"{norms[bits][8] / norms[bits][1]:.2f}" for bits in narrow if 8 in norms[bits])
    return (f"Late in training, QLoRA's gradient at {widths} bits is {ratios} times LoRA's; lam 8 multiplies it by "
            f"{lowered or '-'}")


# ---- the size of the effect -----------------------------------------------------------------------------------------

def draw_sizes(bases: dict[str, Sequence[Found]], path: Path) -> None:
    """A panel for each base: how far each row's validation loss at k bits is above LoRA's on 16 bits."""
    rows = {name: [one for one in first_table(found) if one.finals] for name, found in bases.items()}
    titles = list(dict.fromkeys(one.title for found in rows.values() for one in found if one.bits < 16))
    figure, panels = row_of_panels(len(bases), 5.2, 5.2, sizes_title(bases))
    for axes, (name, found) in zip(panels, rows.items(), strict=True):
        lora = next((mean(one.losses(as_trained)) for one in found if one.row == "lora"), None)
        for place, (bits, color, marker) in enumerate(WIDTHS):
            for one in (one for one in found if one.bits == bits and lora is not None):
                if values := one.losses(at_k_bits):
                    y = len(titles) - titles.index(one.title) + 0.2 * (1 - place)
                    axes.errorbar(mean(values) - (lora or 0.0), y, xerr=spread_of(values), fmt=marker, color=color,
                                  markersize=5, capsize=2, elinewidth=1)
        axes.axvline(0, color=BLACK, linestyle=":", linewidth=1)
        axes.set_xscale("symlog", linthresh=0.1)
        low, high = axes.get_xlim()
        axes.set_xticks([tick for tick in TICKS if low <= tick <= high], [f"{t:g}" for t in TICKS if low <= t <= high])
        axes.minorticks_off()
        axes.set(xlabel="validation loss at k bits minus LoRA's on 16 bits, nats", title=name)
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(titles), 0, -1), titles)
    line = pyplot().Line2D
    figure.legend(handles=[line([], [], marker=marker, linestyle="", color=color, label=f"{bits} bits")
                           for bits, color, marker in WIDTHS], loc="outside lower center", ncols=3, frameon=False,
                  fontsize=9)
    save(figure, path)


def sizes_title(bases: dict[str, Sequence[Found]]) -> str:
    said = []
    for name, found in bases.items():
        rows = [one for one in first_table(found) if one.finals]
        lora = next((mean(one.losses(as_trained)) for one in rows if one.row == "lora"), None)
        ends = [mean(losses) for one in rows if one.bits == 2 and (losses := one.losses(at_k_bits))]
        if lora is not None and ends:
            said.append(f"{min(ends) - lora:+.2f} to {max(ends) - lora:+.2f} nats on {name}")
    return f"What 2 bits cost beside LoRA on 16 bits: {'; '.join(said) or 'not measured'}"
