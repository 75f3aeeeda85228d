"""The recorded decoder gives the losses and gradients of the plain one. Here the recordings are computed anew; the
tests marked cuda launch them."""
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from finetune.graphs import WIDTH, RecordedSteps
from finetune.loop import Trainer, summed_loss
from finetune.resolve import check_graphs, resolve_run
from model.checkpoint import random_model
from tasks.batching import collate
from tasks.task import Encoded
from tests.cli import SMALL


def examples(*lengths):
    generator = torch.Generator().manual_seed(len(lengths))
    return [Encoded(torch.randint(3, SMALL.vocab_size, (n,), generator=generator).tolist(), 1 + n // 2)
            for n in lengths]


def model():
    made = random_model(SMALL, torch.float32, seed=1)
    for name, p in made.named_parameters():
        p.requires_grad_("q_proj" in name or "down_proj" in name)
    return made


def test_losses_and_gradients_of_micro_batches_are_added():
    plain, ours = model(), model()
    recorded = RecordedSteps(ours, [p for p in ours.parameters() if p.requires_grad])
    for part in (examples(9, 12, 5), examples(20, 70, 64), examples(7)):
        loss, n = summed_loss(plain, part)
        (loss / n).backward()
        torch.testing.assert_close(recorded(part, n), loss.detach(), rtol=1e-5, atol=1e-5)
    assert sorted(recorded.decoders) == [(1, WIDTH), (3, WIDTH), (3, 2 * WIDTH)]
    for expected, p in zip(plain.parameters(), ours.parameters(), strict=True):
        assert (expected.grad is None) == (p.grad is None)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, expected.grad, rtol=1e-4, atol=1e-6)


def test_what_trains_behind_the_decoder_gets_its_gradients_too():
    plain, ours = (random_model(SMALL, torch.float32, seed=1).requires_grad_(True) for _ in range(2))
    recorded, part = RecordedSteps(ours, list(ours.parameters())), examples(9, 12)
    loss, n = summed_loss(plain, part)
    (loss / n).backward()
    recorded(part, n)
    for (name, expected), p in zip(plain.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(p.grad, expected.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_gradients_stay_in_place_over_steps(tmp_path):
    steps = {}
    for graphs in (False, True):
        trained, rows = model(), examples(9, 12, 30, 8)
        parameters = {n: p for n, p in trained.named_parameters() if p.requires_grad}
        settings = resolve_run({"method": "lora", "steps": 3, "micro_batch": 3, "device": "cpu"}).training
        object.__setattr__(settings, "cuda_graphs", graphs)
        log = []
        trainer = Trainer(trained, parameters, settings, 0, rows, rows, Path(tmp_path / "state"), lambda: None,
                          log.append)
        for _ in range(3):
            trainer._one_step(rows, tqdm(disable=True))
        steps[graphs] = [(line["loss"], line["gradient_norm"]) for line in log]
    for plain, recorded in zip(steps[False], steps[True], strict=True):
        assert recorded == pytest.approx(plain, rel=1e-4)


def test_rows_are_padded_to_a_multiple():
    plain, wide = collate(examples(9, 12)), collate(examples(9, 12), multiple=8)
    assert plain.tokens.shape == (2, 11) and wide.tokens.shape == (2, 16)
    assert torch.equal(wide.tokens[:, :11], plain.tokens) and not wide.tokens[:, 11:].any()
    assert torch.equal(wide.at.flatten().nonzero()[:, 0], wide.places) and torch.equal(wide.targets, plain.targets)


def test_recordings_and_recomputation_are_refused_together():
    from finetune.config import ComputeConfig, TrainingConfig
    with pytest.raises(ValueError, match="--cuda-graphs does not go with --gradient-checkpointing"):
        check_graphs(TrainingConfig(1.0, cuda_graphs=True, gradient_checkpointing=True),
                     ComputeConfig("float32", "cuda"))
