"""The picture of the balancing factor lam: the loss by rate."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.claims.method_pictures import mean, row_of_panels, seeds_of, spread_of
from experiments.claims.method_rows import Found, as_trained, first_table, loss_of
from experiments.claims.pictures import BLACK, BLUE, ORANGE, RED, save

LAMS = ((1, BLACK, "o"), (2, ORANGE, "s"), (4, BLUE, "^"), (8, RED, "D"))


def lam_rows(found: Sequence[Found], bits: int) -> list[tuple[int, str, str, Found]]:
    """(lam, color, marker, row) of LoRA and BLoRA at 16 bits, of QLoRA and Q-BLoRA below."""
    plain, balanced = ("lora", "blora") if bits == 16 else ("qlora", "qblora")
    by_name = {one.row: one for one in first_table(found) if one.bits == bits}
    names = {1: plain, **{lam: f"{balanced}-{lam}" for lam, *_ in LAMS[1:]}}
    return [(lam, color, marker, by_name[names[lam]]) for lam, color, marker in LAMS if names[lam] in by_name]


def rate_widths(found: Sequence[Found]) -> list[int]:
    """Those with a rate to draw."""
    return [bits for bits in (16, 4, 3, 2)
            if any(loss_of(facts) is not None for *_, one in lam_rows(found, bits) for facts in one.rates)]


LOSSES = (0.1, 0.2, 0.5, 1, 2, 5)  # nats, marked on the axis of draw_rates


def draw_rates(found: Sequence[Found], path: Path, base: str) -> None:
    """Validation loss by learning rate, a line for each lam: whether a gain holds at every rate, or at the best."""
    widths = rate_widths(found)
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
    for bits in rate_widths(found):
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
