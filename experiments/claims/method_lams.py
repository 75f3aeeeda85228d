"""Pictures of the balancing factor lam: the loss by rate, and the norm of the gradient by step."""
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import LogLocator, NullFormatter

from experiments.claims.method_pictures import mean, row_of_panels, seeds_of, spread_of
from experiments.claims.method_rows import Found, as_trained, first_table, loss_of
from experiments.claims.method_tables import FIFTHS, fifth
from experiments.claims.pictures import BLACK, BLUE, ORANGE, RED, save

LAMS = ((1, BLACK, "o"), (2, ORANGE, "s"), (4, BLUE, "^"), (8, RED, "D"))
BINS = 20


def lam_rows(found: Sequence[Found], bits: int) -> list[tuple[int, str, str, Found]]:
    """(lam, color, marker, row) of LoRA and BLoRA at 16 bits, of QLoRA and Q-BLoRA below."""
    plain, balanced = ("lora", "blora") if bits == 16 else ("qlora", "qblora")
    by_name = {one.row: one for one in first_table(found) if one.bits == bits}
    names = {1: plain, **{lam: f"{balanced}-{lam}" for lam, *_ in LAMS[1:]}}
    return [(lam, color, marker, by_name[names[lam]]) for lam, color, marker in LAMS if names[lam] in by_name]


def lam_widths(found: Sequence[Found]) -> list[int]:
    return [bits for bits in (16, 4, 3, 2) if lam_rows(found, bits)]


LOSSES = (0.1, 0.2, 0.5, 1, 2, 5)  # nats, marked on the axis of draw_rates


def draw_rates(found: Sequence[Found], path: Path, base: str) -> None:
    """Validation loss by learning rate, a line for each lam: whether a gain holds at every rate, or at the best."""
    widths = lam_widths(found)
    note = "bars: mean and deviation over seeds at the best rate" if seeds_of(found) > 1 else "one seed, so no bars"
    figure, panels = row_of_panels(len(widths), 3.2, 4.1, f"{rates_title(found)}\n{base}; {note}")
    for axes, bits in zip(panels, widths, strict=True):
        rows = lam_rows(found, bits)
        for lam, color, marker, one in rows:
            points = [(facts["tags"]["value"], loss_of(facts)) for facts in one.rates if loss_of(facts) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), color=color, marker=marker, markersize=5, label=f"lam {lam}")
            if one.best and (seeds := one.losses(as_trained)):
                axes.errorbar(one.best["tags"]["value"], mean(seeds), yerr=spread_of(seeds), color=color, capsize=4)
        axes.set(xscale="log", yscale="log", xlabel="learning rate", title=f"{bits} bits")
        rates = sorted({facts["tags"]["value"] for *_, one in rows for facts in one.rates})
        axes.set_xticks(rates, [f"{rate:.2g}" for rate in rates], fontsize=8)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("validation loss, nats a target token")
    panels[0].set_yticks(LOSSES, map(str, LOSSES))
    beside(panels[-1])
    save(figure, path)


def beside(axes: Any) -> None:
    """The legend to the right of the last panel, where it covers nothing."""
    axes.legend(fontsize=8, title="lam 1: (Q)LoRA", title_fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5),
                frameon=False)


def rates_title(found: Sequence[Found]) -> str:
    """Says where the better rates may lie beyond those that were tried."""
    said: list[tuple[str, str, str]] = []
    edges = []
    for bits in lam_widths(found):
        rows = {lam: one for lam, _, _, one in lam_rows(found, bits)}
        losses = {lam: mean(seeds) for lam, one in rows.items() if (seeds := one.losses(as_trained))}
        if 1 in losses and len(losses) > 1:
            best = min((lam for lam in losses if lam > 1), key=losses.__getitem__)
            said.append((f"{losses[best] - losses[1]:+.3f}", str(bits), str(best)))
            edges.append(rows[best].at_edge)
    if not said:
        return "Validation loss by rate and lam"
    gains, at, lams = (" / ".join(column) for column in zip(*said, strict=True))
    lams = lams if len({lam for *_, lam in said}) > 1 else said[0][2]
    beyond = ", which is at the edge of those tried" if all(edges) else ""
    return f"Best lam minus lam 1: {gains} nats at {at} bits (lam {lams}), each at its best rate{beyond}"


def draw_gradients(found: Sequence[Found], path: Path, base: str) -> None:
    """The gradient's norm by step at the same rate: mean and quartiles of 20 equal parts of the training."""
    widths = lam_widths(found)
    note = "all at the same rate, one seed; bands: quartiles of the steps"
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
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
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
