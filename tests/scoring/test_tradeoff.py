"""The joint tables of several runs, on points made by hand; the picture's contents; what the experiments share."""
from itertools import combinations
from pathlib import Path

import pytest

from adapters.lam import Lam
from experiments import real_model, restoration_picture, shared
from finetune.command_line import train_parser
from finetune.config import RunConfig
from finetune.resolve import resolve_run, with_values
from quant.spec import QuantSpec
from scoring.scores import Row
from scoring.show_tradeoff import show_tradeoff
from scoring.state import TRAINED, State
from scoring.tradeoff import Point, averages, different_settings, points_of, trained_title
from tests.cli import call


def point(run, k, score, restored=None, megabytes=5.0, adapter="lora", loss=0.2, ratio=None):
    return Point(run, "banking77", "base", adapter, k, restored or k, restored is not None, "state", score, loss, 4.0,
                 megabytes,
                 ratio)


POINTS = [point("a", 2, 0.50, megabytes=2, loss=0.5), point("a", 2, 0.60, 16, 11, loss=0.4, ratio=2.0),
          point("a", 2, 0.56, 4, 3, loss=0.45, ratio=1.0),
          point("b", 2, 0.54, megabytes=2, loss=0.5), point("b", 2, 0.66, 16, 11, loss=0.3, ratio=4.0),
          point("b", 2, 0.58, 4, 3, loss=0.45, ratio=1.0),
          point("c", 4, 0.70, megabytes=3), point("c", 4, 0.65, 2, 2, ratio=3.0),
          point("c", 4, 0.71, 16, 11, ratio=0.5), point("d", 16, 0.72, megabytes=11)]


def test_runs_that_differ_in_their_seed_alone_are_averaged():
    means = {(m.trained_bits, m.restored, m.bits): m for m in averages(POINTS)}
    assert len(means) == 7 and means[2, True, 16].runs == 2
    assert means[2, True, 16].score == pytest.approx(0.63)
    assert means[2, True, 16].deviation == pytest.approx(0.03 * 2 ** 0.5)
    assert means[4, False, 4].deviation is None
    assert len(averages([*POINTS, point("e", 2, 0.9, adapter="qablora")])) == 8  # another adapter is no other seed


def test_table_1_has_the_widths_above_the_trained_one_and_falling_training_widths(capsys):
    show_tradeoff(POINTS, None, None)
    title, head, rule, row = capsys.readouterr().out.strip("\n").splitlines()
    def cells(line):
        return [cell.strip() for cell in line.split("  ") if cell.strip()]
    assert title.startswith("accuracy, %")
    assert cells(head) == ["16-bit LoRA", "4-bit QLoRA", "4-bit PLR16", "2-bit QLoRA", "2-bit PLR4", "2-bit PLR16"]
    assert cells(row) == ["banking77 base", "72.00", "70.00", "71.00", "52.00 ± 2.8", "57.00 ± 1.4", "63.00 ± 4.2"]


def test_runs_of_other_settings_than_their_seed_are_named_by_the_flags_that_differ():
    config = resolve_run(train_parser().given([]))
    same = {"seed": 1, "eval_batch_size": 2, "micro_batch": 1, "save_every": 7, "device": "meta"}
    assert different_settings(config, with_values(config, same)) == []
    other = with_values(config, {**same, "lr": 1.0, "lam": Lam(1, 1), "limit": 3, "dtype": "bfloat16"})
    assert set(different_settings(config, other)) == {"--lr", "--lam", "--limit", "--dtype"}


@pytest.mark.parametrize("words,flags", [
    (["--act-order"], ["--act-order"]), (["--grid", "nf", "--double-quant"], ["--grid", "--double-quant"]),
    (["--block", "16x1", "--lam", "32x1"], ["--block"]), (["--bits", "3"], ["--bits"]),
    (["--quantizer", "minmax", "--block", "32x1"], ["--quantizer", "--grid"]),
    (["--quantizer", "none"], ["--quantizer"])])
def test_bases_that_were_quantized_in_two_ways_are_named_by_their_flags(words, flags):
    one, other = (resolve_run(train_parser().given(["--quantizer", "gptq", "--block", "32x1", "--lam", "32x1", *more]))
                  for more in ([], words if "none" not in words else []))
    if "none" in words:
        other = with_values(other, {"quantization": None})
    assert different_settings(one, other) == different_settings(other, one) == flags


@pytest.mark.parametrize("adapter,bits,title", [("lora", 16, "LoRA"), ("lora", 4, "QLoRA"), ("blora", 16, "BLoRA"),
                                                ("blora", 2, "Q-BLoRA"),
                                                ("qablora", 4, "QA-BLoRA"), ("irqlora", 16, "IR-QLoRA")])
def test_a_width_has_the_name_of_the_method_that_trains_on_it(adapter, bits, title):
    assert trained_title(adapter, bits) == title


def test_a_merged_model_is_no_point_of_its_own():
    rows = [Row(TRAINED, {"accuracy": 0.5}, 0.3, 5.0, 4.0), Row(State("restored", 8), {"accuracy": 0.6}, 0.2, 9.0, 7.0,
                                                                restoration_ratio=0.5),
            Row(State("restored", 8, merged=True), {"accuracy": 0.6}, None, 8.0, 6.0)]
    config = with_values(RunConfig(), {"model": Path("/somewhere/base"), "quantization": QuantSpec.parse("minmax")})
    trained, restored = points_of(Path("x"), config, rows)
    assert (trained.restored, trained.bits, trained.model, trained.state) == (False, 4, "base", "trained")
    assert (restored.restored, restored.bits, restored.megabytes) == (True, 8, 7.0)


def test_figure_2_draws_a_line_a_training_width_through_the_widths_above(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="pip install -r requirements-extra.txt")
    from scoring import show_tradeoff as plot
    drawn = {}

    def keep(figure, path):
        drawn.update({line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines
                      if not line.get_label().startswith("_")})
        plot.pyplot().close(figure)
    monkeypatch.setattr(plot, "save_figure", keep)
    plot.plot_tradeoff(averages(POINTS), tmp_path / "x.png", "accuracy")
    lines = {label.partition(",")[0]: [(x, round(y, 6)) for x, y in line] for label, line in drawn.items()}
    assert lines == {"2-bit QLoRA": [(2, 52), (3, 57), (11, 63)], "4-bit QLoRA": [(3, 70), (11, 71)],
                     "16-bit LoRA": [(11, 72)]}


def test_labels_of_figure_2_lie_inside_and_on_no_other(tmp_path, monkeypatch):
    """Of the recorded runs: at 16 bits, the most memory, three lines end at nearly one place."""
    pytest.importorskip("matplotlib", reason="pip install -r requirements-extra.txt")
    from scoring import show_tradeoff as plot
    kept = []
    monkeypatch.setattr(plot, "save_figure", lambda figure, path: kept.append(figure))
    assert call(restoration_picture, "--out", tmp_path) is None
    [axes] = kept[0].axes
    kept[0].tight_layout()
    kept[0].draw_without_rendering()
    frame, boxes = axes.get_window_extent(), [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 10  # 1, 2, 3 and 4 widths are above 8, 4, 3 and 2 bits
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert "Kanda & Hatano" in axes.get_title()
    plot.pyplot().close(kept[0])


def test_what_a_failed_process_printed_is_no_result(tmp_path):
    """The experiment on a real model takes a log that is there for a text that was written."""
    log = tmp_path / "text.log"
    with pytest.raises(RuntimeError, match="text.log.part"):
        shared.python(["-c", "print('half a text'); raise SystemExit(1)"], log)
    assert not log.exists()
    shared.python(["-c", "import os; print(os.environ['OMP_NUM_THREADS'])"], log)
    assert log.read_text() == "1\n" and not (tmp_path / "text.log.part").exists()


def test_tables_of_other_settings_do_not_mix(tmp_path, monkeypatch):
    for step in ("loading", "texts", "perplexities", "fine_tuned"):
        monkeypatch.setattr(real_model, step, lambda options: "a table")
    asked = ["--model", "m", "--gguf", "g", "--data", "d", "--out", tmp_path / "o"]
    assert call(real_model, *asked) is None and call(real_model, *asked) is None
    assert "give another --out" in call(real_model, *asked, "--windows", "4")
