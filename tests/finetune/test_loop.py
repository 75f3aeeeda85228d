"""The loop: gradients, what is trained, best epoch, and resuming."""
import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from adapters.adapted import AdaptedLinear, adapter_parameters, replace_layers
from adapters.lam import Lam
from adapters.lora import LoRA
from finetune.config import TrainingConfig
from finetune.loop import Trainer, TrainingDiverged, mean_loss, summed_loss
from finetune.schedule import learning_rate
from finetune.values import SaveEvery
from tasks.task import Encoded
from tests.model.test_model import tiny, tokens

SETTINGS = TrainingConfig(lr=1e-2, batch_size=4, micro_batch=4, epochs=3, steps=None, warmup=0.1, clip=1.0,
                          weight_decay=0.0,
                    beta2=0.999, save_every=SaveEvery(2))
DATA = [Encoded(tokens(1, 4 + i % 5, seed=i)[0].tolist(), 2) for i in range(22)]


def adapted_model(dropout=0.0):
    torch.manual_seed(0)
    model = tiny()
    names = [n for n, _ in model.named_modules() if n.endswith(("q_proj", "up_proj"))]
    replace_layers(model, names, lambda n, base: AdaptedLinear(
        base, LoRA(base.out_features, base.in_features, Lam(1, 1), 2, 4.0).double(), dropout))
    return model


def trainer(tmp_path: Path, model, settings=SETTINGS, log=lambda record: None, keep=lambda: None):
    return Trainer(model, adapter_parameters(model), settings, 0, DATA[:18], DATA[18:], tmp_path / "state.safetensors",
                   keep, log)


def test_the_loss_is_cross_entropy_of_the_targets_alone():
    model = tiny()
    loss, n = summed_loss(model, DATA[:5])
    by_hand = sum(F.cross_entropy(model(torch.tensor([e.tokens[:-1]]))[0, e.prompt_length - 1:],
                                  torch.tensor(e.tokens[e.prompt_length:]), reduction="sum") for e in DATA[:5])
    torch.testing.assert_close(loss, by_hand, rtol=0, atol=1e-8)
    assert n == sum(len(e.tokens) - e.prompt_length for e in DATA[:5])


def test_validation_loss_does_not_depend_on_the_batch_size():
    model = tiny()
    losses = [mean_loss(model, DATA, size) for size in (1, 3, 22)]
    assert max(losses) - min(losses) < 1e-10


def test_micro_batches_give_the_gradient_of_the_whole_batch(tmp_path):
    """Rows of different length: averaging the micro-batches' means would be another gradient (control)."""
    ends = []
    for micro in (4, 3, 1):
        model = adapted_model()
        run = trainer(tmp_path, model, replace(SETTINGS, micro_batch=micro))
        run.run()
        ends.append(torch.cat([p.detach().flatten() for p in run.parameters.values()]))
    assert (ends[0] - ends[1]).abs().max() < 1e-8 and (ends[0] - ends[2]).abs().max() < 1e-8
    model = tiny()
    parts = [summed_loss(model, part) for part in (DATA[:3], DATA[3:4])]
    whole = sum(loss for loss, _ in parts) / sum(n for _, n in parts)
    assert abs(whole - sum(loss / n for loss, n in parts) / 2) > 1e-4


def test_only_the_adapters_change(tmp_path):
    model = adapted_model()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    trainer(tmp_path, model).run()
    for name, tensor in model.state_dict().items():
        assert torch.equal(before[name], tensor) == (".adapter." not in name), name


def test_a_run_is_adamw_with_clipping_and_decay_written_out(tmp_path):
    """Three steps by hand: learning rate of each step, clipped gradient, decay of matrices, both moments."""
    settings = replace(SETTINGS, steps=3, batch_size=18, micro_batch=18, clip=0.05, weight_decay=0.3, beta2=0.9,
                       warmup=0.4)
    model = adapted_model()
    by_hand = adapted_model()
    trainer(tmp_path, model, settings).run()
    parameters = adapter_parameters(by_hand)
    moments = {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in parameters.items()}
    for step in range(3):
        lr, (loss, n) = learning_rate(step, 3, settings), summed_loss(by_hand, DATA[:18])
        grads = dict(zip(parameters, torch.autograd.grad(loss / n, list(parameters.values())), strict=True))
        norm = torch.cat([g.flatten() for g in grads.values()]).norm()
        assert norm > settings.clip
        for name, p in parameters.items():
            g, (m, v) = grads[name] * settings.clip / norm, moments[name]
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.9).add_(0.1 * g * g)
            direction = (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.9 ** (step + 1))).sqrt() + 1e-8)
            p.data = p.data - lr * settings.weight_decay * p.data - lr * direction
    for name, p in adapter_parameters(model).items():
        torch.testing.assert_close(p, parameters[name], rtol=0, atol=1e-6)  # the library adds 1e-6 to the norm
        assert p.abs().max() > 0


def test_validation_is_without_dropout(tmp_path):
    records, model = [], adapted_model(dropout=0.5)
    trainer(tmp_path, model, replace(SETTINGS, steps=2), records.append).run()
    assert model.training
    assert records[-1]["validation_loss"] == pytest.approx(mean_loss(model.eval(), DATA[18:], 4), abs=1e-12)
    assert records[-1]["validation_loss"] != pytest.approx(mean_loss(model.train(), DATA[18:], 4), abs=1e-9)


def test_training_lowers_the_loss_and_the_best_epoch_is_kept(tmp_path):
    records, kept, model = [], [], adapted_model()
    run = trainer(tmp_path, model, replace(SETTINGS, epochs=6), records.append, lambda: kept.append(run.step))
    before = mean_loss(model, DATA[:18], 8)
    run.run()
    assert mean_loss(model, DATA[:18], 8) < before
    epochs = [r for r in records if "validation_loss" in r]
    losses = [r["validation_loss"] for r in epochs]
    assert run.best == min(losses)
    assert kept == [r["step"] for i, r in enumerate(epochs) if r["validation_loss"] < min([math.inf, *losses[:i]])]


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("stop_at", [2, 5, 7, 11])
def test_an_interrupted_run_resumed_ends_where_an_uninterrupted_one_does(tmp_path, stop_at):
    """Bit for bit, dropout included."""
    whole = trainer(tmp_path / "a", adapted_model(dropout=0.2))
    torch.manual_seed(3)
    whole.run()

    def log(record):
        if record["step"] == stop_at:
            raise Interrupted
    cut = trainer(tmp_path / "b", adapted_model(dropout=0.2), log=log)
    torch.manual_seed(3)
    with pytest.raises(Interrupted):
        cut.run()
    again = trainer(tmp_path / "b", adapted_model(dropout=0.2))
    if again.states.exist():
        again.load_state()
        assert 0 < again.step <= stop_at
    else:
        torch.manual_seed(3)
    again.run()
    for name, p in whole.parameters.items():
        assert torch.equal(p, again.parameters[name]), name
    assert whole.best == again.best and again.step == whole.total_steps


@pytest.mark.parametrize("every,saved", [("4", [4, 5, 8, 10, 12, 15]), ("2m", [3, 5, 8, 10, 13, 15]),
                                         ("2,2m", [2, 4, 5, 6, 8, 10, 12, 14, 15])])
def test_a_state_is_saved_after_steps_or_minutes_and_changes_no_number(tmp_path, every, saved):
    """A step takes 50 seconds on this clock. The last step of each of the three epochs always saves."""
    plain = trainer(tmp_path / "a", adapted_model(dropout=0.2), replace(SETTINGS, save_every=SaveEvery(100)))
    torch.manual_seed(3)
    plain.run()
    steps, found = [], []
    timed = trainer(tmp_path / "b", adapted_model(dropout=0.2), replace(SETTINGS, save_every=SaveEvery.parse(every)),
                    lambda record: steps.append(record["step"]))
    timed.clock = lambda: 50.0 * len(set(steps))
    save_state = timed.save_state
    timed.save_state = lambda: (found.append(timed.step), save_state())
    torch.manual_seed(3)
    timed.run()
    assert found == saved
    for name, p in plain.parameters.items():
        assert torch.equal(p, timed.parameters[name]), name


def test_steps_in_place_of_epochs(tmp_path):
    records = []
    trainer(tmp_path, adapted_model(), replace(SETTINGS, steps=7), records.append).run()
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 8))
    assert [r["step"] for r in records if "validation_loss" in r] == [5, 7]


def test_learning_rate_rises_then_falls_to_zero():
    settings = replace(SETTINGS, lr=1.0, warmup=0.1)
    rates = [learning_rate(i, 100, settings) for i in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert max(rates) == 1.0 and all(a >= b for a, b in pairwise(rates[10:])) and rates[-1] < 1e-3


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    model = adapted_model()
    with torch.no_grad():
        next(iter(adapter_parameters(model).values()))[0, 0] = float("nan")
    with pytest.raises(TrainingDiverged, match="step 1: the gradient is not finite"):
        trainer(tmp_path, model).run()


def test_state_is_a_safetensors_file_with_its_place_in_the_header(tmp_path):
    from safetensors import safe_open
    trainer(tmp_path, adapted_model()).run()
    with safe_open(tmp_path / "state.safetensors", "pt") as file:
        assert json.loads(file.metadata()["place"])["step"] == 15
