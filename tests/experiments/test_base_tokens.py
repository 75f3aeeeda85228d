"""The corpus and the rows of `experiments.base_tokens`. Its cells are tried out by hand: --scale."""
import numpy as np
import pytest

from experiments.base_corpus import Mix, documents_of, write_packed
from experiments.base_tokens import cells_of as planned
from experiments.base_tokens import options_parser, read_tokens, windows
from experiments.cells.plan import checked
from experiments.claims import base_tokens
from experiments.claims.base_tokens import TODAY, TOKENS, accuracy_table, loss_table, lost, rounded_bases
from finetune.pictures import pyplot
from tasks.pretrain import WINDOW

HELD_OUT = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def test_a_document_that_shares_thirteen_words_with_held_out_text_is_left_out():
    mix = Mix([HELD_OUT])
    shares, does_not = f"So: {HELD_OUT.title()}!", HELD_OUT.replace("seven", "7")
    assert mix.allowed([shares, does_not]) == [does_not]
    assert Mix([]).allowed([shares, does_not]) == [shares, does_not]


def test_a_paragraph_goes_into_the_mix_once():
    mix, text = Mix([]), "a paragraph of more than sixty letters, which is what the mix asks for, and no less"
    assert mix.new([text, "short", text]) == [text]
    assert mix.new([text]) == []


def test_pages_give_paragraphs_without_tags(tmp_path):
    (tmp_path / "a.html").write_text("<h1>no</h1><p class='x'>It\u2019s <b>one</b>\n &amp; two</p><pre>no</pre>")
    assert list(documents_of("some-doc", tmp_path)) == [["It's one & two"]]


def test_every_token_is_learned_once(tmp_path):
    ids = np.arange(2 * WINDOW + 9, dtype=np.uint16)
    write_packed(tmp_path / "x.xz", ids)
    rows = windows(read_tokens(tmp_path / "x.xz"))
    assert [token for row in rows for token in row.tokens[1:]] == list(range(1, 2 * WINDOW + 1))


def test_plan_has_no_cell_before_what_it_needs(tmp_path):
    cells = planned(options_parser().parse_args([str(tmp_path), "--times", "1", "3", "--device", "cpu"]))
    checked(cells)
    steps = {cell.name: int(cell.argv[cell.argv.index("--steps") + 1]) for cell in cells if cell.kind == "base"}
    assert steps == {"mix-3x": 8448, "today-3x": 8448, "mix-1x": 2816, "today-1x": 2816}


def rounded(*bases: tuple[str, float]) -> dict:
    """Bases that saw three times as many tokens, and what rounding costs them."""
    def loss(more: float) -> dict:
        return {"16": {"held_out_today": 2.0}} | {f"{how}-{bits}bit": {"held_out_today": 2.0 + more} for bits in
                                                  (4, 3, 2) for how in ("nf@64x1", "minmax@4x8", "gptq:minmax@32x1")}
    return {"cells": {base: {"tokens": 3 * TOKENS} for base, _ in bases if base != TODAY} | {
        f"{base}-rounding": {"kind": "rounding", "tags": {"base": base}, "loss": loss(more)} for base, more in bases}}


@pytest.mark.parametrize("texts", [["mix"], ["today"], ["today", "mix"]])
def test_the_legend_names_only_what_is_drawn(tmp_path, monkeypatch, texts):
    pytest.importorskip("matplotlib")
    kept = []
    monkeypatch.setattr(base_tokens, "save", lambda figure, path: kept.append(figure))
    base_tokens.draw(rounded((TODAY, 0.25), *((f"{text}-3x", 0.5) for text in texts)), tmp_path / "x.png",
                     "held_out_today")
    names = {text.get_text().partition(", ")[2] for text in kept[0].legends[0].get_texts()}
    assert names == {"today's base", *({"mix": "the mix", "today": "today's text"}[text] for text in texts)}
    pyplot().close(kept[0])


def test_what_rounding_costs():
    found = rounded(("mix-3x", 0.5), (TODAY, 0.25))
    assert rounded_bases(found) == [TODAY, "mix-3x"]
    assert lost(found, "mix-3x", "nf@64x1-2bit", "held_out_today") == 0.5
    table = loss_table(found, "held_out_today")
    assert table["rows"][1][:4] == ["mix-3x", "69.2", "2.0000", "+0.5000"] and len(table["columns"]) == 12


def test_accuracies_of_seeds_are_averaged_and_missing_ones_are_said():
    cells = {f"{base}-{way}-{seed}": {"accuracy": accuracy, "tags": {"base": base, "way": way, "seed": seed}}
             for base, way, seed, accuracy in ((TODAY, "lora", 0, 0.8), (TODAY, "lora", 1, 0.7),
                                               (TODAY, "qlora", 0, 0.6), ("mix-3x", "lora", 0, 0.9))}
    table = accuracy_table({"cells": cells})
    assert table["columns"] == ["base", "lora", "qlora"] and "[0, 1]" in table["caption"]
    assert table["rows"] == [[TODAY, "75.0", "60.0"], ["mix-3x", "90.0", "not run"]]
