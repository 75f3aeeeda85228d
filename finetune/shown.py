"""What train.py prints before it trains: the plan, and --show-example."""
from pathlib import Path

from torch import nn

from adapters import ADAPTERS
from adapters.adapted import adapted_layers
from finetune.adapted_model import why_not_k_bits
from finetune.config import RunConfig
from finetune.data import PreparedData
from finetune.size import bits_per_weight
from model.llama import Llama
from model.tokenizer import Tokenizer, continuation
from quant.linear import QuantLinear
from tasks.generative import GenerativeTask, spelled
from tasks.messages import Messages
from tasks.task import Asking, Encoded, prompt_ids


def print_plan(path: Path, config: RunConfig, model: Llama, parameters: dict[str, nn.Parameter], data: PreparedData,
               steps: int) -> None:
    trainable, base = sum(p.numel() for p in parameters.values()), config.base
    codes = sum(isinstance(module, QuantLinear) for module in model.modules())
    print(f"{path}: {config.of_method.title} on {base.model}")
    print(f"  base      {base.quantization or base.codes or '16 bits'}: {codes} quantized layers, adapters in "
          f"{len(adapted_layers(model))}, {bits_per_weight(model):.3f} bits a weight with the adapters")
    stated = {name: getattr(config.adapter, name, None) for name in options_of(config)}
    options = "".join(f", {name} {value}" for name, value in stated.items() if value is not None)
    print(f"  trains    {trainable:,} parameters{options}, {stepping(config)}")
    print(f"  data      {len(data.train)} training rows, {len(data.validation)} validation, {len(data.test)} test"
          + "".join(f"; {rows} left out, {reason}" for reason, rows in data.left_out.items() if rows))
    print(f"  steps     {steps} of {config.training.batch_size} rows")
    if base.bits < 16 and (reason := why_not_k_bits(model)):
        print(f"  note      merges to 16 bits only: {reason}")
    if share := config.training.distill:
        teacher = config.training.distill_from or f"{base.model}, before it was quantized"
        print(f"  note      learns {share:.0%} of the loss from the probabilities of {teacher}")
    if config.adapter.merge_into:
        print("  note      trains through the rounding: the adapter moves codes, and the merge writes these codes")
    if config.adapter.keep_residual:
        megabytes = 2e-6 * sum(m.residual.numel() for m in adapted_layers(model).values())
        print(f"  note      adds delta_W to the original weights: their residual takes {megabytes:.1f} MB in training")


def stepping(config: RunConfig) -> str:
    """`lr 0.02`, or the optimizer that has no learning rate."""
    return config.training.optimizer if config.training.lr is None else f"lr {config.training.lr:g}"


def options_of(config: RunConfig) -> tuple[str, ...]:
    return ADAPTERS[config.adapter_kind].options if config.adapter_kind else ()


def show_example(data: PreparedData) -> None:
    """Prints the template's version, the first training row as its tokens read, every token of it, and the first test
    prompt, with their token counts."""
    first, tokenizer, task = data.train[0], data.tokenizer, data.task
    head = (f"--- {task.name}, template version {task.template_version}: the first of {len(data.train)} training rows, "
            f"{len(first.tokens)} tokens")
    if isinstance(task, Messages):
        print(f"{head}, with its special tokens\n{tokenizer.decode(first.tokens, special=True)}")
        print(f"--- what is learned of it, {len(first.learned)} tokens in {len(first.read) + 1} turns\n"
              f"{tokenizer.decode([first.tokens[place] for place in first.learned], special=True)}")
    else:
        prompt, answer = first.tokens[:first.prompt_length], first.tokens[first.prompt_length:]
        print(f"{head}; its prompt, {len(prompt)} tokens\n{tokenizer.decode(prompt)}")
        print(f"--- what is learned after it, {len(answer)} tokens with the end token\n"
              f"{continuation(tokenizer, prompt, answer[:-1])}")
    print(f"--- every token: id, as the tokenizer's file spells it, what it is\n{token_list(first, tokenizer)}")
    if data.test and hasattr(data.test[0], "prompt"):
        text = data.test[0].prompt
        asking = Asking(tokenizer, data.end_ids, data.max_new_tokens, 1)
        ids = (task.prompt_of(data.test[0], asking) if isinstance(task, GenerativeTask)
               else prompt_ids(text, tokenizer, data.end_ids[0]))
        print(f"--- the first of {len(data.test)} test prompts, {len(ids)} tokens; "
              f"at most {data.max_new_tokens} are written\n{text}")


def token_list(row: Encoded, tokenizer: Tokenizer) -> str:
    """A line a token. A special one has no text of its own: decoding drops it, behind a letter too."""
    lines, letter, learned = [], tokenizer.encode("a")[-1:], set(row.learned)
    for place, token in enumerate(row.tokens):
        kind = ", special" if tokenizer.decode([*letter, token]) == tokenizer.decode(letter) else ""
        role = "learned" if place in learned else "read"
        lines.append(f"{token:>8}  {spelled(tokenizer, token)!r:<24} {role}{kind}")
    return "\n".join(lines)
