"""Plausible faults, planted one at a time: does a test notice?

    python tests/mutants.py                         # all of them: half an hour on one core
    python tests/mutants.py --only rope --jobs 2    # those whose names hold a text
    python tests/mutants.py --check                 # only that every text to replace is found once
    python tests/mutants.py --json mutants.json

Each mutant is applied to a temporary copy of the tree, never to the tree itself, and the named test files run on it
with `-x`. A mutant that no test notices survives. Exit status: 0 if all are noticed, 1 if some survive,
2 if a text to replace is not found exactly once.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(".git", "__pycache__", ".*_cache", "runs", "evals", "shared")
TIMEOUT = 240  # seconds for the tests of one mutant

MODEL = ("tests/model/test_model.py", "tests/model/test_families.py", "tests/model/test_bfloat16.py")
HALF = ("tests/model/test_bfloat16.py",)
GENERATE = ("tests/model/test_generate.py", "tests/model/test_model.py")
LIKELY = ("tests/model/test_likelihood.py", "tests/tasks/test_benchmarks.py")
QUANT = ("tests/quant",)
ADAPTERS = ("tests/adapters",)
PEFT_IN = ("tests/interop/test_export_with_peft.py",)
QALORA_IN = ("tests/adapters/test_peft_qalora.py",)
REFITTED = ("tests/adapters/test_scaleoffset.py",)
DISTILLED = ("tests/finetune/test_distillation.py",)
ROUNDED = ("tests/adapters/test_rounded.py", "tests/quant/test_moved.py")
LOTA, SIGNS = ("tests/adapters/test_lota.py",), ("tests/finetune/test_sign_sgd.py",)
HELD = ("tests/adapters/test_held.py",)
LOSS = ("tests/model/test_token_loss.py",)
SHARED = ("tests/finetune/test_sharded.py",)
DRY = ("tests/finetune/test_dry_run.py",)
LOOP = ("tests/finetune/test_loop.py", "tests/finetune/test_not_finite.py")
RATES = ("tests/finetune/test_range_test.py", "tests/finetune/test_usual_rate.py")
VALIDATIONS = ("tests/finetune/test_validations.py",)
CALIBRATION = ("tests/finetune/test_calibration.py", "tests/model/test_bfloat16.py")
SIGNALS = ("tests/scripts/test_signals.py",)
PROCESSES, SEVERAL = ("tests/model/test_processes.py",), ("tests/scripts/test_several_processes.py",)
COMMAND = ("tests/finetune/test_command.py",)
FLAGS = ("tests/finetune/test_flags.py",)
CONFIG = ("tests/finetune/test_config.py",)
RESUME = ("tests/finetune/test_resume_is_checked.py", "tests/scripts/test_cli.py")
RUNS = ("tests/scripts/test_cli.py", "tests/scripts/test_cli_methods.py")
RESTORE = ("tests/scripts/test_cli_restore.py", "tests/adapters/test_restoration.py")
SAMPLE = ("tests/scripts/test_sample.py", "tests/finetune/test_flags.py")
TASKS = ("tests/tasks",)
OWN = ("tests/tasks/test_messages.py", "tests/tasks/test_own_rows.py", "tests/tasks/test_own_commands.py")
CHAT = ("tests/model/test_chat_template.py", "tests/model/test_talk.py", "tests/tasks/test_messages.py")
SCORING = ("tests/scoring",)
CELLS = ("tests/experiments/test_cells.py", "tests/experiments/test_methods.py")
OVERVIEW = ("tests/experiments/test_overview.py",)
EXPORT = ("tests/interop/test_export.py",)
PEFT = ("tests/interop/test_export_peft.py",)
CARD = ("tests/interop/test_model_card.py", "tests/interop/test_modelfile.py", "tests/interop/test_push.py")
GGUF = ("tests/interop/test_export_gguf.py", "tests/quant/test_gguf_blocks.py")
TOKENIZER = ("tests/model/test_added_tokens.py", "tests/interop/test_export.py", "tests/model/test_hub.py",
             "tests/interop/test_export_tokenizer.py")
HUB = ("tests/model/test_hub.py",)
INTEGERS = ("tests/quant/test_integer_formats.py",)
LOST = ("tests/interop/test_lost.py",)
JUDGING = ("tests/judging",)
STANDS = ("tests/scripts/test_a_run_stands_alone.py",)
DURABLE = ("tests/model/test_durable.py",)
CHECKSUMS = ("tests/model/test_tensor_files.py", "tests/model/test_journal.py", "tests/model/test_checksums.py",
             "tests/finetune/test_state_files.py")


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    old: str               # found exactly once in the file
    new: str
    tests: tuple[str, ...]  # files or directories that should notice


@dataclass(frozen=True)
class Outcome:
    name: str
    file: str
    result: str    # "noticed", "SURVIVED", or "timeout", which counts as noticed
    seconds: float
    by: str        # the first test that failed


M = Mutant
MUTANTS = [
    # ---- bfloat16
    M("rope-angles-bf16", "model/rotary.py", "wide = torch.promote_types(dtype, torch.float32)", "wide = dtype", HALF),
    M("rope-frequencies-bf16", "model/rotary.py", "return rotary_angles(frequencies, positions",
      "return rotary_angles(frequencies.to(dtype), positions", HALF),
    M("softcapped-softmax-bf16", "model/llama.py",
      "scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype)", "scores.softmax(-1)",
      HALF),
    M("norm-statistics-bf16", "model/llama.py", "wide = x.to(torch.promote_types(x.dtype, torch.float32))", "wide = x",
      MODEL),
    M("norm-plus-one-in-bf16", "model/llama.py", "((1 + self.weight.to(normed.dtype)) * normed).to(x.dtype)",
      "(1 + self.weight.to(x.dtype)) * normed.to(x.dtype)", MODEL),
    M("training-loss-bf16", "model/token_loss.py", "dtype=torch.promote_types(logits.dtype, torch.float32)",
      "dtype=logits.dtype", (*LOOP, *HALF)),
    M("along-counts", "finetune/together.py", "[(spare, False)]", "[(spare, True)]", SHARED),
    M("sharing-with-nobody-is-predicted", "finetune/sharded.py", 'given.get("nproc", 1) > 1', "True", DRY),
    M("layer-stays-in-memory", "finetune/sharded.py", 'model.get_submodule(prefix.removesuffix(".")).to("meta")',
      "pass", SHARED),
    M("zero-points-stay-whole", "finetune/sharded.py", "for holder in module.modules():", "for holder in [module]:",
      SHARED),
    M("gradients-along-count", "finetune/loop.py", "self._add_gradients(part, math.inf)",
      "self._add_gradients(part, n_targets)", SHARED),
    M("rows-of-a-process-rounded-down", "finetune/by_process.py", "math.ceil(config.training.batch_size / self.number)",
      "config.training.batch_size", DRY),
    M("base-received-once", "finetune/by_process.py", "2 * processes.micro_batches(config)",
      "processes.micro_batches(config)", DRY),
    M("one-layer-gathered", "finetune/by_process.py", "gathered = 2 * sum(", "gathered = sum(", DRY),
    M("first-layer-stands-for-all", "finetune/memory.py", "(both - so_far[0])", "so_far[0]", DRY),
    M("windowed-layers-are-alike", "finetune/memory.py", "if len(kinds) > 1 or len(layers) < 3:",
      "if len(layers) < 3:", DRY),
    M("dry-run-skips-the-headers", "finetune/dry_run.py", "        if self.has_weights:\n            super()",
      "        if False:\n            super()", DRY),
    M("loss-gradient-of-one-part", "model/token_loss.py", "total += grad", "total.copy_(grad)", LOSS),
    M("log-likelihood-bf16", "model/likelihood.py", "part.float().log_softmax", "part.log_softmax",
      (*LIKELY, *HALF)),
    M("log-likelihood-sums-bf16", "model/likelihood.py", "targets).double()", "targets).bfloat16()",
      (*LIKELY, *HALF)),
    M("perplexity-sum-bf16", "tasks/perplexity.py", "x, tokens[1:]).double().sum()", "x, tokens[1:]).bfloat16().sum()",
      ("tests/scoring", "tests/model/test_bfloat16.py")),
    M("logit-column-bf16", "scoring/scores.py", "kept, model.dtype = model.dtype, torch.float32", "kept = model.dtype",
      ("tests/scoring", "tests/model/test_bfloat16.py")),
    M("calibration-bf16", "finetune/gptq_model.py", "kept, model.dtype = model.dtype, torch.float32",
      "kept = model.dtype", CALIBRATION),
    M("hessian-bf16", "quant/gptq.py", "x = x.to(self.sum.dtype)", "x = x.bfloat16().to(self.sum.dtype)",
      (*QUANT, *CALIBRATION)),
    M("dequantize-bf16", "quant/grid.py", "wide = torch.promote_types(dtype, torch.float32)", "wide = dtype", QUANT),
    M("adapter-parameters-bf16", "adapters/lora.py", "torch.empty(rank, n_in)",
      "torch.empty(rank, n_in, dtype=torch.bfloat16)", (*ADAPTERS, *HALF)),
    M("micro-batch-sum-of-losses-bf16", "finetune/loop.py", "batch.targets), len(batch.targets)",
      "batch.targets).bfloat16(), len(batch.targets)", (*LOOP, *HALF)),
    M("drawing-in-bf16", "model/generate.py", "below = logits.double() - logits.double().amax(-1, keepdim=True)",
      "below = logits - logits.amax(-1, keepdim=True)", GENERATE),
    # ---- the model
    M("window-off-by-one", "model/llama.py", "position[:, None, :] < window)", "position[:, None, :] <= window)",
      MODEL),
    M("softcap-of-attention-missing", "model/llama.py", "softcap(q @ k.transpose(-2, -1) * scale, cap)",
      "(q @ k.transpose(-2, -1) * scale)", MODEL),
    M("softcap-of-logits-missing", "model/llama.py",
      "return softcap(logits, self.config.final_softcap)",
      "return self.lm_head(self.model.norm(x))", MODEL),
    M("norm-plus-one-missing", "model/llama.py", "((1 + self.weight.to(normed.dtype)) * normed)",
      "(self.weight.to(normed.dtype) * normed)", MODEL),
    M("kv-heads-tiled", "model/llama.py", "x.repeat_interleave(times, dim=1)", "x.repeat(1, times, 1, 1)", MODEL),
    M("padding-counts-as-position", "model/llama.py", "return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, cached:]",
      "return torch.arange(cached, cached + T, device=device)[None].expand(len(mask), T)",
      (*MODEL, "tests/model/test_likelihood.py")),
    M("cached-positions-from-0", "model/llama.py", "return torch.arange(cached, cached + T, device=device)[None]\n",
      "return torch.arange(T, device=device)[None]\n", MODEL),
    M("rope-interleaved", "model/rotary.py", "angles = torch.cat((angles, angles), dim=-1)",
      "angles = angles.repeat_interleave(2, -1)", MODEL),
    M("linear-rope-not-divided", "model/rotary.py", 'return frequencies / scaling["factor"]', "return frequencies",
      MODEL),
    M("llama3-rope-not-blended", "model/rotary.py", ".clamp(0, 1)\n", ".clamp(0, 1).round()\n", MODEL),
    M("embedding-scale-missing", "model/llama.py", "(tokens).to(self.dtype) * scale", "(tokens).to(self.dtype)",
      MODEL),
    M("norm-eps-ignored", "model/llama.py", "keepdim=True) + self.eps)", "keepdim=True) + 1e-6)", MODEL),
    M("last-mlp-reads-all-tokens", "model/llama.py", "at = places if layer is self.model.layers[-1] else None\n",
      "at = None\n            if places is not None and layer is self.model.layers[-1]:\n"
      "                return layer(x, angles, allowed, cache).flatten(0, 1)[places]\n", MODEL),
    M("places-counted-in-each-row", "model/llama.py", "x.flatten(0, 1)[places])",
      "x[:, places % x.shape[1]][0])", MODEL),
    M("cache-keeps-rows-of-others", "model/llama.py",
      "self.keys, self.values = self.keys[:, rows], self.values[:, rows]",
      "self.keys, self.values = self.keys[:, :len(rows)], self.values[:, :len(rows)]", GENERATE),
    # ---- generation
    M("prompt-loses-its-right-end", "model/generate.py", "list(prompts[i])[-room:]", "list(prompts[i])[:room]",
      GENERATE),
    M("end-token-in-the-answer", "model/generate.py", "if token not in stop_ids:", "if True:", GENERATE),
    M("top-p-ignored-by-sample", "sample.py", 'given.get("top_p", 1.0)', "1.0", SAMPLE),
    M("temperature-ignored-by-sample", "sample.py", 'given.get("temperature", 1.0)', "1.0", SAMPLE),
    M("seed-ignored-by-sample", "sample.py", 'given.get("seed", 0))', "0)", SAMPLE),
    M("nucleus-one-token-short", "model/generate.py", "before < top_p", "before + ranked <= top_p", GENERATE),
    M("context-loses-its-right-end", "model/likelihood.py", "pair.context[surplus:]",
      "pair.context[:len(pair.context) - surplus]", LIKELY),
    # ---- quantizers
    M("levels-off-by-one", "quant/minmax.py", "torch.arange(steps + 1,", "torch.arange(1, steps + 2,", QUANT),
    M("ties-to-the-higher-code", "quant/grid.py", "/ 2, out_int32=True)", "/ 2, out_int32=True, right=True)", QUANT),
    M("double-quant-without-mean", "quant/factors.py", "mean = flat.mean(0, keepdim=True)", "mean = flat.new_zeros(1)",
      QUANT),
    M("gptq-stale-groups", "quant/gptq.py", "quantizer.fit(w[i:i + group].T.contiguous(), layer)",
      "quantizer.fit(weight[:, i:i + group], layer)", QUANT),
    M("gptq-no-feedback-in-the-block", "quant/gptq_columns.py",
      "w[i + 1:] -= torch.mul(U[i, i + 1:, None], error, out=update[i + 1:])", "pass", QUANT),
    M("gptq-no-feedback-beyond-the-block", "quant/gptq_columns.py", "w[end:] -= U[start:end, end:].T @ errors", "pass",
      QUANT),
    M("recorded-columns-with-the-grids-of-the-first-range", "quant/gptq_recorded.py", "self.group_of[start:end]",
      "self.group_of[:end - start]", QUANT),
    M("recorded-columns-keep-the-first-factor", "quant/gptq_recorded.py", "mine.copy_(given)",
      "mine.copy_(given if given is not U else mine)", QUANT),
    M("gptq-factor-of-fewer-tokens", "quant/gptq.py", "        self.factors.clear()\n", "", QUANT),
    M("dequantize-with-two-roundings", "quant/grid.py", "fused=not exact", "fused=False", QUANT),
    M("dequantize-scale-0-as-positive", "quant/grid.py", "scale.min() > 0 and not offset.any()", "not offset.any()",
      QUANT),
    M("dequantize-words-cut", "quant/grid.py", "unit = 8 * grid.block.n_out", "unit = grid.block.n_out", QUANT),
    M("rounding-ties-up", "quant/rounding.py", ".eq_(-0.5)", ".eq_(0.5)", QUANT),
    M("halves-of-3-bit-words-swapped", "quant/packing.py", "index[1::2] = middle >> 4 | last << 4",
      "index[1::2] = middle & 0xF | last << 4", QUANT),
    M("five-bit-index-one-bit-off", "quant/packing.py", "(high & (4 << 2 * i) - 1) << 8 - 2 * i",
      "(high & (4 << 2 * i) - 1) << 7 - 2 * i", QUANT),
    M("gptq-no-damping", "quant/gptq.py", "DAMPING = (0.01, 0.1, 1.0)", "DAMPING = (0.0, 0.1, 1.0)", QUANT),
    M("inverse-by-halves-adds", "quant/gptq.py", "@ first).neg_()", "@ first)", QUANT),
    M("act-order-not-undone", "quant/gptq.py", "codes[order.argsort()]", "codes", QUANT),
    M("hessian-without-factor-of-tokens", "quant/gptq.py", "* (2 / self.tokens)\n", "* 2\n", QUANT),
    M("icq-ties-to-the-largest-shift", "quant/icq.py", "f[f.abs().argsort(stable=True)]",
      "f[f.abs().argsort(stable=True, descending=True)]", QUANT),
    M("icq-never-tries-nf", "quant/icq.py", "torch.cat((f * a + tau0, torch.zeros_like(tau0)), 1)", "f * a + tau0",
      QUANT),
    M("codes-packed-highest-first", "quant/packing.py", "flat << (bits * torch.arange(n_codes,",
      "flat.flip(1) << (bits * torch.arange(n_codes,", QUANT),
    M("zero-points-unsigned", "quant/factors.py", "return -scale.to(wide)", "return scale.to(wide)", QUANT),
    M("zero-not-rounded-to-the-stored-scale", "quant/integer_minmax.py",
      "exact, scale = scale, scale.to(self.storage).to(low.dtype)", "exact = scale", QUANT),
    M("range-not-widened-to-0", "quant/integer_minmax.py", "high.clamp(min=0) - low.clamp(max=0)", "high - low", QUANT),
    M("overflow-of-an-offset-alone", "quant/quantizer.py", "all(factor.isfinite().all() for factor in grid.factors())",
      "grid.factors()[0].isfinite().all()", QUANT),
    M("underflow-not-refused", "quant/quantizer.py",
      "            check_underflow(scale, scale.to(self.storage), len(levels), wide.abs().max())\n", "", QUANT),
    M("factors-rounded-after-the-codes", "quant/quantizer.py", "factor = factor.to(self.storage)\n",
      "factor = factor.float()\n", QUANT),
    M("block-transposed", "quant/grid.py", "weight.unflatten(1, (-1, block.n_in)).unflatten(0, (-1, block.n_out))",
      "weight.unflatten(1, (-1, block.n_out)).unflatten(0, (-1, block.n_in))", QUANT),
    M("scale-0-divides", "quant/grid.py", "torch.where(inverse.isfinite(), inverse, 0)", "inverse", QUANT),
    M("with-scale-drops-the-bias", "quant/linear.py", "self.in_features, self.codes, grid, self.bias)",
      "self.in_features, self.codes, grid)", (*QUANT, *ADAPTERS)),
    M("merged-codes-repacked", "quant/linear.py", "self.in_features, self.codes, grid, self.bias)",
      "self.in_features, self.codes.clone(), grid, self.bias)", (*QUANT, *ADAPTERS)),
    M("nf-without-an-exact-0", "quant/normal_float.py", "*upper_quantiles(half), 0.0,", "*upper_quantiles(half), 1e-3,",
      QUANT),
    # ---- adapters
    M("one-over-lam-missing", "adapters/operators.py", "core.new_ones(lam.lam_out, lam.lam_in)) / lam.lam_in",
      "core.new_ones(lam.lam_out, lam.lam_in))", ADAPTERS),
    M("scaling-missing-in-delta", "adapters/adapter.py", "self.scaling * self.core(compressed)",
      "self.core(compressed)", ADAPTERS),
    M("scaling-missing-in-the-matrix", "adapters/adapter.py", "self.scaling * self.operators.expand(",
      "self.operators.expand(", ADAPTERS),
    M("scaling-of-lora-is-its-square-root", "adapters/lora.py", "lora_alpha, rank: lora_alpha / rank,",
      "lora_alpha, rank: lora_alpha / rank ** 0.5,", ADAPTERS),
    M("scaling-of-rslora-is-loras", "adapters/lora.py", "lora_alpha / math.sqrt(rank)}", "lora_alpha / rank}",
      (*ADAPTERS, *FLAGS)),
    M("scaling-ignored-by-lora", "adapters/lora.py", "SCALINGS[scaling]", 'SCALINGS["lora"]', (*ADAPTERS, *FLAGS)),
    M("scaling-ignored-by-blora", "adapters/blora.py", "SCALINGS[scaling]", 'SCALINGS["lora"]', ADAPTERS),
    M("scaling-ignored-by-qalora", "adapters/qalora.py", "SCALINGS[scaling]", 'SCALINGS["lora"]', ADAPTERS),
    M("scaling-ignored-by-qablora", "adapters/qablora.py", "SCALINGS[scaling]", 'SCALINGS["lora"]', ADAPTERS),
    M("scaling-ignored-by-irqlora", "adapters/irqlora.py", "SCALINGS[scaling]", 'SCALINGS["lora"]', ADAPTERS),
    M("peft-without-rslora", "interop/peft.py", '"use_rslora": self.rslora', '"use_rslora": False', PEFT),
    M("spread-of-A", "adapters/lora.py", "a=math.sqrt(5)", "a=0", FLAGS),
    M("B-starts-at-random", "adapters/lora.py", "nn.Parameter(torch.zeros(n_out, rank))",
      "nn.Parameter(torch.randn(n_out, rank))", ADAPTERS),
    M("blora-rank-not-balanced", "adapters/blora.py", "rank * lam.lam_in)", "rank)", ADAPTERS),
    M("iec-shortcut-left-out-of-the-merge", "adapters/irqlora.py", "self.B + self.iec_b * R", "self.B", ADAPTERS),
    M("merge-takes-another-blocks-delta", "adapters/merged_form.py", "repeat_interleave(lam.lam_out // n_out, 0)",
      "repeat(lam.lam_out // n_out, 1)", ADAPTERS),
    M("merge-rounds-the-offset", "adapters/merged_form.py",
      "offset.to(torch.promote_types(offset.dtype, of_block.dtype)) + of_block", "(offset + of_block).to(offset.dtype)",
      ADAPTERS),
    M("merged-form-forgets-its-scaling", "adapters/merged_form.py", "* (ctx.adapter.scaling / lam.lam_in)",
      "* (1 / lam.lam_in)", ADAPTERS),
    M("merged-form-in-spite-of-dropout", "adapters/adapted.py", "if not drops and has_merged_form",
      "if has_merged_form", ADAPTERS),
    M("merge-rule-of-inputs-only", "adapters/merged_form.py",
      "tile.lam_in % n_in == 0 and tile.lam_out % n_out == 0", "tile.lam_in % n_in == 0", ADAPTERS),
    M("moved-codes-by-the-scale-upside-down", "quant/moved.py", "inverse = inverse_of(scale.to(wide))",
      "inverse = scale.to(wide)", ROUNDED),
    M("clipped-at-the-outermost-levels", "quant/moved.py", "return levels[0] - (levels[1] - levels[0]) / 2,",
      "return levels[0],", ROUNDED),
    M("residual-not-cut", "quant/moved.py", ".clamp(*(end[codes] for end in of_cell))", "", ROUNDED),
    M("residual-rounded-away-from-0", "quant/moved.py", "found.float().abs() > exact.abs()",
      "found.float().abs() > 9 + exact.abs()", ROUNDED),
    M("residual-left-out", "adapters/rounded.py", "positions(self.base, delta, self.residual)",
      "positions(self.base, delta)", (*ROUNDED, *FLAGS)),
    M("residual-left-out-of-the-gradient", "adapters/rounded.py", ".detach(), ctx.layer.residual)", ".detach(), None)",
      ROUNDED),
    M("residuals-of-no-layer", "finetune/quantize.py", "if name in self.residuals:", "if False:",
      ("tests/scripts/test_cli_merge_into.py",)),
    M("codes-that-stayed-are-counted", "adapters/merge.py", "(before != after)", "(before == after)", ROUNDED),
    M("ternary-moves-without-a-threshold", "adapters/lota.py", "P.abs() > omega", "P.abs() > 0", LOTA),
    M("ternary-codes-leave-the-grid", "adapters/lota.py", "wanted.masked_fill_(outside, 0)", "wanted", LOTA),
    M("ternary-mean-of-all-that-moved", "adapters/lota.py", "of_P / omega - of_t", "of_P / omega", LOTA),
    M("ternary-gradient-where-the-grid-ends", "adapters/lota.py",
      "torch.where(still, grad.mean((1, 3), keepdim=True), grad)", "grad", LOTA),
    M("ternary-gradient-of-one-omega", "adapters/lota.py", "scale.to(grad.dtype)) / omega", "scale.to(grad.dtype))",
      LOTA),
    M("ternary-merge-left-unmerged", "adapters/held.py", "RoundedLinear | TernaryLinear)", "RoundedLinear)", LOTA),
    M("levels-that-are-not-even", "adapters/lota.py", "base.levels.is_meta or whole_ends(base.levels)", "True", LOTA),
    M("step-with-the-gradient", "finetune/sign_sgd.py", "p.sub_(p.grad.sign()", "p.add_(p.grad.sign()", SIGNS),
    M("ternary-numbers-grow", "finetune/sign_sgd.py", ".clamp_(-1, 1)", "", SIGNS),
    M("half-the-quantile", "finetune/sign_sgd.py", "floor(sigma * (n - 1))", "floor(sigma * n / 2)", SIGNS),
    M("sigma-does-not-turn", "finetune/sign_sgd.py", "if done <= turn:", "if True:", SIGNS),
    M("a-clipped-weight-has-a-gradient", "adapters/rounded.py", "clipped(position, base.grid), 0)",
      "clipped(position, base.grid), 1)", ROUNDED),
    M("gradient-of-x-by-the-unmoved-codes", "adapters/rounded.py",
      "grad_y @ rounded(position, base.grid).dequantize(grad_y.dtype)", "grad_y @ base.dequantize(grad_y.dtype)",
      ROUNDED),
    M("merge-leaves-the-codes", "adapters/rounded.py", "self.moved(self.adapter.delta_weight().detach())",
      "self.moved(0 * self.adapter.delta_weight().detach())", ROUNDED),
    M("a-rounded-adapter-merges-by-the-rule-of-tiles", "adapters/merge.py", " or adapter.merges_into == CODES:", ":",
      ROUNDED),
    M("held-without-the-moved-codes", "adapters/held.py", "| RefittedLinear | RoundedLinear", "| RefittedLinear",
      ROUNDED),
    M("held-without-trained-factors", "adapters/held.py", "| RefittedLinear |", "|", REFITTED),
    M("an-offset-that-the-factor-leaves", "adapters/scaleoffset.py", "f * offset + UNIT", "offset + UNIT", REFITTED),
    M("gradient-of-the-factor-without-the-factor", "adapters/scaleoffset.py", "(grad_weight * scaled).sum(1)",
      "(grad_weight * split_blocks(ctx.layer.base.dequantize(H.dtype), block)).sum(1)", REFITTED),
    M("gradient-of-x-without-H", "adapters/scaleoffset.py", "scaled.add_(per_block(added))", "scaled", REFITTED),
    M("a-gradient-of-H-for-its-own-unit", "adapters/scaleoffset.py", "grad_H = UNIT * ", "grad_H = ", REFITTED),
    M("merge-of-the-offset-alone", "adapters/scaleoffset.py",
      "return self.base.with_factors(*self.adapter.factors(*self.base.grid.factors()))",
      "return self.base.with_offset(self.adapter.factors(*self.base.grid.factors())[1])", REFITTED),
    M("a-merged-offset-that-no-export-sees", "interop/trained.py", '"offset" in self.target.into',
      'self.target.into == "offset"', ("tests/interop/test_export_scaleoffset.py",)),
    M("export-without-the-adapter-of-peft", "interop/with_peft.py",
      "model = super().load()\n        attach_peft(model, self.adapter)", "model = super().load()", PEFT_IN),
    M("rounding-of-an-adapter-of-peft-not-measured", "interop/before.py", " or bool(trained.adapted)", "", PEFT_IN),
    M("qalora-of-peft-by-the-mean-alone", "adapters/peft_in.py", "scaling=lora.scaling * means)",
      "scaling=lora.scaling)", QALORA_IN),
    M("qalora-of-peft-by-its-flag-alone", "adapters/peft_in.py", "A is not None and A[-1:] == (D_in,):", "False:",
      QALORA_IN),
    M("a-group-that-does-not-divide", "adapters/peft_in.py", "if D_in % group:", "if False:", QALORA_IN),
    M("divergence-from-the-model-to-the-teacher", "finetune/distillation.py", "(p * (log_p - log_q)).sum()",
      "(log_q.exp() * (log_q - log_p)).sum()", DISTILLED),
    M("the-whole-teacher-at-any-share", "finetune/distillation.py", "sub_(p, alpha=share)", "sub_(p)", DISTILLED),
    M("the-rows-in-spite-of-distill", "finetune/distillation.py", "targets] -= 1 - share", "targets] -= 1", DISTILLED),
    M("validation-without-the-teacher", "finetune/loop.py", "(objective or summed_loss)(model, part)",
      "summed_loss(model, part)", DISTILLED),
    M("another-teacher-than-named", "finetune/distillation.py", "config.training.distill_from or config.base.model",
      "config.base.model", FLAGS),
    M("held-bias-in-one-rounding", "adapters/held.py", "self.product(x, None) + self.bias",
      "self.product(x, self.bias)", HELD),
    M("held-in-float32-too", "adapters/held.py", "model.dtype == torch.bfloat16", "True", HELD),
    M("merge-into-is-ignored", "finetune/adapted_model.py",
      "into_codes(adapter) if config.adapter.merge_into else adapter", "adapter", FLAGS),
    M("a-rounded-adapter-on-another-base", "adapters/restoration.py", "if merge_into == CODES:",
      "if merge_into is kind:", ROUNDED),
    M("integers-beside-real-offsets", "quant/formats/integers.py",
      "if not torch.equal(-scale * zeros, offset.expand_as(scale)):", "if False:", INTEGERS),
    M("symmetric-codes-not-shifted", "quant/formats/integers.py", "shift = half + low if low < 0 else 0", "shift = 0",
      INTEGERS),
    M("gptq-v1-stores-the-zeros", "quant/formats/gptq.py", "- int(self.version == 1)", "- 0", INTEGERS),
    M("gptq-v1-for-any-zeros", "quant/formats/gptq.py", '"gptq" if symmetric else "gptq_v2"', '"gptq"', INTEGERS),
    M("codes-of-joined-layers-are-read", "model/stored_checkpoint.py", "if FAMILIES[config.model_type].fused:",
      "if False:", ("tests/model/test_prebuilt_bases.py",)),
    M("symmetric-zero-points-are-not-seen", "quant/formats/stored.py", "(NONE, levels - half) if symmetric else",
      "(NONE, levels - half) if False else", ("tests/interop/test_export_integers.py",)),
    M("gptqmodel-zeros-read-by-fields", "quant/formats/gptq.py", "if self.by_words else 0", "if False else 0",
      ("tests/quant/test_prebuilt_goldens.py",)),
    M("merged-offsets-in-integer-formats", "interop/stored_format.py",
      "if codes.gains_offset and not kind.real_offsets:", "if False:", ("tests/interop/test_export_integers.py",)),
    M("a-rounded-adapter-as-a-lora", "interop/peft.py", "if trained.run.config.adapter.merge_into:", "if False:",
      ("tests/interop/test_export_codes.py",)),
    M("moved-codes-in-a-k-type", "interop/gguf_writer.py", "self.rows_of_heads(merged.moved(model, part), part, model)",
      "merged.moved(model, part)", ("tests/interop/test_export_codes.py",)),
    M("codes-over-the-scales-of-a-superblock", "quant/gguf_superblocks.py", "stored & where.kept | ", "stored | ",
      ("tests/quant/test_gguf_superblocks.py",)),
    M("peqa-may-turn-a-scale-around", "adapters/peqa.py", "* self.log_factor.exp()", "* (1 + self.log_factor)",
      ADAPTERS),
    M("dropout-in-evaluation", "adapters/adapted.py", "self.adapter.delta(self.dropout(x))",
      'self.adapter.delta(torch.dropout(x, getattr(self.dropout, "p", 0.0), True))', (*ADAPTERS, *LOOP)),
    M("dropout-not-attached", "finetune/adapted_model.py", ", config.adapter.dropout)", ")", FLAGS),
    M("restoration-ratio-upside-down", "adapters/restoration.py", "return self.base / self.adapter if self.adapter",
      "return self.adapter / self.base if self.adapter", ADAPTERS),
    # ---- training
    M("weight-decay-on-norms-and-biases", "finetune/optimizer.py", '{"params": others, "weight_decay": 0.0}',
      '{"params": others, "weight_decay": settings.weight_decay}', (*LOOP, *FLAGS)),
    M("weight-decay-ignored", "finetune/optimizer.py", '"weight_decay": settings.weight_decay}',
      '"weight_decay": 0.0}', LOOP),
    M("beta2-ignored", "finetune/optimizer.py", "betas=(0.9, settings.beta2)", "betas=(0.9, 0.999)", LOOP),
    M("warmup-ignored", "finetune/schedule.py", "rising = max(1, round(settings.warmup * total))", "rising = 1", LOOP),
    M("rate-does-not-fall", "finetune/schedule.py", "0.5 * (1 + math.cos(", "1 + 0 * (1 + math.cos(", LOOP),
    M("lr-schedule-ignored", "finetune/schedule.py", "SCHEDULES[settings.lr_schedule]", 'SCHEDULES["cosine"]',
      (*VALIDATIONS, *FLAGS)),
    M("trials-begin-where-the-last-ended", "finetune/range_test.py", "p.copy_(self.start[name])", "pass", RATES),
    M("trials-keep-adams-moments", "finetune/range_test.py", "self.trainer.optimizer.state.clear()", "pass", RATES),
    M("trials-with-other-dropout", "finetune/range_test.py", "        torch.set_rng_state(self.random)\n", "", RATES),
    M("recommended-is-the-lowest-trial", "finetune/range_test.py", "(left - right) / (2 *", "0 / (2 *", RATES),
    M("all-rates-are-tried", "finetune/range_test.py", "if above == 2:", "if False:", RATES),
    M("find-lr-takes-other-steps", "train.py", 'given["find_lr"])', "20)", FLAGS),
    M("rate-without-the-width", "finetune/usual_rate.py", "min(1.0, WIDTH / width)", "1.0", RATES),
    M("rate-without-the-tile", "finetune/usual_rate.py", "(inputs / usual) ** power", "1.0", RATES),
    M("rate-without-the-scaling", "finetune/usual_rate.py", "math.sqrt(plain / s)", "1.0", RATES),
    M("usual-rate-in-spite-of-lr", "finetune/checks.py", 'if "lr" not in given:', "if True:", (*RATES, *FLAGS)),
    M("eval-every-ignored", "finetune/loop.py", "self.per_epoch, self.settings.eval_every", "self.per_epoch, None",
      VALIDATIONS),
    M("eval-every-only-in-the-time-left", "finetune/schedule.py", " or every is not None and step % every == 0", "",
      (*VALIDATIONS, *FLAGS)),
    M("patience-ignored", "finetune/loop.py", "bool(self.settings.patience and", "bool(False and",
      (*VALIDATIONS, *FLAGS)),
    M("patience-counts-all-validations", "finetune/loop.py", "self.since_best, note = loss, 0,",
      "self.since_best, note = loss, self.since_best,", VALIDATIONS),
    M("patience-begins-anew-on-resume", "finetune/training_state.py", 'place.get("since_best", 0)', "0", VALIDATIONS),
    M("time-left-without-validations", "finetune/progress.py", " + evaluations * an_evaluation", "", VALIDATIONS),
    M("bar-without-a-terminal", "finetune/progress.py", "disable=None", "disable=False", VALIDATIONS),
    M("clip-ignored", "finetune/loop.py", "self.parameters.values(), self.settings.clip)",
      "self.parameters.values(), math.inf)", LOOP),
    M("micro-batch-by-its-own-targets", "finetune/loop.py",
      "loss, _ = (self.objective or summed_loss)(self.model, part)\n        (loss / n_targets).backward()",
      "loss, own = (self.objective or summed_loss)(self.model, part)\n        (loss / own).backward()", LOOP),
    M("recorded-gradients-overwritten", "finetune/graphs.py", "torch._foreach_add_(", "torch._foreach_copy_(",
      ("tests/finetune/test_graphs.py",)),
    M("recorded-rows-forgotten", "model/recorded_decoding.py", "return recorded.logits()[self.rows]",
      "return recorded.logits()[:len(self.rows)]", ("tests/model/test_recorded_decoding.py",)),
    M("padding-without-a-mask", "model/recorded_decoding.py", "tokens.shape[1] == 1 and mask.all()",
      "tokens.shape[1] == 1", ("tests/model/test_generate.py",)),
    M("recorded-window-ignored", "model/recorded_decoding.py", "self.mask & (distance < window)", "self.mask",
      ("tests/model/test_recorded_decoding.py",)),
    M("micro-batch-ignored", "finetune/loop.py", "split_list(processes.share(examples), self.settings.micro_batch)",
      "split_list(examples, len(examples))", FLAGS),
    M("last-epoch-kept", "finetune/loop.py", "if loss < self.best:", "if True:", LOOP),
    M("validation-with-dropout", "finetune/loop.py", "self.model.eval()\n        try:", "try:", LOOP),
    M("save-every-ignored", "finetune/loop.py", "self.step % every.steps == 0", "self.step % 200 == 0",
      (*LOOP, *FLAGS)),
    M("save-every-minutes-ignored", "finetune/loop.py", "self.clock() - self.saved_at >= 60 * every.minutes", "False",
      LOOP),
    M("signal-in-a-step-does-not-save", "finetune/loop.py", "if self._asked or self._save_is_due()",
      "if self._save_is_due()", SIGNALS),
    M("stopped-validation-is-not-repeated", "finetune/training_state.py", '"to_validate": trainer.to_validate}',
      '"to_validate": False}', SIGNALS),
    M("second-signal-waits", "finetune/stop.py", "os._exit(128 + number)", "pass", SIGNALS),
    M("ignored-signal-is-handled", "finetune/stop.py", "not in (signal.SIG_IGN, None)}", "is not None}", SIGNALS),
    M("lost-stop-keeps-an-answer", "scoring/scores.py", "STOP.check()", "pass", SIGNALS),
    M("gradients-not-added-up", "finetune/together.py", "        processes.add_up(self.buffer)\n", "", SEVERAL),
    M("mean-of-the-processes-means", "finetune/loop.py", "n_targets = sum(len(e.learned) for e in examples)",
      "n_targets = sum(len(e.learned) for e in processes.share(examples)) * processes.size()", SEVERAL),
    M("process-clips-its-own-gradient", "finetune/loop.py", "losses[:], self.agreed = self.shared.add_up(losses)",
      "nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip / 2); "
      "losses[:], self.agreed = self.shared.add_up(losses)", SEVERAL),
    M("gradients-of-the-last-step-stay", "finetune/together.py", "        self.buffer.zero_()\n", "        pass\n",
      SEVERAL),
    M("every-process-takes-all-rows", "model/processes.py", "items[HERE.rank::HERE.size]", "items", PROCESSES),
    M("processes-do-not-agree-to-stop", "finetune/together.py", "asked = STOP.asked or 0", "asked = 0", SEVERAL),
    M("calibration-of-one-process-only", "finetune/gptq_model.py", "        processes.from_previous(block)\n", "",
      SEVERAL),
    M("answers-of-one-process-only", "scoring/scores.py", "in processes.gather(list(new.items())):",
      "in [list(new.items())]:", SEVERAL),
    M("every-process-says-why", "model/processes.py", "HERE.store.add(SPOKEN, 1) == 1", "True", PROCESSES),
    M("others-do-not-wait-for-the-first", "model/processes.py", "    by_first(do)\n    if not", "    if not",
      PROCESSES),
    M("time-out-ignored", "model/processes.py", "os.environ.get(TIMEOUT, str(LIMIT))", "str(LIMIT)", PROCESSES),
    M("traceback-is-shown", "finetune/command.py", "    if debug and speaks:\n", "    if True:\n", COMMAND),
    M("random-state-not-restored", "finetune/training_state.py", 'torch.set_rng_state(file.get_tensor("random"))',
      "pass", LOOP),
    M("best-not-restored", "finetune/training_state.py",
      'trainer.step, trainer.best = place["step"], place["best"]', 'trainer.step = place["step"]', LOOP),
    M("steps-ignored", "finetune/loop.py", "settings.steps or settings.epochs", "settings.epochs", FLAGS),
    M("seed-ignored", "train.py", "torch.manual_seed(config.data.seed)", "torch.manual_seed(0)", FLAGS),
    M("seed-of-the-order-ignored", "finetune/loop.py", "self.settings.batch_size, self.seed, epoch)",
      "self.settings.batch_size, 0, epoch)", FLAGS),
    M("save-dtype-ignored", "train.py",
      "kept = DTYPES[config.training.save_dtype] if config.training.save_dtype else stored_as\n",
      "kept = stored_as\n", FLAGS),
    M("from-scratch-keeps-seed-0", "train.py", "compute.torch_dtype, config.data.seed)", "compute.torch_dtype, 0)",
      FLAGS),
    # ---- rows
    M("end-token-not-learned", "tasks/task.py", "tokenizer, eos_id) + [eos_id], len(prompt))",
      "tokenizer, eos_id), len(prompt))", TASKS),
    M("prompt-learned", "tasks/task.py", "+ [eos_id], len(prompt))", "+ [eos_id], 1)", TASKS),
    M("later-questions-learned", "tasks/batching.py", "at[row, start - 1:end - 1] = False", "pass", OWN),
    M("later-questions-one-late", "tasks/batching.py", "at[row, start - 1:end - 1] = False",
      "at[row, start:end] = False", OWN),
    M("rewritten-turns-learned", "tasks/messages.py", "if not whole.startswith(after[:end]):", "if False:", OWN),
    M("a-users-control-tokens-stay", "model/chat_template.py", "pattern.sub(hide, turn[\"content\"])",
      "turn[\"content\"]", CHAT),
    M("template-without-trim", "model/template_sandbox.py", "trim_blocks=True, ", "", CHAT),
    M("rendering-without-end", "model/template_sandbox.py", "signal.setitimer(signal.ITIMER_REAL, seconds)", "pass",
      CHAT),
    M("two-layouts-in-a-file", "tasks/own_rows.py", "if layout_of(place, row) == layout:", "if True:", OWN),
    M("talk-forgets", "model/talk.py", "[*self.turns, {\"role\": \"user\"", "[{\"role\": \"user\"", CHAT),
    M("talk-never-stops", "model/talk.py", "(*stop_ids, chat.end_id)", "stop_ids", CHAT),
    M("end-of-turn-not-kept", "train.py", "if ends_more:\n", "if False:\n", OWN),
    M("targets-one-early", "tasks/batching.py", "at[row, :e.prompt_length - 1] = False",
      "at[row, :e.prompt_length - 2] = False\n        at[row, len(e.tokens) - 2] = False", (*TASKS, *LOOP)),
    M("validation-rows-among-the-trained", "tasks/task.py", "return list(items[:n]), list(items[n:])",
      "return list(items[:n]), list(items)", TASKS),
    M("max-length-ignored", "finetune/data.py",
      "longest = asked.max_length or min(task.usual_length or LONGEST, positions)", "longest = min(LONGEST, positions)",
      FLAGS),
    M("max-new-tokens-ignored", "finetune/data.py", "max_new_tokens = asked.max_new_tokens or usual",
      "max_new_tokens = usual", (*FLAGS, *RUNS)),
    M("test-limit-ignored", "finetune/data.py", "[:asked.test_limit]", "", (*FLAGS, *RUNS)),
    M("calibration-without-answers", "finetune/data.py", "[e.tokens for e in train[:rows]]",
      "[e.tokens[:e.prompt_length] for e in train[:rows]]", (*CALIBRATION, *FLAGS)),
    M("calibration-rows-ignored", "finetune/data.py", "[e.tokens for e in train[:rows]]", "[e.tokens for e in train]",
      (*CALIBRATION, *FLAGS)),
    M("quantized-layers-ignored", "finetune/quantize.py", "torch.float32), base.quantized_layers)\n    errors",
      'torch.float32), "all")\n    errors', (*FLAGS, *RUNS)),
    M("act-order-ignored", "finetune/quantize.py", "spec.new_quantizer(), spec.act_order,",
      "spec.new_quantizer(), False,", (*FLAGS, *CALIBRATION)),
    M("double-quant-ignored", "quant/spec.py", "double_quant=self.double_quant)", "double_quant=False)",
      (*FLAGS, "tests/quant/test_spec.py")),
    M("operators-ignored", "adapters/qablora.py", "OPERATORS[operators]", 'OPERATORS["avgpool"]', (*ADAPTERS, *FLAGS)),
    M("targets-ignored", "finetune/adapted_model.py",
      "replace_layers(model, linear_names(model, config.adapter.targets), adapt)",
      'replace_layers(model, linear_names(model, "all"), adapt)', FLAGS),
    M("eval-batch-size-ignored", "scoring/score_run.py", "Scoring(data, config.evaluation.eval_batch_size,",
      "Scoring(data, 128,", FLAGS),
    M("dtype-ignored", "finetune/config.py", "return DTYPES[self.dtype]", "return torch.float32", (*FLAGS, *CONFIG)),
    M("protocol-ignored", "finetune/data.py", "return kind.protocols[asked.protocol]()", "return kind()",
      (*FLAGS, "tests/tasks/test_benchmarks.py")),
    # ---- scores
    M("mmlu-categories-swapped", "tasks/mmlu.py", '    "STEM": ("abstract', '    "social": ("abstract',
      ("tests/tasks/test_benchmarks.py", "tests/tasks/test_goldens.py")),
    M("mmlu-subject-in-another-category", "tasks/mmlu.py",
      '"prehistory professional_law world_religions"),\n    "STEM": ("',
      '"prehistory world_religions"),\n    "STEM": ("professional_law ',
      ("tests/tasks/test_benchmarks.py", "tests/tasks/test_goldens.py")),
    M("mmlu-shots-in-reverse", "tasks/mmlu.py", "*shots[question.subject][:SHOTS])",
      "*shots[question.subject][:SHOTS][::-1])", ("tests/tasks/test_benchmarks.py", "tests/tasks/test_goldens.py")),
    M("mmlu-last-shots", "tasks/mmlu.py", "*shots[question.subject][:SHOTS])", "*shots[question.subject][-SHOTS:])",
      ("tests/tasks/test_benchmarks.py", "tests/tasks/test_goldens.py")),
    M("mmlu-error-not-pooled", "tasks/mmlu.py", "pooled_error([m[name] for m in marks], subjects)",
      'pooled_error([m[name] for m in marks], [""] * len(subjects))', ("tests/tasks",)),
    M("rouge-with-stemming", "tasks/free_text.py", "use_stemmer=False", "use_stemmer=True", TASKS),
    M("stop-text-ignored", "tasks/generative.py", "before(tokenizer.decode(ids), self.stop_texts).strip()",
      "tokenizer.decode(ids).strip()", (*TASKS, *SCORING)),
    M("acc-norm-by-bytes", "tasks/choices.py", "value / len(choice) for", "value / len(choice.encode()) for", TASKS),
    M("last-of-equals-wins", "tasks/choices.py", "max(range(len(values)), key=values.__getitem__)",
      "max(reversed(range(len(values))), key=values.__getitem__)", TASKS),
    M("gsm8k-first-number", "tasks/gsm8k.py", 'return found[-1] if found else ""', 'return found[0] if found else ""',
      TASKS),
    M("gsm8k-shots-of-another-seed", "tasks/gsm8k.py", "FEWSHOT_SEED = 1234", "FEWSHOT_SEED = 1235", TASKS),
    M("macro-f1-over-written-classes", "tasks/labels.py", "for c in n_gold) / len(n_gold)",
      "for c in n_gold) / len(n_gold | n_written)", TASKS),
    M("best-rate-is-the-worst", "experiments/cells/plan.py", "done[min(losses, key=losses.__getitem__)]",
      "done[max(losses, key=losses.__getitem__)]", CELLS),
    M("best-rate-diverged", "experiments/cells/plan.py",
      "(loss := done[name][\"training\"][\"best_validation_loss\"]) is not None",
      "(loss := done[name][\"training\"][\"best_validation_loss\"] or 0.0) is not None", CELLS),
    M("sixteen-bits-count-as-k", "experiments/claims/method_rows.py", " and key != \"merged-16bit\"", "", CELLS),
    M("seeds-of-one-row-only", "experiments/claims/method_rows.py",
      "a.states(which).keys() & b.states(which).keys()", "a.states(which).keys() | b.states(which).keys()", CELLS),
    M("rates-of-an-earlier-plan", "experiments/claims/method_rows.py",
      "if any(math.isclose(facts[\"tags\"][\"factor\"], factor) for factor in self.factors)]", "]", CELLS),
    M("errors-over-seeds-unseen", "experiments/claims/method_limits.py", "< ERRORS * error", "< 0 * error", CELLS),
    M("error-of-one-seed", "experiments/claims/method_limits.py", "scores)) / len(seeds))", "scores)))", CELLS),
    M("edge-is-not-said", "experiments/claims/method_rows.py", "in (min(values), max(values))",
      "in (min(values),)", CELLS),
    M("overview-gains-by-chance", "experiments/claims/overview.py",
      "gains = [one for one in judged if one.verdict == CONFIRMED]",
      "gains = [one for one in judged if one.comparison.difference > 0]", OVERVIEW),
    M("overview-rounding-that-costs-least", "experiments/claims/overview.py",
      "worst = min((bits for bits", "worst = max((bits for bits", OVERVIEW),
    M("overview-names-of-tasks-on-each-other", "experiments/claims/overview.py", "below + least)",
      "below)", OVERVIEW),
    M("slower-gets-more-steps", "experiments/plans/methods.py", "STEPS / ratio", "STEPS * ratio", CELLS),
    M("mcnemar-one-sided", "tasks/significance.py", "min(1.0, 2 * tail / 2 ** n)", "min(1.0, tail / 2 ** n)", TASKS),
    M("bootstrap-not-paired", "tasks/significance.py", "mean_test(a - b, seed)",
      "mean_test(a - np.random.default_rng(0).permutation(b), seed)", TASKS),
    M("standard-error-by-n", "tasks/task.py", "statistics.stdev(values) / len(values) ** 0.5",
      "statistics.pstdev(values) / len(values) ** 0.5", TASKS),
    M("first-token-of-a-window-counted", "tasks/perplexity.py", "scored, value = len(row.tokens) - 1,",
      "scored, value = len(row.tokens),", SCORING),
    M("state-key-without-how", "scoring/state.py", 'f"{self.bits}bit" if self.bits else "", how)))',
      'f"{self.bits}bit" if self.bits else "")))', SCORING),
    M("answers-of-other-flags-taken-up", "scoring/score_run.py",
      '{f.name: str(value) for f, value in flat(config) if f.metadata.get("answers", True)}', "{}", SCORING),
    # ---- provenance
    M("resume-with-other-validation-rows", "finetune/data.py", 'for part in ("train", "validation"):',
      'for part in ("train",):', RESUME),
    M("resume-on-another-base", "train.py", "        base_of(run)\n", "        pass\n", RESUME),
    M("resume-with-another-calibration", "train.py", "        check_calibration(data, run)\n", "        pass\n",
      RESUME),
    M("base-of-a-run-not-checked", "finetune/source.py", "return base_of(run).load(",
      "return Source(config.base.model).load(", RUNS),
    M("adapter-run-as-base-in-float32", "finetune/source.py", "sixteen_bit_type(model), lost", "torch.float32, lost",
      RESUME),
    M("sixteen-bits-of-float32-are-float16", "finetune/adapted_model.py",
      "(torch.float16, torch.bfloat16) else torch.bfloat16", "(torch.float16, torch.bfloat16) else torch.float16",
      (*RUNS, *RESUME, *EXPORT)),
    M("lora-alpha-not-saved", "finetune/config_json.py", "written(f, getattr(config, f.name)) for f in fields(config)}",
      'written(f, getattr(config, f.name)) for f in fields(config) if f.name != "lora_alpha"}', CONFIG),
    M("format-1-drops-act-order", "finetune/config_json.py", 'by_gptq and flags.get("act_order", False)', "False",
      CONFIG),
    M("hub-revision-not-pinned", "train.py", "model=pinned(config.base.model)", "model=config.base.model", HUB),
    M("codes-of-a-run-quantized-again", "train.py",
      "if config.base.quantization and not processes.by_first(run.base_file.is_file):",
      "if config.base.quantization:", RESUME),
    # ---- exports
    M("peft-without-its-chat-template", "interop/peft.py", "        write_tokenizer(self.trained, place)\n", "",
      ("tests/interop/test_export_tokenizer.py",)),
    M("peft-dropout-left-out", "interop/peft.py", "self.trained.run.config.adapter.dropout", "0.0", (*PEFT, *FLAGS)),
    M("peft-alpha-is-the-scaling", "interop/peft.py", "scaling * self.divisor(len(A))", "scaling", PEFT),
    M("export-rounds-toward-0", "interop/hugging_face.py", "rounded = tensor.to(dtype)",
      "rounded = (tensor.float() * (1 - torch.finfo(dtype).eps / 4)).to(dtype)", EXPORT),
    M("export-written-and-expected-round-toward-0", "interop/trained.py", "return module.weight().detach()",
      "return module.weight().detach() * (1 - 2 ** -10)", (*EXPORT, *GGUF)),
    M("gguf-m-rounded-down", "quant/gguf_blocks.py", "(offset.double() + scale.double() * low.double()).half()",
      "torch.nextafter((offset.double() + scale.double() * low.double()).half(), "
      "torch.tensor(-torch.inf, dtype=torch.half))", GGUF),
    M("gguf-m-of-the-unrounded-scale", "quant/gguf_blocks.py",
      "(replace(grid, scale=scale) if isinstance(grid.offset, ZeroPoints) else grid).factors()", "grid.factors()",
      GGUF),
    M("gguf-lowest-level-forgotten", "quant/gguf_blocks.py", "offset.double() + scale.double() * low.double()",
      "offset.double()", GGUF),
    M("gguf-heads-of-k-are-those-of-q", "model/gguf_architectures.py", '"k_proj": config.num_key_value_heads}',
      '"k_proj": config.num_attention_heads}',
      ("tests/interop/test_export_gguf.py", "tests/model/test_gguf_reader.py")),
    M("card-tells-directories", "interop/model_card.py", 'return ABSOLUTE.sub("", text)', "return text", CARD),
    M("card-forgets-the-licence", "interop/model_card.py", "dict(base.license) if base else {}", "{}", CARD),
    M("modelfile-doubles-the-begin-token", "interop/modelfile.py", 'begin = "" if begins else names["bos_token"]',
      'begin = names["bos_token"]', CARD),
    M("modelfile-tries-no-system-turn", "interop/modelfile.py", 'if "system" in form.turns:', "if False:", CARD),
    M("push-is-public", "interop/push.py", "private=not public", "private=public", CARD),
    M("push-names-the-whole-base", "interop/push.py", '= base.name\n', "= str(base)\n", CARD),
    M("gguf-template-left-out", "interop/gguf_tokenizer_writer.py", 'return {"tokenizer.chat_template": stated}',
      "return {}", TOKENIZER),
    M("template-file-left-behind", "model/tokenizer_files.py", ', "chat_template.jinja", "generation_config.json")',
      ', "generation_config.json")', TOKENIZER),
    # ---- further ones, of every room
    M("judge-does-not-swap-the-sides", "judging/verdict.py", "better(b_first[1], b_first[0])", "better(*b_first)",
      JUDGING),
    M("judged-means-of-the-wrong-side", "judging/judgements.py",
      'judgement["scores"][0][0], judgement["scores"][1][1])', 'judgement["scores"][0][0], judgement["scores"][1][0])',
      JUDGING),
    M("malformed-answers-count-as-ties", "judging/verdict.py", "return MALFORMED\n", "return TIE\n", JUDGING),
    M("other-rows-compared", "scoring/predictions.py", "if a.rows != b.rows:", "if len(a.rows) != len(b.rows):",
      SCORING),
    M("restored-base-is-the-runs-own", "scoring/restore.py", "model, gptq_report = load_base(Source(base.model), base,",
      "model, gptq_report = load_base(Source(base.model), config.base,", RESTORE),
    M("ratio-adds-norms-not-squares", "adapters/restoration.py", "** 2 for c in changes) ** 0.5", "for c in changes)",
      ADAPTERS),
    M("continuation-one-place-late", "model/likelihood.py", "first = len(pair.context) - 1 - trunk.lengths[row]",
      "first = min(len(pair.context) - trunk.lengths[row], len(outputs[row]) - len(pair.continuation))", LIKELY),
    M("ends-after-other-stems", "model/likelihood.py", "parents = [trunk.parents[i] for i in rows]",
      "parents = trunk.parents[:len(rows)]", LIKELY),
    M("pooling-sums", "adapters/lam.py", "x.unflatten(-1, (-1, lam_in)).mean(-1)",
      "x.unflatten(-1, (-1, lam_in)).sum(-1)", ADAPTERS),
    M("outputs-tiled-not-repeated", "adapters/lam.py", "y.repeat_interleave(lam_out, dim=-1)",
      "torch.cat([y] * lam_out, -1)", ADAPTERS),
    M("gguf-halves-swapped", "quant/gguf_blocks.py", "return low | high << 4", "return high | low << 4", GGUF),
    M("gguf-high-bits-from-the-top", "quant/gguf_blocks.py", "bits[..., None] >> torch.arange(8,",
      "bits[..., None] >> 7 - torch.arange(8,", GGUF),
    M("gguf-q5-k-high-bits-left-out", "quant/gguf_superblocks.py", "(halves(stored[..., 48:]) | high << 4)",
      "halves(stored[..., 48:])", ("tests/quant/test_gguf_superblocks.py",)),
    M("nf-outermost-not-rounded", "quant/normal_float.py", "round(1 - (1 / 30 + 1 / 32) / 2, 7)",
      "1 - (1 / 30 + 1 / 32) / 2", QUANT),
    M("absmax-of-the-paper", "quant/absmax.py", "block_absmax(blocks) / top,",
      "block_absmax(blocks) / (2 ** self.bits - 1),", QUANT),
    M("dead-inputs-keep-their-weights", "quant/gptq.py", "    w[:, H.diagonal() == 0] = 0\n", "", QUANT),
    M("dead-inputs-count-in-the-damping", "quant/gptq.py", "H.diagonal()[H.diagonal() > 0].double().mean()",
      "H.diagonal().double().mean()", QUANT),
    M("adapters-not-counted-in-bits", "finetune/size.py", "8 * stored_bytes(modules)", "8 * stored_bytes(bases)", RUNS),
    M("shared-tensors-counted-twice", "quant/linear.py", "tensors = {id(t): t for module in modules for t in",
      "tensors = {(id(t), id(module)): t for module in modules for t in",
      ("tests/quant", "tests/adapters", "tests/scripts/test_cli.py")),
    M("file-renamed-before-it-is-flushed", "model/durable.py", "                flush(file.fileno())\n", "", DURABLE),
    M("names-not-flushed", "model/durable.py", "            flush_directory(path.parent)\n        except",
      "        except", DURABLE),
    M("temporary-file-follows-a-link", "model/durable.py", "os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW",
      "os.O_RDWR | os.O_CREAT", DURABLE),
    M("file-of-a-live-writer-swept", "model/durable.py", " if lock(descriptor):", " if True:", DURABLE),
    M("leftovers-stay", "model/durable.py", " if lock(descriptor):", " if False:", DURABLE),
    M("short-write-taken-for-whole", "model/durable.py", " left = left[n:]\n", " break\n", DURABLE),
    M("part-of-a-line-stays", "model/durable.py", " os.ftruncate(descriptor, before)\n", " pass\n", DURABLE),
    M("directory-replaced-in-two-steps", "model/published.py", "elif not durable.exchange(made, target):", "else:",
      DURABLE),
    M("old-directory-not-found-again", "model/published.py", "        recover(target)\n", "", DURABLE),
    M("unreadable-state-replaced", "finetune/state_files.py", "            if error.errno in UNREADABLE:",
      "            return str(error)\n            if error.errno in UNREADABLE:", CHECKSUMS),
    M("damaged-state-not-set-aside", "finetune/state_files.py", "move_file(self.newest, self.damaged)",
      "self.newest.unlink()", CHECKSUMS),
    M("tensor-of-the-base-not-found", "model/weight_sums.py", "if self.marks.get(file, {}).get(name) != digits:",
      "if False:", ("tests/model/test_weight_sums.py",)),
    M("another-adapter-taken", "finetune/resuming.py", "        raise ValueError(another)\n", "        pass\n", STANDS),
    M("damaged-tensor-read", "model/tensor_files.py", "!= self._sums.get(name):", "!= found:", CHECKSUMS),
    M("damaged-header-read", "model/tensor_files.py", "!= whole:", "!= found:", CHECKSUMS),
    M("damaged-line-read", "model/journal.py", "!= stated:", "!= found:", CHECKSUMS),
    M("changed-record-read", "model/files.py", "(found := seal(value)) != stated:", "(found := seal(value)) != found:",
      CHECKSUMS),
    M("changed-tokenizer-read", "model/tokenizer.py", "    check_sums(tokenizer_files(directory))\n", "", CHECKSUMS),
    M("state-before-not-kept", "finetune/state_files.py", "metadata, keep=self.previous)", "metadata)", CHECKSUMS),
    M("log-not-flushed-before-the-state", "finetune/loop.py", "        self.flush_log()\n", "", CHECKSUMS),
    M("metrics-of-repeated-steps-kept", "finetune/run.py", 'record["step"] <= step', "True",
      FLAGS),
    M("padding-is-calibrated-on", "finetune/gptq_model.py", "use(inputs[0][real.to(inputs[0].device)])",
      "hessian.add(inputs[0].flatten(0, 1))", CALIBRATION),
    M("calibrated-on-the-dense-layers-before", "finetune/gptq_model.py",
      "hessian = collect(layer, half, targets[0], batches)\n",
      "hessian = collect(layer, half, targets[0], batches[:1])\n", CALIBRATION),
    M("temperature-after-top-p", "model/generate.py",
      "p = nucleus(tempered(logits.cpu(), self.sampling.temperature), self.sampling.top_p)",
      "p = nucleus(logits.cpu().double().softmax(-1), self.sampling.top_p) ** (1 / " "self.sampling.temperature)",
      GENERATE),
    M("template-version-not-in-the-key", "scoring/score_run.py",
      '"template_version": data.task.template_version,\n            "data"', '"data"', SCORING),
    M("micro-batch-not-resolved", "finetune/resolve.py", 'micro_batch=min(given.get("micro_batch", rows), rows)',
      "micro_batch=rows", (*CONFIG, *FLAGS)),
    # ---- what rounding takes
    M("results-of-a-run-not-measured", "interop/trained.py", 'r"merged|requantized|restored-.+"', 'r"merged"', LOST),
    M("merged-measured-beside-itself", "interop/before.py", "return of_adapters(run, run)",
      "return of_adapters(run, model)", LOST),
    M("restored-measured-beside-the-run", "interop/before.py", "else of_restored(run, model)",
      "else of_adapters(run, model)", LOST),
    M("restored-base-keeps-the-adapter", "interop/before.py", 'W - adapter_delta(run, f"{name}.weight")', "W", LOST),
    M("full-delta-is-the-whole-weight", "interop/before.py", " - dense_tensor(base, name).float()", "", LOST),
    M("changed-base-is-measured-beside", "interop/before.py", "check_fingerprint(base, trained.run)", "pass", LOST),
    M("before-training-is-as-trained", "interop/before.py", "layer.forward = layer.base.forward",
      "layer.forward = layer.forward", LOST),
    M("loss-exported-is-as-trained", "interop/lost.py", '"loss_exported": loss_of(again, examples)',
      '"loss_exported": loss_of(training.trained, examples)', LOST),
    M("lost-gain-is-a-share-of-the-loss", "interop/lost.py", "- self.loss_trained) / gained",
      "- self.loss_trained) / self.loss_before", LOST),
    M("lost-gain-is-not-warned-of", "interop/lost.py", " and (self.loss_lost or 0.0) < MUCH", "", LOST),
    M("losses-on-changed-rows", "interop/lost.py", "        check_data(data, run)\n", "", LOST),
    M("lossy-result-not-said", "interop/lost.py", "exact - dense_tensor(training.trained, name)", "exact - exact",
      LOST),
    M("loss-in-saving-not-measured", "finetune/saving.py", "source is not None and kept != torch.float32", "False",
      LOST),
    M("saving-measured-beside-nothing", "finetune/saving.py", "exact - base.get_parameter(name).to(exact.dtype)",
      "exact", LOST),
    M("base-that-is-a-run-loses-in-silence", "finetune/source.py", "if (lost.share or 0.0) >= MUCH:", "if False:",
      LOST),
    M("zeros-of-peqa-are-not-zero", "quant/grid.py", "if isinstance(grid.offset, ZeroPoints) and", "if False and",
      ("tests/adapters/test_peqa.py",)),
    # ---- answers of a server, and SQL
    M("answers-without-a-largest-size", "judging/endpoint.py", "if len(reply.body) > LARGEST_ANSWER:", "if False:",
      JUDGING),
    M("control-characters-are-shown", "judging/endpoint.py", "return escaped(", "return (", JUDGING),
    M("deep-json-is-a-traceback", "judging/endpoint.py", "TypeError, RecursionError", "TypeError",
      JUDGING),
    M("sql-without-a-longest-text", "tasks/sql_create_context.py", "if max(len(query), len(context)) > LONGEST_SQL:",
      "if False:", ("tests/tasks/test_text_tasks.py",)),
    M("sql-without-a-count-of-checks", "tasks/sql_create_context.py", " and left >= 0", "",
      ("tests/tasks/test_text_tasks.py",)),
    # ---- what is compared
    M("two-states-share-a-key", "scoring/scores.py", "    scoring.begin(state)\n", "", SCORING),
    M("other-protocols-compared", "scoring/predictions.py", "differing(*ways)", '""', SCORING),
    M("other-choices-compared", "scoring/predictions.py", 'for name in ("choices", "contexts")', "for name in ()",
      SCORING),
    M("cut-prompts-not-said", "scoring/predictions.py", "if other.cut != first.cut:", "if False:", SCORING),
    M("base-that-model-names-not-checked", "eval.py", "check_named_base(run, config)", "pass", RUNS[:1]),
    M("other-test-rows-side-by-side", "eval.py", "if asked != first[1]:", "if False:", RUNS[:1]),
    M("answer-at-the-limit-not-said", "sample.py", "len(answer) == max_new_tokens", "len(answer) > max_new_tokens",
      SAMPLE[:1]),
    M("letters-of-an-end-token-not-said", "sample.py", 'note_tokens("--prompt", [Example(text, "") for text in texts]',
      'note_tokens("--prompt", []', SAMPLE[:1]),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="those whose name holds this text")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="run so many at a time (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcomes into this file as well")
    parser.add_argument("--check", action="store_true", help="only check that each text to replace is found once")
    parser.add_argument("--list", action="store_true", help="only list the names")
    asked = parser.parse_args()
    chosen = [m for m in MUTANTS if not asked.only or any(text in m.name for text in asked.only)]
    if wrong := problems(chosen):
        print("\n".join(wrong), file=sys.stderr)
        sys.exit(2)
    if asked.list or asked.check:
        return print("\n".join(m.name for m in chosen) if asked.list else f"{len(chosen)} mutants apply")
    outcomes = run_all(chosen, asked.jobs, asked.json)
    survivors = [o.name for o in outcomes if o.result == "SURVIVED"]
    print(f"{len(outcomes)} mutants, {len(outcomes) - len(survivors)} noticed"
          + (f", {len(survivors)} survived: {', '.join(survivors)}" if survivors else ""))
    sys.exit(1 if survivors else 0)


def problems(mutants: list[Mutant]) -> list[str]:
    """A line for each mutant that does not apply, and for a name that is used twice."""
    lines = [] if mutants else ["no mutant has such a name"]
    if len({m.name for m in mutants}) < len(mutants):
        lines.append("two mutants have one name")
    for m in mutants:
        found = (ROOT / m.file).read_text(encoding="utf-8").count(m.old) if (ROOT / m.file).is_file() else 0
        if found != 1:
            lines.append(f"{m.name}: {m.old!r} is found {found} times in {m.file}, not once")
        lines += [f"{m.name}: no test file {test}" for test in m.tests if not (ROOT / test).exists()]
    return lines


def run_all(mutants: list[Mutant], jobs: int, json_file: Path | None) -> list[Outcome]:
    """The outcomes in the order of the list. Each worker has a copy of the tree."""
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory, ThreadPoolExecutor(jobs) as pool:
        trees: Queue[Path] = Queue()
        for worker in range(jobs):
            trees.put(Path(shutil.copytree(ROOT, Path(directory) / str(worker), ignore=LEFT_OUT)))

        def work(mutant: Mutant) -> Outcome:
            tree = trees.get()
            try:
                return run_one(mutant, tree)
            finally:
                trees.put(tree)
        print(f"{'mutant':<46} {'result':<9} {'s':>5}  noticed by")
        for outcome in pool.map(work, mutants):
            outcomes[outcome.name] = outcome
            print(f"{outcome.name:<46} {outcome.result:<9} {outcome.seconds:>5.0f}  {outcome.by}", flush=True)
            if json_file:
                json_file.write_text(json.dumps([asdict(o) for o in outcomes.values()], indent=1), encoding="utf-8")
    return list(outcomes.values())


def run_one(mutant: Mutant, tree: Path) -> Outcome:
    """Changes the copy, runs the tests there, and changes it back."""
    path, start = tree / mutant.file, time.perf_counter()
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole.replace(mutant.old, mutant.new), encoding="utf-8")
    # No byte code is kept: two versions of a file may have one size and one time.
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(tree)}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header",
               "--tb=no", *mutant.tests]
    try:
        done = subprocess.run(command, cwd=tree, env=settings, capture_output=True, text=True, timeout=TIMEOUT)
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        result, by = ("SURVIVED", "") if done.returncode == 0 else ("noticed", " ".join(failed[:1])[:110])
        if done.returncode not in (0, 1, 2):
            raise RuntimeError(f"{mutant.name}: pytest ended with {done.returncode}: "
                               f"{done.stdout[-500:]}{done.stderr[-500:]}")
    except subprocess.TimeoutExpired:
        result, by = "timeout", ""
    finally:
        path.write_text(whole, encoding="utf-8")
    return Outcome(mutant.name, mutant.file, result, time.perf_counter() - start, by)


if __name__ == "__main__":
    main()
