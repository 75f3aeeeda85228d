"""Completions without a task: `python eval.py RUN --prompt "..."` by a run's model as trained, `--model DIR` by any other."""
import argparse
from collections.abc import Callable, Sequence

from finetune import arguments
from finetune.arguments import DTYPES, flag
from finetune.checks import check_quantization
from finetune.data import check_ids
from finetune.methods import GPTQ
from finetune.models import Source, check_trained, load_trained, read_run
from finetune.quantize import load_base
from adapters.peft_in import attach_peft, read_peft
from model.generate import Sampling, generate
from model.llama import Llama
from model.tokenizer import continuation

NEW_TOKENS = 128  # unless --max-new-tokens says otherwise
SAMPLING = ("temperature", "top_p")
TAKEN = ("prompt", *SAMPLING, "seed", "max_new_tokens", "eval_batch_size", "dtype", "device")  # beside --prompt
TAKEN_BY_A_MODEL = ("model", "adapter", "quantizer", "bits", "block", "double_quant", "quantized_layers")


class EachTime(argparse.Action):
    """A list of one value for each time that the flag is given. argparse's own "append" wants a list, or None, to be there before,
    and `given_flags` puts something else there."""

    def __call__(self, parser, namespace, value, option_string=None):
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*before, value] if isinstance(before, list) else [value])


def add_prompt_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", action=EachTime, metavar="TEXT", help=f"print how the model goes on from here, for at most {NEW_TOKENS} "
                        "tokens or --max-new-tokens; may be given several times")
    parser.add_argument("--temperature", type=arguments.positive(float), default=1.0, help="with --prompt: draw tokens from "
                        "softmax(logits / temperature) in place of the most likely one")
    parser.add_argument("--top-p", type=above_zero_to_one, default=1.0, help="with --prompt: draw from the most likely tokens that "
                        "hold this probability together")


def above_zero_to_one(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in (0, 1]")
    return value


def complete(args: argparse.Namespace, given: dict) -> None:
    """Prints the completion of each prompt, under the prompt where there are several. Everything that can be refused is, before a
    weight is read."""
    refuse_beside_prompt(args, given)
    sampling = sampling_of(args, given)
    source, load = run_as_trained(args, given) if args.run else model_as_asked(args, given)
    prompts, stop_ids = [source.tokenizer.encode(text) for text in args.prompt], source.stop_ids()
    max_new_tokens = room_for_answers(prompts, source, args.max_new_tokens)
    check_ids(prompts, source)
    answers = generate(load(), prompts, max_new_tokens, stop_ids, args.eval_batch_size, sampling=sampling)
    for text, prompt, answer in zip(args.prompt, prompts, answers):
        if len(prompts) > 1:
            print(f"--- {text}")
        print(continuation(source.tokenizer, prompt, answer))


def refuse_beside_prompt(args: argparse.Namespace, given: dict) -> None:
    if args.plot or args.json:
        raise ValueError("--plot and --json show scores, and --prompt makes none")
    if len(args.run) > 1:
        raise ValueError(f"--prompt asks one run, and {len(args.run)} are given: {', '.join(map(str, args.run))}")
    if args.quantizer == GPTQ and not args.run:
        raise ValueError(f"--quantizer {GPTQ} needs calibration rows, and --prompt reads no data: prompt a run that was trained on such a base, "
                         f"or take a quantizer that rounds")
    taken = TAKEN if args.run else (*TAKEN, *TAKEN_BY_A_MODEL)
    if others := [flag(name) for name in given if name not in taken]:
        raise ValueError(f"{', '.join(others)} does not go with --prompt {'to a run' if args.run else 'to a model'}, which takes "
                         + ", ".join(map(flag, taken)))


def refuse_without_prompt(given: dict) -> None:
    if "prompt" not in given and (unused := [flag(name) for name in SAMPLING if name in given]):
        raise ValueError(f"{', '.join(unused)} goes with --prompt only: tasks are scored on the most likely answer")


def sampling_of(args: argparse.Namespace, given: dict) -> Sampling | None:
    """None: the most likely tokens, where neither --temperature nor --top-p is given."""
    if any(name in given for name in SAMPLING):
        return Sampling(args.temperature, args.top_p, args.seed)
    if "seed" in given:
        raise ValueError("--seed changes nothing about the most likely tokens: give --temperature or --top-p with it")
    return None


def run_as_trained(args: argparse.Namespace, given: dict) -> tuple[Source, Callable[[], Llama]]:
    """Where the run is, and what loads it: in the type and on the device that it was trained in and on, unless the flags say otherwise."""
    run, own, _ = read_run(args.run[0])
    check_trained(run, own)
    dtype, device = given.get("dtype", own.dtype), given.get("device", own.device)
    return Source(run.path), lambda: load_trained(run, DTYPES[dtype], device)


def model_as_asked(args: argparse.Namespace, given: dict) -> tuple[Source, Callable[[], Llama]]:
    """Where the model is, and what loads it, rounded where a quantizer, --bits or --block is named, with --adapter beside it."""
    arguments.resolve_model_quantizer(args, given)
    source = Source(args.model)
    check_quantization(source, args)
    adapter = read_peft(args.adapter, source.config) if args.adapter else None

    def load() -> Llama:
        model, _ = load_base(source, args, None)
        if adapter:
            attach_peft(model, adapter)
        return model
    return source, load


def room_for_answers(prompts: Sequence[Sequence[int]], source: Source, asked: int | None) -> int:
    """How many new tokens: `asked`, or NEW_TOKENS as far as the longest prompt leaves room for them. Raises ValueError for a prompt
    without tokens, and for more tokens than the model has positions."""
    lengths, positions = [len(prompt) for prompt in prompts], source.config.max_position_embeddings
    if not min(lengths):
        raise ValueError(f"--prompt {lengths.index(0) + 1} of {len(prompts)} is empty, and the tokenizer of {source.path} has no begin token to "
                         f"start from")
    if max(lengths) + (asked or 1) > positions:
        raise ValueError(f"a prompt of {max(lengths)} tokens and {asked or 'any'} new ones do not fit the {positions} positions of {source.path}")
    return asked or min(NEW_TOKENS, positions - max(lengths))
