"""The command line that a configuration comes from."""
import shlex

import pytest

from finetune.as_command import train_command
from finetune.command_line import train_parser
from finetune.resolve import resolve_run
from tasks.hub_data import HubData

COMMANDS = [
    "--method qablora", "--method full --from-scratch --steps 7 --save-dtype bfloat16", "--method lora --rank 8",
    "--method qlora --bits 3 --double-quant --targets mlp --dropout 0.1", "--method qalora --grid absmax --act-order",
    "--method peqa --quantizer gptq --block rowx1", "--method qablora --quantizer none --lam 32x8",
    "--method qablora --quantizer gptq --bits 5 --calibration-rows 7", "--method irqlora --lora-alpha 8 --seed 3",
    "--method qblora --lam 4 --batch-size 8 --micro-batch 4 --requantize nf@64x1-3bit --dtype bfloat16",
    "--method lora --task gsm8k --data org/name:x.jsonl --limit 10 --gradient-checkpointing --epochs 3 --lr 1e-05"]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_gives_the_configuration_back(command):
    config = resolve_run(train_parser().given(command.split()))
    again = shlex.split(train_command(config))
    assert again[:2] == ["python", "train.py"]
    assert resolve_run(train_parser().given(again[2:])) == config


def test_files_lose_their_directories_and_the_hub_keeps_its_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    words = ["--model", str(tmp_path / "base"), "--data", "secret/rows.jsonl", "--test-data", "org/name@1:t.csv"]
    config = resolve_run(train_parser().given(["--method", "lora", "--task", "bitext", *words]))
    assert config.data.data == tmp_path / "secret/rows.jsonl" and isinstance(config.data.test_data, HubData)
    command = train_command(config)
    assert "--model base --data rows.jsonl --test-data org/name@1:t.csv" in command.replace(" --task bitext", "")
    assert str(tmp_path) not in command and "secret" not in command


def test_flags_at_their_defaults_are_left_out():
    config = resolve_run(train_parser().given(["--method", "qablora", "--dtype", "float32"]))
    assert train_command(config) == "python train.py --method qablora --dtype float32"
