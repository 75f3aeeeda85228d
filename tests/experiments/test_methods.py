"""The comparison of methods: its plan, its statistics, and its tables and pictures from made-up cells."""
from itertools import pairwise
from pathlib import Path

import pytest

from adapters.lota import LoTA
from experiments.cells.plan import Settings, checked
from experiments.claims import method_bases as bases
from experiments.claims import method_findings as findings
from experiments.claims import method_gradients as gradients
from experiments.claims import method_limits as limits
from experiments.claims import method_rows as found
from experiments.claims import method_tables as tables
from experiments.claims.evidence import Cells
from experiments.claims.method_rows import Found
from experiments.plans import method_rows, methods_real
from experiments.plans import methods as plan_module
from finetune.config import AdapterConfig
from tests.experiments.fakes import a_row, facts

SETTINGS = Settings(None, Path("nowhere"), "cpu")


def cells_by_name():
    return {cell.name: cell for cell in checked(plan_module.plan(SETTINGS).cells)}


def gather(cells, plan="methods"):
    every = Cells([])
    every.facts = {name: {"plan": plan, **facts} for name, facts in cells.items()}
    return found.gather(every, plan)


def value_after(cell, flag):
    return cell.argv[cell.argv.index(flag) + 1]


# ---- the plan -----------------------------------------------------------------------------------------------------

def test_every_row_is_tuned_by_the_same_rule_and_has_three_seeds():
    """At each of its widths: three values to five, and seeds that take the best of them."""
    cells = cells_by_name()
    for row in method_rows.every_row():
        for bits in row.widths:
            own = [cell for cell in cells.values()
                   if (cell.tags["row"], cell.tags["bits"], cell.tags["part"]) == (row.name, bits, row.part)]
            rates, finals = ([cell for cell in own if cell.tags["role"] == role] for role in ("rate", "final"))
            assert [value_after(cell, "--seed") for cell in finals] == ["0", "1", "2"]
            if row.rates_of:
                needs = [name for name in cells if name.startswith(f"methods-{row.rates_of}-16-rate")]
                assert not rates and all(cell.needs == needs for cell in finals)
                continue
            factors = row.factors("methods", bits)
            assert [cell.tags["factor"] for cell in rates] == factors and len(rates) in (3, 4, 5)
            assert [value_after(cell, row.tuned) for cell in rates] == list(map(row.value, factors))
            assert all(cell.needs == [rate.name for rate in rates] for cell in finals)


def test_rates_are_a_third_once_and_three_times_the_usual_one():
    rows = {row.name: row for row in method_rows.every_row()}
    qlora, lota = ([rows[name].value(factor) for factor in (1 / 3, 1.0, 3.0)] for name in ("qlora", "lota"))
    assert qlora == ["0.00167", "0.005", "0.015"] and lota == ["3", "6", "12"]
    assert rows["qlora"].value(1.0, 256 / 576) == "0.00222" and rows["lota"].value(1.0, 0.5) == "6"


def test_the_merged_model_is_rounded_again_where_it_ends_in_16_bits():
    cells = cells_by_name()
    assert value_after(cells["methods-qblora-2-4-seed1"], "--requantize") == "gptq:minmax@32x1+act-order"
    assert value_after(cells["methods-lora-rounded-3-seed1"], "--requantize") == "gptq:minmax@32x1-3bit+act-order"
    assert not {"--requantize", "--bits"} & set(cells["methods-lora-16-seed1"].argv)
    assert "--requantize" not in cells["methods-qalora-4-seed1"].argv
    assert "--calibration-rows" in cells["methods-qalora-4-seed1"].argv


def test_in_equal_time_a_slower_row_gets_fewer_steps():
    cells = cells_by_name()
    assert value_after(cells["methods-qblora-2-4-slower1.4-seed0"], "--steps") == "202"
    assert value_after(cells["methods-qblora-2-2-slower1.1-seed2"], "--steps") == "257"


def test_training_is_recorded_on_a_gpu():
    for device, recorded in (("cuda", True), ("cpu", False)):
        plan = plan_module.plan(Settings(None, Path("nowhere"), device))
        assert {"--cuda-graphs" in cell.argv for cell in plan.cells} == {recorded}


def test_a_rate_beyond_an_end_is_tried_where_that_end_was_best():
    cells = cells_by_name()
    tried = {bits: [cell.tags["factor"] for name, cell in cells.items()
                    if name.startswith(f"methods-qblora-2-{bits}-rate")] for bits in (4, 2)}
    assert tried == {4: [1 / 3, 1, 3, 9], 2: [1 / 3, 1, 3, 9]}
    assert value_after(cells["methods-lota-4-rate1"], "--omega") == "1"
    assert "methods-lota-3-rate0.5" in cells and "methods-lota-2-rate0.5" not in cells
    assert "methods-qlora-4-rate0.045" not in cells


def test_the_last_rate_is_three_times_beyond_an_end():
    rows = {row.name: row for row in method_rows.every_row()}
    for (plan, name), lasts in method_rows.LAST.items():
        for bits, last in lasts.items():
            tried = rows[name].factors(plan, bits)
            assert last in (tried[0], tried[-1]) and len(set(tried)) == len(tried)
            assert [b / a for a, b in pairwise(tried)] == pytest.approx([3] * (len(tried) - 1))


def test_on_a_real_model_three_bits_use_the_rates_of_four():
    names = [cell.name for cell in plan_module.planned("methods_real")]
    assert not [name for name in names if name.startswith("methods_real-peqa-3-rate")]
    assert [name for name in names if name.startswith("methods_real-peqa-2-rate")]
    assert "methods_real-peqa-3-seed0" in names and "methods_real-peqa-3-seed1" not in names
    final = next(cell for cell in plan_module.planned("methods_real") if cell.name == "methods_real-peqa-3-seed0")
    assert all(name.startswith("methods_real-peqa-4-rate") for name in final.needs)


# ---- statistics ---------------------------------------------------------------------------------------------------

def test_the_best_rate_is_marked_at_the_edge_of_those_tried():
    inside, outside, diverged = (gather(a_row("a", losses, ["10"]))[0]
                                 for losses in ((3.0, 1.0, 2.0), (3.0, 2.0, 1.0), (2.0, 1.0, None)))
    assert [tables.value(one) for one in (inside, outside, diverged)] == ["2", "3 (edge)", "2"]


def test_a_real_model_is_needed_and_its_width_lowers_the_rates(tmp_path):
    with pytest.raises(ValueError, match="methods_real needs a model: give --model"):
        methods_real.plan(SETTINGS)


def test_marks_are_averaged_over_the_seeds_and_compared_row_by_row():
    a, b = gather(a_row("a", (3.0, 1.0, 2.0), ["1111111100", "1111111111"]) |
                  a_row("b", (3.0, 1.0, 2.0), ["0000000000", "0000000011"]))
    judged = found.compared(a, b, found.as_trained)
    assert judged.comparison.mean_a == pytest.approx(0.9) and judged.comparison.difference == pytest.approx(0.8)
    assert judged.seeds == 2 and judged.comparison.p_value < 0.05
    del b.finals[0]
    assert found.compared(a, b, found.as_trained).comparison.difference == pytest.approx(0.8)  # seed 1 alone
    del b.finals[1]
    assert found.compared(a, b, found.as_trained) is None


def test_a_row_ends_at_k_bits_rounded_or_merged_or_not_at_all():
    rounded = {"states": {"merged-16bit": {}, "requantized-4bit-gptq": {}}}
    assert found.at_k_bits(rounded) == found.rounded_afterwards(rounded) == "requantized-4bit-gptq"
    assert found.at_k_bits({"states": {"merged-16bit": {}}}) is None
    assert found.at_k_bits({"states": {"merged-2bit": {}}}) == "merged-2bit"


def test_tests_against_the_reference_are_corrected_within_a_width():
    n = 40
    cells = {}
    for bits in (4, 2):
        for row, right in (("qablora-4x8", 20), ("qlora", 30), ("peqa", 21)):
            cells |= a_row(row, (3.0, 1.0, 2.0), ["1" * right + "0" * (n - right)] * 2, bits, f"merged-{bits}bit")
    tested = tables.against_reference(gather(cells))["as trained"]
    assert set(tested) == {("qlora", 4), ("peqa", 4), ("qlora", 2), ("peqa", 2)}
    one = tested["qlora", 4]
    assert one.adjusted == pytest.approx(2 * one.comparison.p_value) and one.what["beside"] == "qablora-4x8"
    assert tables.difference(one).startswith("+25.0 [") and tables.difference(one).endswith("*")


def test_a_fifth_of_the_training():
    assert gradients.fifth(range(10), 0) == 0.5 and gradients.fifth(range(10), 4) == 8.5


def test_gradients_are_compared_by_seed_where_the_best_rate_is_the_usual_one():
    """LoRA and QLoRA have seeds 1 and 2 there, lam 2 has not."""
    usual, high = (3.0, 1.0, 2.0), (3.0, 2.0, 1.0)
    cells = a_row("lora", usual, ["10"] * 3, 16, "merged-16bit") | a_row("qlora", usual, ["10"] * 3) | a_row(
        "qblora-2", high, ["10"] * 3)
    for seed, norm in ((1, 1.5), (2, 0.5)):
        cells[f"qlora-4-seed{seed}"]["training"]["gradient_norms"] = [9.0] * 16 + [norm] * 4
    stay, lowers = gradients.of_gradients(gather(cells))
    assert "1.00, 1.50 and 0.50 times at 4 bits" in stay and "larger in 1 of 3 seeds" in stay
    assert "3 seeds at most" in stay and "lam 2: 2.00 times QLoRA's" in lowers and lowers.endswith("No test: one seed.")
    assert gradients.gradients_title(gather(cells)) == (
        "Late in training, QLoRA's gradient is 1.00 times LoRA's at 4 bits (mean of 3 seeds); "
        "lam 2 multiplies it by 2.00 at 4 bits (one seed)")


# ---- tables -------------------------------------------------------------------------------------------------------

def test_rows_of_the_table_say_how_the_model_came_to_k_bits():
    cells = a_row("qlora", (3.0, 1.0, 2.0), ["110"], 4, "requantized-4bit-gptq") | a_row(
        "peqa", (3.0, 1.0, 2.0), ["110"], 4)
    table = tables.methods_table(gather(cells), 4, {name: {} for name in tables.STATES})
    how = table["columns"].index("how")
    assert [row[how] for row in table["rows"]] == ["rounded afterwards", "merged"]


def test_costs_are_a_table():
    row = {"title": "QLoRA", "bits": 4, "base_mb": 4.0, "peak_mb": 10.0, "inference_mb": {"merged": 11.5},
           "seconds_before_training": 0.5, "step_seconds": 0.02, "step_to_lora": 1.1,
           "seconds_after_training": {"merged": 0.1}}
    on_gpu, on_cpu = (tables.costs_table({"model": "base", "device": device, "rows": [row]})
                      for device in ("a GPU", "1 CPU thread"))
    assert on_gpu["rows"][0] == ["QLoRA", "4", "4.0 + 6.0", "11.5", "-", "0.50", "20.0", "1.10", "0.10", "-"]
    assert len(on_cpu["rows"][0]) == len(on_cpu["columns"]) == 10
    assert "--mem-report" in on_cpu["caption"] and "--mem-report" not in on_gpu["caption"]


def test_missing_cells_are_counted_and_shown_as_not_run():
    """By their tags, and of the plan alone."""
    cells = a_row("qlora", (3.0, 1.0, None), ["110"], 4)
    of_rates = tables.rates_table(gather(cells))["rows"]
    assert of_rates == [["QLORA", "4", "1: 3.000", "2: 1.000", "3: diverged", "2"]]
    del cells["qlora-4-3.0"], cells["qlora-4-seed0"]
    one = gather(cells)
    assert tables.rates_table(one)["rows"] == [["QLORA", "4", "1: 3.000", "2: 1.000", "not run",
                                            "2 (edge), 1 not run"]]
    row = tables.methods_table(one, 4, {name: {} for name in tables.STATES})["rows"][0]
    assert "not run" in row and "16.00" not in row
    every = Cells([])
    every.facts = {name: {"plan": "methods", **facts} for name, facts in cells.items()} | {
        "else": {"plan": "methods_real", **cells["qlora-4-1.0"]}}
    table = tables.progress_table(every, plan_module.planned("methods"))
    assert table["rows"][1][:3] == ["4", "0 of 6", "2 of 46"] and "2 of 471" in table["caption"]
    assert len(plan_module.planned("methods_real")) == 137


@pytest.mark.parametrize("plan", ["methods", "methods_real"])
def test_every_threshold_of_the_plan_is_one_that_lota_takes(plan):
    """All of them are built: a cell that is refused is lost."""
    config = AdapterConfig()
    omegas = {float(value_after(cell, "--omega")) for cell in plan_module.planned(plan)
              if cell.tags["role"] == "rate" and cell.tags["row"] == "lota"}
    assert omegas and all(LoTA(8, 8, config.rank, omega).omega == omega for omega in omegas)
    with pytest.raises(ValueError, match="moves no code"):
        LoTA(8, 8, config.rank, float(config.rank))


def test_lora_rounded_afterwards_counts_at_loras_best_rate():
    cells = a_row("lora", (3.0, 1.0, 2.0), ["10"], 16)
    of_width = a_row("lora-rounded", (3.0, 1.0, 2.0), ["10", "01"], 3, "requantized-3bit")
    cells |= {name: cell for name, cell in of_width.items() if "seed" in name}
    cells["lora-rounded-3-seed1"]["argv"] = ["--lr", "3.0"]
    one = next(one for one in gather(cells) if one.row == "lora-rounded")
    assert one.lender.row == "lora" and list(one.finals) == [0] and one.losses(found.at_k_bits)


def test_claims_are_judged_by_width_and_undecided_where_nothing_was_run():
    n = 40
    cells = {}
    for row, right in (("qablora-4x8", 30), ("qalora", 10), ("qlora", 29)):
        cells |= a_row(row, (3.0, 1.0, 2.0), ["1" * right + "0" * (n - right)], 4)
    rows = gather(cells)
    over, equal = map(str, findings.of_reference(rows, tables.against_reference(rows)["at k bits"]))
    assert "QA-LoRA" in over and ": confirmed at 4 bits (+50.0 [" in over
    assert ": not confirmed at 4 bits (+2.5 [" in equal and equal.endswith("not decided at 3 and 2 bits (not run).")
    said = findings.beside_reference(rows, tables.against_reference(rows)["at k bits"])
    assert "2 rows were tested. Significantly above: none. Significantly below: QALORA -50.0." in said[0]
    assert "not decided at 4, 3 and 2 bits" in str(findings.of_targets(rows)[0])
    assert any("one seed" in sentence for sentence in limits.unseen(rows))


def test_rounding_lowers_raises_or_does_not_change_a_score():
    """At several widths: each verdict is in words of its own."""
    cells = {}
    for bits, right in ((4, 20), (3, 20), (2, 5)):
        cells |= a_row("qlora", (3.0, 1.0, 2.0), ["1" * 20 + "0" * 20], bits, f"requantized-{bits}bit")
        state = cells[f"qlora-{bits}-seed0"]["states"]
        state[f"requantized-{bits}bit"] = {**state["trained"], "marks": "1" * right + "0" * (40 - right)}
    said = str(findings.of_rounding(gather(cells)))
    assert "no difference found at 3 bits" in said and "lowered at 2 bits (-37.5" in said and "opposite" not in said


def test_a_rate_that_the_plan_has_no_more_is_not_chosen():
    cells = a_row("qblora-4", (1.0, 2.0, 3.0), ["10"], 2)  # a third of the usual rate is tried at 4 bits only
    cells["qblora-4-2-seed0"]["argv"] = ["--lr", "2.0"]
    one = gather(cells)[0]
    assert one.best["tags"]["value"] == 2.0 and list(one.finals) == [0] and len(one.rates) == 3


def test_a_rate_that_the_plan_has_no_more_is_marked_and_counted():
    """A third of the usual rate is tried at 4 bits only."""
    table = tables.rates_table(gather(a_row("qblora-4", (1.0, 2.0, 3.0), ["10"], 2)))
    assert table["rows"][0][2:5] == ["1: 1.000 (extra)", "2: 2.000", "3: 3.000"]
    assert "chosen; cells: 1." in table["caption"]
    assert "chosen; cells: 0." in tables.rates_table(gather(a_row("qlora", (1.0, 2.0, 3.0), ["10"], 2)))["caption"]


def a_base(row, bits, loss, plan):
    return {"plan": plan, "tags": {"row": row, "bits": bits, "part": "methods", "role": "base", "seed": 0},
            "states": {"quantized": {"validation_loss": loss}}, "training": {}}


def test_trainings_that_end_above_the_untrained_base_are_named():
    """Of its own base where that was scored, else of the highest one of the width; and at the end, not at the best."""
    every = Cells([])
    cells = a_row("qblora-8", (2.0, 5.0, None), [], 4) | a_row("full", (1.0, 7.1, 6.9), [], 16) | a_row(
        "unknown", (1.0, 6.9, 7.1), [], 4) | a_row("lota", (1.0, 1.0, 1.0), [], 2)
    cells["qblora-8-4-1.0"]["training"]["validations"] = [
        {"validation_loss": 2.0}, {"validation_loss": 6.5}, {"delta_norm": 9.0}]
    cells["qblora-8-4-3.0"]["training"]["diverged"] = "not finite"
    every.facts = {name: {"plan": "methods", **facts} for name, facts in cells.items()} | {
        "base-16": a_base("lora", 16, 7.0, "methods"), "base-nf": a_base("qlora", 4, 6.0, "methods"),
        "base-icq": a_base("irqlora", 4, 7.0, "methods"), "base-else": a_base("qlora", 4, 0.1, "methods_real")}
    assert bases.of_divergence(every, "methods") == [
        "Of 12 cells that were trained, 1 broke off as the loss was not finite: qblora-8-4-3.0. 3 ended above the "
        "validation loss of the untrained base of their width: qblora-8-4-1.0 (6.50, base 6.00); full-16-2.0 (7.10, "
        "base 7.00); unknown-4-3.0 (7.10, base 7.00). 3 more lowered that loss by less than a third."]
    assert bases.few(list("abcdefgh")) == ": a; b; c; d; e; f and 2 more"


def test_the_bases_of_qablora_and_qalora_are_told_apart():
    every = Cells([])
    every.facts = {"a": a_base("qablora-4x8", 2, 14.04, "methods_real"), "b": a_base("qalora", 2, 6.2, "methods_real"),
                   "c": a_base("qalora", 2, 9.9, "methods"), "d": a_base("qalora", 4, 9.9, "methods_real")}
    assert "blocks: 14.0 nats" in bases.of_bases(every)[0] and bases.of_bases(every)[0].endswith("32x1: 6.2 nats.")
    del every.facts["b"]
    assert bases.of_bases(every) == []


def test_rates_that_were_not_tuned_are_told():
    cells = a_row("peqa", (3.0, 1.0, 2.0), ["10"], 4)
    assert limits.of_borrowed(gather(cells, "methods_real")) == []
    final = {**cells["peqa-4-seed0"], "plan": "methods_real"}
    cells["peqa-3-seed0"] = {**final, "tags": {**final["tags"], "bits": 3}}
    [said] = limits.of_borrowed(gather(cells, "methods_real"))
    assert said.startswith("At 3 bits no rate was tuned: each row")
    assert limits.of_borrowed(gather(cells)) == []


def test_the_widths_whose_rates_are_those_of_four_bits_are_told():
    """3 bits borrow them, 2 bits do not."""
    cells = {}
    for bits in (4, 3, 2):
        for row in ("qlora", "qblora-2"):
            cells |= a_row(row, (3.0, 1.0, 2.0), ["10"], bits)
    cells = {name: facts for name, facts in cells.items() if facts["tags"]["bits"] != 3 or "seed" in name}
    real = Cells([])
    real.facts = {name: {**facts, "plan": "methods_real"} for name, facts in cells.items()}
    said = str(findings.of_balance(found.gather(real, "methods_real"))[0])
    assert "each at its best rate (at 3 bits, that of 4 bits) (Shen" in said


def test_scores_of_zero_and_the_spread_over_seeds_are_told():
    none = a_row("qlora", (3.0, 1.0, 2.0), ["000"], 2) | a_row("peqa", (3.0, 1.0, 2.0), ["000"], 2)
    assert "At 2 bits, 2 rows score 0 %: QLORA; PEQA." in limits.of_nothing(gather(none))[0]
    assert limits.of_nothing(gather(a_row("qlora", (3.0, 1.0, 2.0), ["001"], 2))) == []
    n = 40
    marks = ["1" * right + "0" * (n - right) for right in (10, 20)]
    cells = a_row("qablora-4x8", (3.0, 1.0, 2.0), marks[::-1], 4)
    steady = a_row("peqa", (3.0, 1.0, 2.0), ["1" * n] * 2, 4)
    said = limits.of_seeds(gather(cells | steady))[0]
    assert "up to 17.7 points" in said and said.endswith("is 3 standard errors over seeds or more, in every family.")
    turned = a_row("peqa", (3.0, 1.0, 2.0), ["1" * 18 + "0" * 22, "1" * n], 4)  # 72.5 ± 27.5 beside 37.5 ± 12.5
    said = limits.of_seeds(gather(cells | turned))
    assert said[1] == ("Beside QA-BLoRA 4x8, at k bits: less than 3 standard errors over seeds for PEQA at 4 bits "
                       "(+35.0; 30.2).")
    assert len(said) == 2  # the same models as trained are not named twice


def of_rights(*rights, n=40):
    return ["1" * right + "0" * (n - right) for right in rights]


def test_the_spread_over_seeds_is_told_of_every_family():
    """QLoRA beside Q-BLoRA, beside a merge into codes, and beside its rounded state."""
    cells = a_row("qlora", (3.0, 1.0, 2.0), of_rights(10, 20), 4, "requantized-4bit") | a_row(
        "qblora-2", (3.0, 1.0, 2.0), of_rights(18, 40), 4, "requantized-4bit") | a_row(
        "scaleoffset", (3.0, 1.0, 2.0), of_rights(18, 40), 4)
    said = limits.of_seeds(gather(cells))
    assert said[1:] == [
        "Q-BLoRA beside QLoRA, as trained: less than 3 standard errors over seeds for QBLORA-2 at 4 bits "
        "(+35.0; 30.2).",
        "Merges beside QLoRA rounded afterwards: less than 3 standard errors over seeds for SCALEOFFSET at 4 bits "
        "(+35.0; 30.2)."]


def test_the_spread_over_seeds_of_rounding_is_that_of_the_difference():
    """The same models lose 10 points each, or 2.5 and 22.5."""
    for lost, error in (((4, 4), None), ((1, 9), "10.0")):
        cells = a_row("qlora", (3.0, 1.0, 2.0), of_rights(15, 35), 4, "requantized-4bit")
        for seed, (right, less) in enumerate(zip((15, 35), lost, strict=True)):
            state = cells[f"qlora-4-seed{seed}"]["states"]
            state["requantized-4bit"] = {**state["trained"], "marks": of_rights(right - less)[0],
                                         "scores": {"accuracy": (right - less) / 40}}
        said = limits.of_seeds(gather(cells))
        assert [f"QLORA at 4 bits (-12.5; {error})" in one for one in said[1:]] == [True] * bool(error)


def test_the_interval_of_one_seed_is_over_test_rows():
    one = gather(a_row("a", (3.0, 1.0, 2.0), ["1100"]))[0]
    assert found.half_interval(one, found.as_trained) == pytest.approx(196 * (1 / 3) ** 0.5 / 2)


def test_found_has_no_best_rate_if_all_diverged():
    one = Found("a", "A", "methods", 4, rates=[facts("a", "rate", 0, None)])
    assert one.best is None and tables.value(one) == "-" and not one.at_edge
