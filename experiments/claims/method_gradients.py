"""Norms of the gradient at the usual rate, by the balancing factor lam: table, sentences and picture."""
import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.ticker import LogLocator, NullFormatter

from experiments.claims.evidence import mean_cell
from experiments.claims.method_findings import listed
from experiments.claims.method_lams import beside, lam_rows
from experiments.claims.method_pictures import mean, row_of_panels
from experiments.claims.method_rows import Found, first_table, rate_of
from experiments.claims.method_tables import Table
from experiments.claims.pictures import save
from experiments.plans.method_rows import WIDTHS

BINS, FIFTHS = 20, 5
FEWEST = 6  # seeds that a sign test needs: two-sided, p = 2 / 2^n is below 0.05 from six on
GRADIENTS = ("lora", "blora-2", "blora-4", "blora-8", "qlora", "qblora-2", "qblora-4", "qblora-8")


def gradients_table(found: Sequence[Found]) -> Table:
    rows = []
    for one in (one for one in first_table(found) if one.row in GRADIENTS):
        same = one.at_factor(1.0)
        if not same or "gradient_norms" not in same["training"]:
            continue
        norms, losses = same["training"]["gradient_norms"], same["training"]["losses"]
        tuned = [fifth(facts["training"]["gradient_norms"], FIFTHS - 1) for facts in one.finals.values()
                 if facts["states"]]
        rows.append([one.title, str(one.bits), f"{fifth(norms, 0):.3f}", f"{fifth(norms, FIFTHS - 1):.3f}",
                     f"{fifth(losses, FIFTHS - 1):.3f}", mean_cell(tuned, 3)])
    return {"caption": "Norm of the gradient over all adapters, before clipping: mean of the first and the last fifth "
                       "of the steps, at the usual rate (seed 0), and at each row's best rate.",
            "rows": rows, "columns": ["method", "bits", "first fifth", "last fifth", "training loss, last fifth",
                                      "last fifth at the best rate"]}


def fifth(values: Sequence[float], i: int) -> float:
    """The mean of the i-th fifth."""
    n = len(values)
    return statistics.mean(values[i * n // FIFTHS:max(i * n // FIFTHS + 1, (i + 1) * n // FIFTHS)])


# ---- by seed --------------------------------------------------------------------------------------------------------

def late_norms(found: Sequence[Found], bits: int) -> dict[int, dict[int, float]]:
    """By lam and seed: the mean norm over the last fifth of the training at the usual rate.

    Seed 0 is the cell of the rate; further seeds are those whose best rate is the usual one."""
    norms = {lam: late_by_seed(one) for lam, _, _, one in lam_rows(found, bits)}
    return {lam: of_seeds for lam, of_seeds in norms.items() if of_seeds}


def late_by_seed(one: Found) -> dict[int, float]:
    same = one.at_factor(1.0)
    if not same:
        return {}
    further = {seed: facts for seed, facts in sorted(one.finals.items()) if seed and rate_of(facts) == rate_of(same)}
    return {seed: fifth(facts["training"]["gradient_norms"], FIFTHS - 1) for seed, facts in {0: same, **further}.items()
            if facts["training"].get("gradient_norms")}


def ratios(a: dict[int, float], b: dict[int, float]) -> list[float]:
    """a / b of each seed that both have."""
    return [a[seed] / b[seed] for seed in sorted(a.keys() & b.keys())]


def times(of_seeds: Sequence[float]) -> str:
    """`1.02, 0.99 and 1.02 times`"""
    return f"{listed([f'{ratio:.2f}' for ratio in of_seeds])} times"


def untested(seeds: int) -> str:
    """Why there is no test."""
    return "one seed" if seeds == 1 else f"{seeds} seeds at most, and a sign test needs {FEWEST}"


def of_gradients(found: Sequence[Found]) -> list[str]:
    """Shen et al., Figure 2, by seed, from the last fifth of the steps."""
    said = []
    lora = late_norms(found, 16).get(1, {})
    for bits in WIDTHS:
        norms = late_norms(found, bits)
        if 1 not in norms:
            continue
        if of_seeds := ratios(norms[1], lora):
            larger = f"; larger in {sum(ratio > 1 for ratio in of_seeds)} of {len(of_seeds)} seeds"
            said.append(f"QLoRA's gradients stay larger than LoRA's (Shen et al., Figure 2): {times(of_seeds)} at "
                        f"{bits} bits in the last fifth of the steps, at the usual rate"
                        f"{larger if len(of_seeds) > 1 else ''}. Not decided, no test: {untested(len(of_seeds))}.")
        said += of_lams(norms, bits)
    return said


def of_lams(norms: dict[int, dict[int, float]], bits: int) -> list[str]:
    """Whether a larger lam lowers the norm in every seed."""
    of_lam = {lam: of_seeds for lam, seeds in norms.items() if lam > 1 and (of_seeds := ratios(seeds, norms[1]))}
    if not of_lam:
        return []
    falls = [f"{lam}" for lam, of_seeds in of_lam.items() if max(of_seeds) < 1]
    verdict = f"seen for lam {listed(falls)}" if falls else "not seen"
    shown = "; ".join(f"lam {lam}: {times(of_seeds)}" for lam, of_seeds in of_lam.items())
    return [f"A larger lam lowers the gradient (Shen et al., Figure 2): {verdict} at {bits} bits ({shown} QLoRA's in "
            f"the same part, by seed). No test: {untested(max(map(len, of_lam.values())))}."]


# ---- the picture ----------------------------------------------------------------------------------------------------

def drawn_norms(one: Found) -> list[float]:
    """The norms at the usual rate, seed 0. Empty: none, or too few to draw."""
    same = one.at_factor(1.0)
    norms = same["training"].get("gradient_norms", []) if same else []
    return norms if len(norms) >= BINS else []


def gradient_widths(found: Sequence[Found]) -> list[int]:
    """Those with norms to draw."""
    return [bits for bits in (16, 4, 3, 2) if any(drawn_norms(one) for *_, one in lam_rows(found, bits))]


def draw_gradients(found: Sequence[Found], path: Path, base: str) -> None:
    """The gradient's norm by step at the same rate: mean and quartiles of 20 equal parts of the training."""
    widths = gradient_widths(found)
    note = "all at the same rate; lines: seed 0; bands: quartiles of the steps"
    figure, panels = row_of_panels(len(widths), 3.2, 4.1, f"{gradients_title(found)}\n{base}; {note}")
    for axes, bits in zip(panels, widths, strict=True):
        for lam, color, marker, one in lam_rows(found, bits):
            norms = drawn_norms(one)
            if not norms:
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


def gradients_title(found: Sequence[Found]) -> str:
    norms = {bits: late_norms(found, bits) for bits in gradient_widths(found)}
    to_lora = {bits: ratios(norms[bits][1], norms.get(16, {}).get(1, {}))
               for bits in norms if bits < 16 and 1 in norms[bits]}
    said = [f"Late in training, QLoRA's gradient is {of_widths(to_lora)}"] if any(to_lora.values()) else []
    largest = max((lam for bits in to_lora for lam in norms[bits]), default=1)
    lowered = {bits: ratios(norms[bits].get(largest, {}), norms[bits][1]) for bits in to_lora}
    if largest > 1:
        said.append(f"lam {largest} multiplies it by {of_widths(lowered, '')}")
    return "; ".join(said) or "Norm of the gradient by step and lam"


def of_widths(ratios_of: dict[int, list[float]], what: str = " times LoRA's") -> str:
    """`1.02 / 1.02 times LoRA's at 4 / 2 bits (mean of 3 seeds)`"""
    shown = {bits: of_seeds for bits, of_seeds in ratios_of.items() if of_seeds}
    seeds = sorted({len(of_seeds) for of_seeds in shown.values()})
    many = "one seed" if seeds == [1] else f"mean of {' to '.join(map(str, seeds))} seeds"
    means = " / ".join(f"{mean(of_seeds):.2f}" for of_seeds in shown.values())
    return f"{means}{what} at {' / '.join(map(str, shown))} bits ({many})"
