"""The learning rate without --lr."""
import json
import shutil

import pytest

import train as train_script
from finetune.command_line import train_parser
from finetune.config import EMBEDDED_BASE
from finetune.methods import METHODS
from finetune.resolve import resolve_run
from finetune.usual_rate import WIDTH, with_usual_rate
from model.directory import load_config


def rate(*flags, width=WIDTH) -> float:
    return with_usual_rate(resolve_run(train_parser().given(list(flags))), width).training.lr


@pytest.mark.parametrize("method", METHODS)
def test_on_the_embedded_base_it_is_the_methods(method, capsys):
    assert load_config(EMBEDDED_BASE).hidden_size == WIDTH
    assert rate("--method", method) == METHODS[method].lr and capsys.readouterr().out == ""
    assert rate("--method", method, width=64) == METHODS[method].lr  # a narrower model gets no larger one


@pytest.mark.parametrize("flags,width,factor", [
    (["--method", "lora"], 576, 256 / 576), (["--method", "peqa"], 1024, 1 / 4), (["--method", "full"], 4096, 1 / 16),
    (["--method", "qalora", "--block", "128x1"], 256, 2), (["--method", "qalora", "--block", "8x1"], 256, 1 / 2),
    (["--method", "qablora", "--block", "16x2"], 256, 4), (["--method", "blora", "--lam", "8"], 512, 1 / 2),
    (["--method", "qablora", "--block", "16x2", "--operators", "interval"], 256, 1),
    (["--method", "lora", "--rank", "64"], 256, 1), (["--method", "lora", "--lora-alpha", "64"], 256, 1),
    (["--method", "lora", "--rank", "81", "--scaling", "rslora"], 256, 1 / 3),
    (["--method", "qablora", "--scaling", "rslora"], 512, 1 / 4),
    (["--method", "qlora", "--distill"], 512, 1 / 40), (["--method", "qlora", "--distill", "0.9"], 256, 1),
    (["--method", "qlora", "--distill", "--distill-from", "model/base"], 256, 1)])
def test_it_follows_tile_scaling_and_width(flags, width, factor):
    assert rate(*flags, width=width) == pytest.approx(METHODS[flags[1]].lr * factor, rel=3e-3)


def test_a_line_says_how_it_came_about(capsys):
    rate("--method", "qalora", "--block", "128x1", "--scaling", "rslora", width=1024)
    assert capsys.readouterr().out == ("--lr is not given: 0.005 = 0.02 of QA-LoRA * min(1, 256/1024) for hidden_size "
                                       "1024 * (128/32)^0.5 for --lam 128x1 * 16^(-1/4) for --scaling rslora\n")


def test_a_run_takes_it_unless_lr_is_given(small_base, tmp_path, capsys):
    wide = shutil.copytree(small_base, tmp_path / "wide")
    stated = json.loads((wide / "config.json").read_text())
    (wide / "config.json").write_text(json.dumps({**stated, "hidden_size": 512, "head_dim": 16}))
    flags = ["--model", str(wide), "--method", "full", "--from-scratch", "--limit", "20"]
    for more, lr in (([], 5e-4), (["--lr", "7e-5"], 7e-5)):
        assert train_script.prepare(train_parser().given([*flags, *more]))[1].training.lr == lr
        assert ("--lr is not given" in capsys.readouterr().out) == (more == [])
