"""Post-LoRA Restoration of a run (Kanda & Hatano, Sec. 2): its adapter beside its own base at other widths.

    python eval.py RUN --restore 3 4 8 16

Each l-bit base is made from the checkpoint that the run was trained from, one layer at a time, while no other base is
in memory. The adapter comes from the run's own file. The run's k-bit layers are then read beside it one by one, to
measure how far the base has moved. """
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import nn

from adapters import ADAPTERS
from adapters.adapted import AdaptedLinear, dense_weight
from adapters.restoration import LayerChange, check_restores, layer_change, overall_ratio
from adapters.rounding import TrainingLost
from finetune.adapted_model import (
    attach_adapters,
    linear_names,
    load_adapter,
    merge_best,
    save_beside,
    sixteen_bit_type,
)
from finetune.checks import check_merges, planned_base, put_adapters
from finetune.config import BaseConfig, RunConfig
from finetune.quantize import load_base
from finetune.run import Run
from finetune.source import Source, check_fingerprint
from model import processes
from model.checkpoint import stored_layers
from model.directory import load_config, weight_files
from model.files import read_json, write_record
from model.llama import Llama
from quant import QUANTIZERS
from quant.linear import stored_bytes
from quant.spec import GPTQ, QuantSpec
from scoring.scores import Row, Scoring, comparing, score_state, tell_loss
from scoring.state import State, merged_state, older_key
from scoring.table import optional_cell

SHOWN = 3  # layers printed


@dataclass(frozen=True)
class Restoration:
    """What eval.py is asked for: widths, how a base of fewer than 16 bits is made, and whether to merge."""
    widths: Sequence[int]
    quantizer: str | None = None  # a phrase of QuantSpec; None: as the run's own base was made
    merge: bool = False

    def base(self, base: BaseConfig, bits: int) -> BaseConfig:
        """The l-bit base. What is not asked for is as the run has it. A run on a 16-bit base has no quantizer of its
        own, and gets GPTQ's (Kanda & Hatano, Sec. 3.1). Raises ValueError for what does not go together."""
        return replace(base, quantization=None if bits == 16 else self.spec(base.quantization, bits))

    def spec(self, own: QuantSpec | None, bits: int) -> QuantSpec:
        try:
            if not self.quantizer:
                own = own or QuantSpec.of(GPTQ)
                return replace(own, bits=bits)
            spec = QuantSpec.parse(self.quantizer, bits, own.block if own else None)
            if spec.bits != bits:
                raise ValueError(f"--restore-quantizer {self.quantizer} names {spec.bits} bits: leave them out")
            keeps_float32 = QUANTIZERS[spec.grid_name].usual_storage == torch.float32
            return replace(spec, double_quant=True) if own and own.double_quant and keeps_float32 else spec
        except ValueError as error:
            raise ValueError(f"--restore {bits}: {error} (see --restore-quantizer)") from None


def restored_state(own: BaseConfig, base: BaseConfig) -> State:
    """`restored-8bit`, with what is not as the run has it. Kanda & Hatano study l > k; other widths are allowed, and
    the title says so."""
    spec = base.quantization
    if base.bits == own.bits:
        note = "the width it was trained on"
    else:
        note = f"below the {own.bits} it was trained on" if base.bits < own.bits else ""
    other = spec and (own.quantization is None or spec.how != own.quantization.how)
    return State("restored", base.bits, spec.how if other else "", note)


# ---- checks ---------------------------------------------------------------------------------------------------------

def check_restoration(run: Run, config: RunConfig, restoration: Restoration) -> list[BaseConfig]:
    """Every base asked for, after all checks that file headers allow: adapters that do not transfer, a base that is not
    the run's or has no original, bits, blocks, and merges. Raises ValueError."""
    if config.adapter_kind is None:
        raise ValueError(f"--restore puts another base under an adapter, and {run.path} has none (--method "
                         f"{config.method})")
    check_restores(ADAPTERS[config.adapter_kind], config.adapter.merge_into)
    bases = [restoration.base(config.base, bits) for bits in restoration.widths]
    source = Source(config.base.model)
    check_fingerprint(source, run)
    if quantized := source.quantized():
        name, stated = next(iter(quantized.items()))
        raise ValueError(f"{source.path}, which {run.path} was trained from, holds codes ({name}: {stated['bits']} "
                         "bits): the weights that they were made from are not known, so there is no other width to "
                         "restore it to")
    for base in bases:
        model = planned_base(source, base)
        if restoration.merge and base.quantization:
            put_adapters(model, config)
            check_merges(model, f"--merge with --restore {base.bits}")
    return bases


# ---- the states -----------------------------------------------------------------------------------------------------

def restored_states(run: Run, config: RunConfig, scoring: Scoring, restoration: Restoration | None) -> list[Row]:
    """One row a width and, with --merge, one more for the merged model. Each model is gone before the next one is
    made."""
    widths = restoration.widths if restoration else ()
    return [row for bits in widths
            for row in states_at(run, config, scoring, restoration.base(config.base, bits), restoration.merge)]


def states_at(run: Run, config: RunConfig, scoring: Scoring, base: BaseConfig, merge: bool) -> list[Row]:
    state = restored_state(config.base, base)
    model, gptq_report = load_base(Source(base.model), base, config.compute, scoring.data.calibration)
    storage = sixteen_bit_type(model)
    attach_adapters(model, config)
    load_adapter(model, run)
    changes = base_changes(model, run, config)
    show_changes(state, changes)
    processes.by_first(keep_report, scoring.models, state, changes, gptq_report)
    rows = [score_state(state, model, scoring)]
    rows[0].restoration_ratio = overall_ratio(changes)
    if merge:
        compared = comparing(model, scoring)
        lost = TrainingLost()
        into = merged_state(merge_best(model, storage, lost), storage)
        rows.append(compared(replace(state, merged=True, note=into.note)))
        tell_loss(rows[-1], lost)
        processes.by_first(save_beside, model, run, scoring.models.path / state.key)
    return rows


@torch.no_grad()
def base_changes(model: Llama, run: Run, config: RunConfig) -> list[LayerChange]:
    """||W_l - W_k|| and ||delta_W|| of each layer that is codes in `model`, the restored one, or in the run."""
    changes = []
    for name, trained_on in run_layers(run, config, linear_names(model, config.base.quantized_layers)):
        layer = model.get_submodule(name)
        adapted = isinstance(layer, AdaptedLinear)
        W_l, W_k = (dense_weight(base, torch.float32) for base in (layer.base if adapted else layer, trained_on))
        changes.append(layer_change(name, W_l, W_k, layer.adapter if adapted else None, stored_bytes([layer])))
    return changes


def run_layers(run: Run, config: RunConfig, names: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """The named layers of the base that the run was trained on, one in memory at a time. A 16-bit base that is itself a
    run with an adapter gives none: it is not on disk, and merging it would put a second base into memory."""
    source, device = Source(config.base.model), config.compute.device
    if run.base_file.is_file():
        return stored_layers([run.base_file], load_config(run.path), names, device)
    if source.is_adapter_run:
        return iter(())
    return stored_layers(weight_files(source.path), source.config, names, device)


def show_changes(state: State, changes: Sequence[LayerChange]) -> None:
    if not changes:
        print(f"{state.title}: ||W_l - W_k|| is not known, since the base that the run was trained on is a run with an "
              "adapter, which would have to be merged first")
        return
    adapted = sorted((c for c in changes if c.ratio is not None), key=lambda c: c.ratio, reverse=True)
    overall = optional_cell(overall_ratio(changes), ".3f")
    print(f"{state.title}: ||W_l - W_k|| / ||delta_W|| is {overall} over all layers; largest: "
          + ", ".join(f"{c.layer} {c.ratio:.3f}" for c in adapted[:SHOWN]))


def keep_report(place: Run, state: State, changes: Sequence[LayerChange], gptq_report: dict | None) -> None:
    """Into `restoration.json`, beside those of other widths."""
    kept = read_json(place.restoration_file) if place.restoration_file.is_file() else {}
    kept = {older_key(key): value for key, value in kept.items()}
    layers = [{**asdict(c), "ratio": c.ratio, "bits_per_weight": c.bits_per_weight} for c in changes]
    kept[state.key] = {"ratio": overall_ratio(changes), "layers": layers, "gptq": gptq_report}
    write_record(place.restoration_file, kept)
