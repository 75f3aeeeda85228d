"""Every flag of train.py does something: with another value, something named is another.

`PROOFS` holds one proof a flag. A flag without one fails `test_every_flag_has_a_proof`.
"""
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import eval as eval_script
import export as export_script
import judge as judge_script
import sample as sample_script
import train as train_script
from adapters.adapted import adapted_layers
from adapters.merge import merge_target
from finetune.adapted_model import attach_adapters, load_adapter
from finetune.checks import planned_run
from finetune.command_line import train_parser
from finetune.config import flag
from finetune.loop import Trainer
from finetune.residual import residuals_of
from finetune.run import new_run, open_run
from finetune.source import load_run_base
from model.checkpoint import random_model, save_model
from model.config_json import config_to_json
from model.files import write_json
from scoring.destination import Destination
from scoring.score_run import scoring_of
from tests.cli import SMALL, call, interrupted_after, rows_of

pytestmark = pytest.mark.usefixtures("elsewhere")
ROWS = [{"instruction": f"{'my new card ' * (1 + i % 4)} number {i}, where is it", "intent": f"intent_{i % 7}"}
        for i in range(60)]
USUAL = ("--task", "bitext", "--data", "rows.jsonl", "--batch-size", "6", "--steps", "3")
LORA, FULL = ("--method", "lora"), ("--method", "full")
ROUNDED = ("--method", "qlora", "--quantizer", "minmax", "--block", "16x1")
LOTA = ("--method", "lota", "--quantizer", "minmax", "--block", "16x1")
GPTQ = ("--method", "qlora", "--quantizer", "gptq", "--block", "16x1", "--bits", "2")


@dataclass
class Outcome:
    """What a command has come to, without the scoring at its end."""
    config: Any
    data: Any
    run: Any
    initial: dict[str, torch.Tensor] = field(default_factory=dict)   # of what trains
    trained: dict[str, torch.Tensor] = field(default_factory=dict)   # as kept on disk
    base: dict[str, torch.Tensor] = field(default_factory=dict)      # base.safetensors
    calibrated: int = 0
    recomputed: bool = False                                         # whether backward computes layers again
    recorded: bool = False                                           # whether the decoder's passes are recorded
    rows_at_a_time: list[int] = field(default_factory=list)          # of each step's parts
    saved_at: list[int] = field(default_factory=list)                # steps at which a state was saved
    steps: list[dict] = field(default_factory=list)                  # lines of metrics.jsonl


@pytest.fixture(scope="module")
def place(small_base, tmp_path_factory) -> Path:
    """A directory with rows, texts, and another model."""
    path = tmp_path_factory.mktemp("flags")
    for name, rows in (("rows", ROWS), ("others", ROWS[20:])):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "text.txt").write_text("A text of which nothing is in the rows. " * 30)
    shutil.copytree(small_base, path / "other_model")
    save_model(random_model(SMALL, torch.float32, seed=5), path / "other_model" / "model.safetensors", torch.float16)
    write_json(path / "other_model" / "config.json", config_to_json(SMALL))
    return path


@pytest.fixture
def command(small_base, place, monkeypatch):
    """`command(*flags, stop)` is the `Outcome` of train.py with these flags. stop: "rows", "base", or "training"."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(train_script, "plot_losses", lambda run: None)

    def outcome(*flags: str, stop: str = "training") -> Outcome:
        return cached(small_base, place, flags, stop)
    return outcome


@cache
def cached(small_base: Path, place: Path, flags: tuple[str, ...], stop: str) -> Outcome:
    torch.manual_seed(1234)  # of no meaning: train.py sets its own
    model = () if "--model" in flags else ("--model", str(small_base))
    usual = USUAL[4 if "--task" in flags else 0:-2 if "--epochs" in flags else None]
    given = train_parser().given([*model, *usual, *flags])
    source, config, data = train_script.prepare(given)
    if stop == "rows":
        return Outcome(config, data, None)
    run = new_run(None, "run")
    train_script.describe(run, source, config, data)
    found = Outcome(config, data, run)
    with pytest.MonkeyPatch.context() as patch:
        watch(patch, found, stop)
        train_script.train(run, config, data)
    if run.base_file.is_file():
        found.base = load_file(run.base_file)
    if stop == "training":
        found.trained = load_file(run.trained_file)
        found.steps = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    if run.quantization_file.is_file():
        found.calibrated = json.loads(run.quantization_file.read_text())["calibration"]["rows"]
    return found


def watch(patch: pytest.MonkeyPatch, found: Outcome, stop: str) -> None:
    import finetune.loop as loop
    summed_loss, save_state, train = loop.summed_loss, Trainer.save_state, Trainer.run

    def counted(model, examples):
        if model.training:
            found.rows_at_a_time.append(len(examples))
        return summed_loss(model, examples)

    def saved(self):
        found.saved_at.append(self.step)
        save_state(self)

    def started(self):
        found.initial = {name: p.detach().clone() for name, p in self.parameters.items()}
        found.recomputed, found.recorded = self.model.checkpointing, self.recorded is not None
        if stop == "training":
            train(self)
        else:
            self.seconds = 1.0
    patch.setattr(loop, "summed_loss", counted)
    patch.setattr(Trainer, "save_state", saved)
    patch.setattr(Trainer, "run", started)


def differ(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() != b.keys() or any(a[n].shape != b[n].shape or not torch.equal(a[n], b[n]) for n in a)


# ---- the proofs -----------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Proof:
    """`with_flag` and `without` are two command lines that differ in the flag; `shows(a, b)` is whether their outcomes
    do as they should."""
    without: tuple[str, ...]
    with_flag: tuple[str, ...]
    stop: str
    shows: Callable[[Outcome, Outcome], bool]


def changes(what: str, without: tuple[str, ...], *more: str, stop: str = "training") -> Proof:
    return Proof(without, (*without, *more), stop, lambda a, b: differ(getattr(a, what), getattr(b, what)))


def lengths(outcome: Outcome) -> list[int]:
    return [len(e.tokens) for e in outcome.data.train + outcome.data.validation]


def shown(stop: str, shows: Callable[[Outcome, Outcome], bool], without: tuple[str, ...], *more: str) -> Proof:
    return Proof(without, (*without, *more), stop, shows)


def coded(outcome: Outcome) -> set[str]:
    return {name.rpartition(".")[0].rpartition(".")[2] for name in outcome.base if name.endswith(".codes")}


def rates(outcome: Outcome) -> list[float]:
    return [round(line["lr"] / outcome.config.training.lr, 6) for line in outcome.steps if "lr" in line]


def losses(outcome: Outcome) -> list[float]:
    return [line["loss"] for line in outcome.steps if "loss" in line]


def validated_at(outcome: Outcome) -> list[int]:
    return [line["step"] for line in outcome.steps if "validation_loss" in line]


def scalings(outcome: Outcome) -> set[float]:
    return {layer.adapter.scaling for layer in adapted_layers(adapted(outcome)).values()}


def dropped(outcome: Outcome) -> set[float]:
    return {getattr(layer.dropout, "p", 0.0) for layer in adapted_layers(adapted(outcome)).values()}


def adapted(outcome: Outcome) -> torch.nn.Module:
    """The model that trained, read again from its run."""
    model, config = load_run_base(outcome.run, outcome.config, torch.float32, "cpu"), open_run(outcome.run.path).config
    attach_adapters(model, config, residuals_of(outcome.run, config))
    load_adapter(model, outcome.run)
    return model


def omegas(outcome: Outcome) -> set[float]:
    return {layer.adapter.omega for layer in adapted_layers(adapted(outcome)).values()}


def residuals(outcome: Outcome) -> set[str]:
    layers = adapted_layers(adapted(outcome)).values()
    return {str(layer.residual.dtype) for layer in layers if layer.residual is not None}


def merges_into(outcome: Outcome) -> str:
    layer = planned_run(outcome.run, outcome.config).get_submodule("model.layers.0.mlp.up_proj")
    return merge_target(layer.base, layer.adapter).into


PROOFS: dict[str, Proof | str] = {
    # model and quantization
    "model": changes("base", ROUNDED, "--model", "other_model", stop="base"),
    "from_scratch": changes("initial", FULL, "--from-scratch", stop="base"),
    "dtype": changes("trained", LORA, "--dtype", "bfloat16"),
    "device": "test_the_device_is_where_the_weights_are_read_to",
    "quantizer": changes("base", ROUNDED, "--quantizer", "absmax", stop="base"),
    "bits": shown("base", lambda a, b: a.base["model.layers.0.mlp.up_proj.codes"].numel() * 3
                  == b.base["model.layers.0.mlp.up_proj.codes"].numel() * 4, ROUNDED, "--bits", "3"),
    "block": shown("base", lambda a, b: b.base["model.layers.0.mlp.up_proj.scale"].shape == (32, 8), ROUNDED,
                   "--block", "4x2"),
    "grid": changes("base", GPTQ, "--grid", "nf", stop="base"),
    "double_quant": shown("base", lambda a, b: "model.layers.0.mlp.up_proj.scale.absmax" in b.base
                          and "model.layers.0.mlp.up_proj.scale" in a.base, ("--method", "qlora", "--block", "16x1"),
                          "--double-quant"),
    "act_order": changes("base", GPTQ, "--act-order", stop="base"),
    "quantized_layers": shown("base", lambda a, b: len(coded(a)) == 7 and coded(b) == {
        "gate_proj", "up_proj", "down_proj"}, (*ROUNDED, "--targets", "mlp"), "--quantized-layers", "mlp"),
    "calibration": shown("base", lambda a, b: differ(a.base, b.base) and b.calibrated, GPTQ, "--calibration",
                         "text.txt"),
    "calibration_rows": shown("base", lambda a, b: differ(a.base, b.base) and (a.calibrated, b.calibrated) == (
        len(a.data.train), 3), GPTQ, "--calibration-rows", "3"),
    # adapter
    "method": shown("base", lambda a, b: {name.rpartition(".")[2] for name in b.initial} == {
        "A", "B", "iec_a", "iec_b"}, LORA, "--method", "irqlora", "--block", "16x1"),
    "targets": shown("base", lambda a, b: len(a.initial) == 14 and {name.split(".")[-2] for name in b.initial} == {
        "q_proj", "k_proj", "v_proj", "o_proj"}, LORA, "--targets", "attention"),
    "rank": shown("base", lambda a, b: {min(p.shape) for p in b.initial.values()} == {3}, LORA, "--rank", "3"),
    "lora_alpha": changes("trained", LORA, "--lora-alpha", "3"),
    "scaling": shown("training", lambda a, b: differ(a.trained, b.trained) and (scalings(a), scalings(b)) == ({1}, {4}),
                     LORA, "--scaling", "rslora"),
    "lam": shown("base", lambda a, b: b.initial["model.layers.0.mlp.up_proj.A"].shape == (64, 8),
                 ("--method", "blora"), "--lam", "4"),
    "operators": changes("trained", ("--method", "blora"), "--operators", "interval"),
    "dropout": shown("training", lambda a, b: differ(a.trained, b.trained) and (dropped(a), dropped(b)) == (
        {0.0}, {0.25}), LORA, "--dropout", "0.25"),
    "omega": shown("training", lambda a, b: differ(a.trained, b.trained) and (
        omegas(a), omegas(b)) == ({1.0}, {3.0}), LOTA, "--omega", "3"),
    "merge_into": shown("training", lambda a, b: differ(a.trained, b.trained) and not differ(a.base, b.base) and (
        merges_into(a), merges_into(b)) == ("16 bits", "codes"), ROUNDED, "--merge-into", "codes"),
    "keep_residual": shown("training", lambda a, b: differ(a.trained, b.trained) and (residuals(a), residuals(b)) == (
        set(), {"torch.float16"}), (*ROUNDED, "--merge-into", "codes"), "--keep-residual"),
    # rows
    "task": shown("rows", lambda a, b: b.data.task.name == "banking77" and lengths(a) != lengths(b), (), "--task",
                  "banking77", "--limit", "20"),
    "protocol": "test_a_protocol_is_refused_by_every_task_that_trains",
    "data": shown("rows", lambda a, b: len(lengths(a)) - len(lengths(b)) > 10, (), "--data", "others.jsonl"),
    "test_data": shown("rows", lambda a, b: len(b.data.test) == 40, (), "--test-data", "others.jsonl"),
    "limit": shown("rows", lambda a, b: len(b.data.train + b.data.validation + b.data.test) == 20, (), "--limit", "20"),
    "test_limit": shown("rows", lambda a, b: b.data.test == a.data.test[:2] and len(a.data.test) > 2, (),
                        "--test-limit", "2"),
    "max_length": shown("rows", lambda a, b: max(lengths(a)) > 27 >= max(lengths(b)), (), "--max-length", "26"),
    "max_new_tokens": shown("rows", lambda a, b: (a.data.max_new_tokens, b.data.max_new_tokens) == (
        max(len(e.tokens) - e.prompt_length for e in a.data.train + a.data.validation), 13), (), "--max-new-tokens",
        "13"),
    "seed": shown("base", lambda a, b: differ(a.initial, b.initial) and a.data.train != b.data.train, LORA, "--seed",
                  "1"),
    # optimisation
    "lr": shown("training", lambda a, b: b.steps[0]["lr"] == 1e-3 != a.steps[0]["lr"] and differ(
        a.trained, b.trained), LORA, "--lr", "1e-3"),
    "batch_size": shown("training", lambda a, b: (a.rows_at_a_time, b.rows_at_a_time) == ([6] * 3, [7] * 3), LORA,
                        "--batch-size", "7"),
    "micro_batch": shown("training", lambda a, b: b.rows_at_a_time == [4, 2] * 3 and all(
        torch.allclose(a.trained[n], b.trained[n], atol=1e-4) for n in a.trained), LORA, "--micro-batch", "4"),
    "gradient_checkpointing": shown("training", lambda a, b: not differ(a.trained, b.trained) and (
        a.recomputed, b.recomputed) == (False, True), LORA, "--gradient-checkpointing"),
    "cuda_graphs": "test_cuda_graphs_are_asked_for",
    "shard_base": "test_shard_base_is_for_several_processes",
    "epochs": shown("training", lambda a, b: (a.steps[-1]["epoch"], b.steps[-1]["epoch"]) == (1, 4),
                    (*LORA, "--epochs", "1"), "--epochs", "4"),
    "distill": shown("training", lambda a, b: differ(a.trained, b.trained) and not differ(a.base, b.base) and losses(
        b)[0] < 0.1 < losses(a)[0], ROUNDED, "--distill"),
    "distill_from": shown("training", lambda a, b: differ(a.trained, b.trained) and losses(b)[0] > 2 * losses(a)[0],
                          (*ROUNDED, "--distill"), "--distill-from", "other_model"),
    "steps": shown("training", lambda a, b: (a.steps[-1]["step"], b.steps[-1]["step"]) == (3, 5), LORA, "--steps", "5"),
    "warmup": shown("training", lambda a, b: rates(a)[0] == 1 and rates(b)[:2] == [0.5, 1] and differ(
        a.trained, b.trained), LORA, "--warmup", "0.7"),
    "lr_schedule": shown("training", lambda a, b: rates(a) == [1, 1, 0.5] and rates(b) == [1, 1, 1] and differ(
        a.trained, b.trained), LORA, "--lr-schedule", "constant"),
    "eval_every": shown("training", lambda a, b: (validated_at(a), validated_at(b)) == ([3], [2, 3]), LORA,
                        "--eval-every", "2"),
    "patience": shown("training", lambda a, b: (a.steps[-1]["step"], b.steps[-1]["step"]) == (40, 2) and b.steps[-1][
        "stopped_by"] == "patience", (*LORA, "--steps", "40", "--eval-every", "1", "--lr", "1e-30"), "--patience", "1"),
    "clip": changes("trained", LORA, "--clip", "1e-7"),
    "weight_decay": changes("trained", LORA, "--weight-decay", "0.5"),
    "beta2": changes("trained", LORA, "--beta2", "0.9"),
    "save_every": shown("training", lambda a, b: (a.saved_at, b.saved_at) == ([3], [1, 2, 3]), LORA, "--save-every",
                        "1"),
    "save_dtype": shown("training", lambda a, b: {t.dtype for t in a.trained.values()} == {torch.float16} and {
        t.dtype for t in b.trained.values()} == {torch.bfloat16}, FULL, "--save-dtype", "bfloat16"),
    # scoring, output
    "eval_batch_size": shown("training", lambda a, b: (scored_at_a_time(a), scored_at_a_time(b)) == (128, 5), LORA,
                             "--eval-batch-size", "5"),
    "requantize": "test_requantize_adds_a_state",
    "list_tasks": "test_what_only_prints",
    "show_example": "test_what_only_prints",
    "find_lr": "test_the_range_test_takes_so_many_steps",
    "mem_report": "test_the_memory_report_predicts_what_is_measured",
    "dry_run": "test_a_dry_run_only_prints",
    "nproc": "test_a_dry_run_only_prints",
    "out": "test_requantize_adds_a_state",
    "resume": "test_resume_goes_on",
    "debug": "test_debug_shows_the_traceback_and_nothing_else_does",
}


def scored_at_a_time(outcome: Outcome) -> int:
    to = Destination.of_own_task(outcome.run, outcome.run.eval_file)
    scoring = scoring_of(outcome.run, outcome.config, outcome.data, to, None)
    scoring.kept.forget()
    return scoring.batch_size


ALL = [action.dest for action in train_parser()._actions if action.dest != "help"]


def test_every_flag_has_a_proof():
    assert set(PROOFS) == set(ALL)
    assert all(name in globals() for name in PROOFS.values() if isinstance(name, str))


@pytest.mark.parametrize("name", [name for name, proof in PROOFS.items() if isinstance(proof, Proof)])
def test_a_flag_changes_what_it_says(command, name):
    proof = PROOFS[name]
    assert flag(name) in proof.with_flag
    a, b = command(*proof.without, stop=proof.stop), command(*proof.with_flag, stop=proof.stop)
    assert proof.shows(a, b)


@pytest.mark.parametrize("flags,what", [(LORA, "trained"), (ROUNDED, "base"), (FULL, "initial"), (GPTQ, "base")])
def test_the_same_flags_change_nothing(small_base, command, flags, what):
    """Otherwise chance would be a proof."""
    a = command(*flags, "--save-every", "7", stop="training" if what == "trained" else "base")
    b = command(*flags, "--save-every", "8", stop="training" if what == "trained" else "base")
    assert not differ(getattr(a, what), getattr(b, what))


# ---- proofs of another form -----------------------------------------------------------------------------------------

def test_the_seed_decides_the_order_of_the_same_rows(command):
    data, order = command(stop="rows").data, []
    settings = command(stop="rows").config.training
    for seed in (0, 1):
        model = torch.nn.Linear(2, 2)
        model.device, model.shared = torch.device("cpu"), None
        trainer = Trainer(model, {"p": torch.nn.Parameter(torch.zeros(2, 2))}, settings, seed,
                          data.train, data.validation, Path("state"), lambda: None, lambda record: None)
        seen = []

        def step(examples, bar, trainer=trainer, seen=seen):
            seen.append(tuple(examples[0].tokens))
            trainer.step += 1
        trainer._one_step = step
        trainer._validate = lambda trainer=trainer: setattr(trainer, "to_validate", False)
        trainer.run()
        order.append(seen)
    assert len(order[0]) == len(order[1]) == 3 and order[0] != order[1]


def test_the_seed_decides_random_weights_too(command):
    a, b = (command(*FULL, "--from-scratch", "--seed", seed, stop="base").initial for seed in "01")
    assert differ(a, b)


def test_weight_decay_spares_norms_and_biases(command):
    """One step: gradients do not depend on the decay yet, so vectors that are spared end the same."""
    plain, decayed = (command(*FULL, "--steps", "1", "--save-dtype", "float32", *more).trained
                      for more in ((), ("--weight-decay", "0.5")))
    assert any(p.ndim == 1 for p in plain.values())
    for name, p in plain.items():
        assert torch.equal(p, decayed[name]) == (p.ndim == 1), name


def test_a_clipped_gradient_is_what_the_optimizer_gets(command):
    """Adam divides by the gradient's size: a small norm shows beside its epsilon of 1e-8."""
    plain, clipped = command(*LORA, "--steps", "1"), command(*LORA, "--steps", "1", "--clip", "1e-9")
    moved = [sum((o.trained[n] - o.initial[n]).abs().sum().item() for n in o.trained) for o in (plain, clipped)]
    assert moved[1] < 0.2 * moved[0]


def test_loras_A_has_the_spread_of_kaiming(command):
    """Uniform in +-1/sqrt(D_in): nn.Linear's own. Without a = sqrt(5) it would be +-sqrt(6/D_in)."""
    for name, A in command(*LORA, "--rank", "16", stop="base").initial.items():
        if name.endswith(".A"):
            bound = A.shape[1] ** -0.5
            assert 0.98 * bound < A.abs().max() <= bound
            assert A.std().item() == pytest.approx(bound / 3 ** 0.5, rel=0.1)
        else:
            assert not A.any()


def test_gptq_is_calibrated_on_whole_rows_with_their_answers(command):
    data = command(*GPTQ, "--calibration-rows", "3", stop="rows").data
    assert data.calibration.rows == [e.tokens for e in data.train[:3]]


def test_the_device_is_where_the_weights_are_read_to(command, monkeypatch):
    class Asked(Exception):
        pass

    def load(files, config, dtype, device, *rest):
        raise Asked(device)
    monkeypatch.setattr("finetune.source.load_model", load)
    for device in ("cpu", "meta"):
        with pytest.raises(Asked, match=device):
            command(*LORA, "--device", device, "--save-every", "77", stop="base")


def test_cuda_graphs_are_asked_for(command, monkeypatch):
    """Here there is no GPU: the recorded passes are computed anew, padded."""
    with pytest.raises(ValueError, match="--cuda-graphs goes with --device cuda only, and the device is cpu"):
        command(*LORA, "--cuda-graphs", stop="rows")
    monkeypatch.setattr("finetune.resolve.check_graphs", lambda training, compute: None)
    plain, recorded = command(*LORA), command(*LORA, "--cuda-graphs")
    assert (plain.recorded, recorded.recorded) == (False, True)
    assert all(torch.allclose(p, recorded.trained[n], atol=1e-4) for n, p in plain.trained.items())


def test_a_protocol_is_refused_by_every_task_that_trains(command):
    with pytest.raises(ValueError, match="--protocol hendrycks: --task bitext has one protocol only"):
        command("--protocol", "hendrycks", stop="rows")


def test_requantize_adds_a_state(small_base, command):
    usual = ("--model", small_base, *USUAL[:-2], "--steps", "1", "--method", "qlora", "--block", "16x1",
             "--test-limit", "2", "--max-new-tokens", "2")
    assert call(train_script, *usual, "--requantize", "minmax@16x1", "--out", "named") is None
    assert list(rows_of(Path("named"))) == ["base", "quantized", "trained", "merged-16bit",
                                            "requantized-4bit-minmax-16x1"]


def test_what_only_prints(small_base, command, capsys):
    before = set(Path().iterdir())
    assert call(train_script, "--list-tasks") is None and "gsm8k" in capsys.readouterr().out
    assert call(train_script, "--model", small_base, *USUAL, "--block", "16x1", "--show-example") is None
    assert "what is learned after it" in capsys.readouterr().out
    assert set(Path().iterdir()) == before


def test_the_range_test_takes_so_many_steps(small_base, command, monkeypatch):
    """The first rate is a hundredth of --lr."""
    rates = []
    take_step = Trainer.take_step
    monkeypatch.setattr(Trainer, "take_step", lambda self, rows, lr: (rates.append(lr), take_step(self, rows, lr))[1])
    usual = ("--model", small_base, *USUAL, *LORA, "--lr", "1e-3", "--out")
    for steps, more in ((2, ["2"]), (20, [])):
        rates.clear()
        assert call(train_script, *usual, f"rates-{steps}", "--find-lr", *more) is None
        assert rates.count(rates[0]) == steps and rates[0] == 1e-5 and not Path(f"rates-{steps}/config.json").exists()


@pytest.mark.parametrize("script", [train_script, eval_script, sample_script, export_script, judge_script],
                         ids=lambda script: script.__name__)
def test_debug_shows_the_traceback_and_nothing_else_does(tmp_path, capsys, script):
    asked = {train_script: ["--resume", "nowhere"], eval_script: ["nowhere"], judge_script: ["nowhere", "nothing"],
             sample_script: ["nowhere", "--prompt", "a"],
             export_script: ["nowhere", "--format", "gguf", "--to", tmp_path / "x.gguf"]}[script]
    line = call(script, *asked)
    assert line.startswith("error: ") and "nowhere" in line and capsys.readouterr().err == f"{line}\n"
    assert call(script, *asked, "--debug") == line
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown and shown.endswith(f"\n{line}\n")


@pytest.mark.parametrize("more", [LORA, ROUNDED, FULL, ("--method", "qlora", "--block", "16x1", "--double-quant"),
                                  ("--method", "qablora", "--gradient-checkpointing"),
                                  (*ROUNDED, "--distill")], ids=" ".join)
def test_the_memory_report_predicts_what_is_measured(small_base, place, monkeypatch, capsys, more):
    """The small base is stored in 2 bytes a weight, as the prediction takes it."""
    monkeypatch.chdir(place)
    before = set(Path().iterdir())
    assert call(train_script, "--model", small_base, *USUAL, *more, "--mem-report") is None
    table = {part: (float(a), float(b)) for part, a, b in map(str.split, capsys.readouterr().out.splitlines()[-11:])
             if part != "MB"}
    teacher = ["teacher"] if "--distill" in more else []
    assert list(table)[-10 - len(teacher):] == ["weights", "codes", "factors", "adapters", "gradients", "optimizer",
                                               *teacher, "activations", "logits", "working", "all"]
    assert (table["activations"][0] > 0.05) == ("--gradient-checkpointing" not in more) and table["logits"][0] > 0
    for part, (expected, found) in table.items():
        assert found == pytest.approx(expected, rel=0.1, abs=0.11), part
    assert set(Path().iterdir()) == before


def test_shard_base_is_for_several_processes(small_base, place, monkeypatch, capsys):
    """What it changes: tests/finetune/test_sharded.py. Here, what each process is predicted to gather."""
    monkeypatch.chdir(place)
    usual = ("--model", small_base, *USUAL, *ROUNDED, "--dry-run", "--nproc", "2")
    assert call(train_script, *usual) is None and "gathered" not in capsys.readouterr().out
    assert call(train_script, *usual, "--shard-base") is None and "gathered" in capsys.readouterr().out
    assert "there is one" in call(train_script, "--model", small_base, *USUAL, *ROUNDED, "--shard-base")


def test_a_dry_run_only_prints(small_base, place, monkeypatch, capsys):
    """More of both: tests/finetune/test_dry_run.py."""
    monkeypatch.chdir(place)
    before = set(Path().rglob("*"))
    for more, rows in (([], 6), (["--nproc", "3"], 2)):
        assert call(train_script, "--model", small_base, *USUAL, *LORA, "--dry-run", *more) is None
        assert f"{rows} rows of up to" in capsys.readouterr().out
    assert set(Path().rglob("*")) == before


def test_resume_goes_on(small_base, command, monkeypatch):
    """From the last state: the step after it is taken, and logged, once more, and stands there once."""
    usual = ("--model", small_base, *USUAL, *LORA, "--steps", "5", "--test-limit", "1", "--max-new-tokens", "1",
             "--save-every", "2")
    with interrupted_after(3, monkeypatch):
        assert "train.py --resume cut" in call(train_script, *usual, "--out", "cut")
    assert call(train_script, "--resume", "cut") is None
    whole = command(*LORA, "--steps", "5")
    assert not differ(load_file("cut/adapter.safetensors"), whole.trained)
    logged = [json.loads(line) for line in Path("cut/metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line.get("loss")) for line in logged] == [(line["step"], line.get("loss"))
                                                                     for line in whole.steps]


def test_resume_of_a_run_that_patience_ended_says_so_and_scores(small_base, command, capsys):
    usual = ("--model", small_base, *USUAL, *LORA, "--steps", "40", "--test-limit", "1", "--max-new-tokens", "1",
             "--eval-every", "1", "--patience", "2", "--lr", "1e-30")
    assert call(train_script, *usual, "--out", "impatient") is None
    assert "--patience 2 ends training at step 3 of 40" in capsys.readouterr().out
    run = Path("impatient")
    assert json.loads((run / "training.json").read_text())["stopped_by"] == "patience"
    before, trained = (run / "metrics.jsonl").read_bytes(), (run / "adapter.safetensors").read_bytes()
    (run / "results.json").unlink()
    assert call(train_script, "--resume", run) is None
    assert "impatient goes on behind step 3, where --patience 2 ended its training" in capsys.readouterr().out
    assert (run / "metrics.jsonl").read_bytes() == before and (run / "adapter.safetensors").read_bytes() == trained
    assert (run / "results.json").is_file()
