"""Post-LoRA Restoration of a run (plr.txt Sec. 2): its adapter, beside its own base at other widths.

    python eval.py RUN --restore 3 4 8 16

Each l-bit base is made of the checkpoint that the run was trained from, one layer at a time, when no other base is in memory; the
adapter comes from the run's own file. The run's k-bit layers are read beside it one by one, to say how far the base has moved.
"""
import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from adapters import ADAPTERS
from adapters.adapted import AdaptedLinear, dense_weight
from adapters.merge import MergeRefused, check_adapter_merges
from adapters.restoration import LayerChange, check_restores, layer_change, overall_ratio
from finetune.arguments import flag, resolve_quantizer
from finetune.checks import check_quantization
from finetune.data import Job
from finetune.methods import GPTQ, METHODS
from finetune.models import (Source, attach_adapters, check_fingerprint, linear_names, load_adapter, merge_best, new_adapter,
                             save_beside, sixteen_bit_type)
from finetune.quantize import load_base
from finetune.run import Run
from scoring.table import Row, float32_logits, largest_difference, optional_cell, score_state, stored_bytes
from model.checkpoint import load_config, stored_layers, weight_files
from model.files import read_json, write_json
from model.llama import Llama
from quant import QUANTIZERS

SHOWN = 3  # layers printed


@dataclass(frozen=True)
class Restoration:
    """What eval.py is asked for: widths, and how a base of fewer than 16 bits is made."""
    widths: Sequence[int]
    quantizer: str | None = None
    grid: str | None = None
    block: str | None = None
    merge: bool = False

    def base(self, args: argparse.Namespace, bits: int) -> argparse.Namespace:
        """The flags of an l-bit base. What is not asked for is as the run has it; a run on a 16-bit base has no quantizer of its own,
        and gets GPTQ, as in plr.txt Sec. 3.1. Raises ValueError for what does not go together."""
        base = argparse.Namespace(**{**vars(args), "bits": bits})
        if bits == 16:
            base.quantizer = "none"
            return base
        own = args.quantizer if args.quantizer != "none" else GPTQ
        base.quantizer = self.quantizer or own
        base.grid = self.grid or (args.grid if base.quantizer == own else None)
        base.block = self.block or (str(args.block) if args.block else None)
        base.double_quant = False
        try:
            resolve_quantizer(base, {}, own)
            base.double_quant = args.double_quant and QUANTIZERS[base.grid or base.quantizer].usual_storage == torch.float32
        except ValueError as error:
            raise ValueError(f"--restore {bits}: {error} (see --restore-quantizer, --restore-grid, --restore-block)") from None
        return base


def restored_state(args: argparse.Namespace, base: argparse.Namespace) -> str:
    """`restored, 8 bits`, with what is not as the run has it. plr.txt studies l > k; the others are allowed, and say so."""
    how = []
    if base.bits < 16 and (base.quantizer, base.grid, base.block) != (args.quantizer, args.grid, args.block):
        how.append(f"{base.quantizer}{f' on {base.grid}' if base.grid else ''} {base.block}")
    if base.bits < 16 and args.double_quant and not base.double_quant:
        how.append("scales not double-quantized")
    if base.bits <= args.bits:
        how.append("the width it was trained on" if base.bits == args.bits else f"below the {args.bits} it was trained on")
    return f"restored, {base.bits} bits" + (f" ({', '.join(how)})" if how else "")


def add_restore_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--restore", type=int, nargs="+", metavar="BITS", help="Post-LoRA Restoration: the run's adapter on its base at "
                        "these widths, 16 for the original weights")
    parser.add_argument("--restore-quantizer", choices=(*QUANTIZERS, GPTQ), help="default: the run's own; gptq for a run on a 16-bit base")
    parser.add_argument("--restore-grid", choices=QUANTIZERS, help="whose grid gptq rounds to; default: the run's own")
    parser.add_argument("--restore-block", help="n_in x n_out; default: the run's own")
    parser.add_argument("--merge", action="store_true", help="with --restore: fold the adapter into the restored base's offsets, exactly, or "
                        "at 16 bits into its weights, and save that model in RUN/restored-BITSbit; or refuse before anything is loaded")


RESTORE_FLAGS = ("restore", "restore_quantizer", "restore_grid", "restore_block", "merge")


def asked_for(given: dict) -> Restoration | None:
    """The flags of `add_restore_flags`, taken out of `given`. Raises ValueError for those that say nothing without --restore."""
    asked = {name.removeprefix("restore_"): given.pop(name) for name in RESTORE_FLAGS if name in given}
    widths = asked.pop("restore", None)
    if widths is None:
        if asked:
            raise ValueError(f"{', '.join(flag(name if name == 'merge' else f'restore_{name}') for name in asked)} goes with --restore only")
        return None
    if all(bits == 16 for bits in widths) and (useless := [name for name in asked if name != "merge"]):
        raise ValueError(f"{', '.join(flag(f'restore_{name}') for name in useless)} goes with a width below 16 only")
    return Restoration(tuple(dict.fromkeys(widths)), **asked)


def check_restoration(run: Run, args: argparse.Namespace, saved: dict, restoration: Restoration) -> list[argparse.Namespace]:
    """The flags of every base asked for, after all that can be refused from headers: adapters that do not transfer, a base that is
    not the run's or has no original, bits, blocks, and merges. Raises ValueError."""
    kind = METHODS[args.method].adapter
    if kind is None:
        raise ValueError(f"--restore puts another base under an adapter, and {run.path} has none (--method {args.method})")
    check_restores(ADAPTERS[kind])
    bases = [restoration.base(args, bits) for bits in restoration.widths]
    source = Source(args.model)
    check_fingerprint(source, saved)
    if quantized := source.quantized():
        name, stated = next(iter(quantized.items()))
        raise ValueError(f"{source.path}, which {run.path} was trained from, is codes itself ({name}: {stated['bits']} bits): the weights "
                         f"that they were made from are not known, so there is no other width to restore it to")
    for base in bases:
        model = check_quantization(source, base)
        if restoration.merge and base.bits < 16:
            check_merges(model, args, base)
    return bases


def check_merges(model: Llama, args: argparse.Namespace, base: argparse.Namespace) -> None:
    """Raises MergeRefused, with the rule and the sizes, where an adapter does not merge into the blocks of `base`. `model` has no
    memory for its weights."""
    for name in linear_names(model, args.targets):
        layer = model.get_submodule(name)
        with torch.device("meta"):
            adapter = new_adapter(args, layer.out_features, layer.in_features, base.block)
        try:
            check_adapter_merges(adapter, base.block.in_layer(layer.in_features), name)
        except MergeRefused as error:
            raise MergeRefused(f"--merge with --restore {base.bits}: {error}") from None


def restored_states(run: Run, args: argparse.Namespace, job: Job, restoration: Restoration | None) -> list[Row]:
    """One row a width and, with --merge, one more for the merged model. Each model is gone before the next one is made."""
    widths = restoration.widths if restoration else ()
    return [row for bits in widths for row in states_at(run, args, job, restoration.base(args, bits), restoration.merge)]


def states_at(run: Run, args: argparse.Namespace, job: Job, base: argparse.Namespace, merge: bool) -> list[Row]:
    state = restored_state(args, base)
    model, report = load_base(Source(args.model), base, job)
    storage = sixteen_bit_type(model)
    attach_adapters(model, args)
    load_adapter(model, run)
    changes = base_changes(model, run, args)
    show_changes(state, changes)
    keep_report(run, state, changes, report)
    rows = [score_state(state, model, job, args.eval_batch_size)]
    rows[0].restoration_ratio = overall_ratio(changes)
    if merge:
        before = float32_logits(model, job.validation)
        how, _ = merge_best(model, storage)
        rows.append(score_state(f"{state}, {how}", model, job, args.eval_batch_size))
        rows[1].logit_difference = largest_difference(before, float32_logits(model, job.validation))
        save_beside(model, run, run.restored(base.bits, "" if base.quantizer in (args.quantizer, "none") else f"-{base.quantizer}"))
    return rows


@torch.no_grad()
def base_changes(model: Llama, run: Run, args: argparse.Namespace) -> list[LayerChange]:
    """||W_l - W_k|| and ||delta_W|| of each layer that `model`, the restored one, or the run has as codes."""
    changes = []
    for name, trained_on in run_layers(run, args, linear_names(model, args.quantized_layers)):
        layer = model.get_submodule(name)
        adapted = isinstance(layer, AdaptedLinear)
        W_l, W_k = (dense_weight(base, torch.float32) for base in (layer.base if adapted else layer, trained_on))
        changes.append(layer_change(name, W_l, W_k, layer.adapter if adapted else None, stored_bytes([layer])))
    return changes


def run_layers(run: Run, args: argparse.Namespace, names: list[str]) -> Iterator[tuple[str, nn.Module]]:
    """The named layers of the base that the run was trained on, one in memory at a time. None of a 16-bit base that is itself a run
    with an adapter: it stands on no disk, and merging it would put a second base into memory."""
    source = Source(args.model)
    if run.base_file.is_file():
        return stored_layers([run.base_file], load_config(run.path), names, args.device)
    if source.is_adapter_run:
        return iter(())
    return stored_layers(weight_files(source.path), source.config, names, args.device)


def show_changes(state: str, changes: list[LayerChange]) -> None:
    if not changes:
        return print(f"{state}: no ||W_l - W_k||, since the base that the run was trained on is itself a run that has to be merged first")
    adapted = sorted((c for c in changes if c.ratio is not None), key=lambda c: c.ratio, reverse=True)
    print(f"{state}: ||W_l - W_k|| / ||delta_W|| is {optional_cell(overall_ratio(changes), '.3f')} over all layers; largest: "
          + ", ".join(f"{c.layer} {c.ratio:.3f}" for c in adapted[:SHOWN]))


def keep_report(run: Run, state: str, changes: list[LayerChange], gptq_report: dict | None) -> None:
    """Into `restoration.json`, beside those of other widths."""
    kept = read_json(run.restoration_file) if run.restoration_file.is_file() else {}
    kept[state] = {"ratio": overall_ratio(changes), "layers": [{**asdict(c), "ratio": c.ratio, "bits_per_weight": c.bits_per_weight} for c in changes], "gptq": gptq_report}
    write_json(run.restoration_file, kept)
