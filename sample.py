"""Complete prompts by a run's model as trained, or by any other model; or talk to it.

    python sample.py runs/x --prompt "..."                                # greedy
    python sample.py runs/x --prompt "..." --temperature 0.7 --top-p 0.9 --seed 1
    python sample.py --model DIR --bits 4 --prompt "..." --prompt "..."   # a model, here rounded to 4 bits
    python sample.py --model DIR --adapter PEFT_DIR --prompt "..."        # with PEFT's LoRA adapter
    python sample.py --chat runs/x --system "Answer in one sentence."     # talk to it, in its chat template
"""
import threads  # noqa: F401  before torch

# isort: split
import finetune.startup  # noqa: F401 (first, for what goes wrong in the imports below)

# isort: split
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path

from adapters.held import dense_weights
from adapters.peft_in import attach_peft, read_peft
from finetune.checks import planned_base
from finetune.command import Given, Work, run_command
from finetune.command_line import OF_ANY_MODEL, Parser, typed
from finetune.config import BaseConfig, ComputeConfig, flag
from finetune.data import check_ids, note_tokens
from finetune.quantize import load_base
from finetune.resolve import resolve_scoring
from finetune.run import open_run
from finetune.source import Source, check_trained, load_trained
from finetune.values import DTYPES, positive, seed, share_above_0
from model.chat_template import load_template
from model.generate import Sampling, generate
from model.llama import Llama
from model.talk import Talk
from model.tokenizer import continuation
from quant.spec import GPTQ, QuantSpec
from tasks.rows import NotText, check_text
from tasks.task import Example, prompt_ids

NEW_TOKENS = 128  # unless --max-new-tokens says otherwise
ANSWER = 512      # the same in --chat
BATCH = 128       # prompts at a time
SAMPLING = ("temperature", "top_p")


@cache
def sample_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, nargs="?", default=None, help="the run whose model completes the prompts")
    parser.add_fields(QuantSpec, BaseConfig, ComputeConfig, here=OF_ANY_MODEL,
                      leave_out=("from_scratch", "calibration", "calibration_rows", "act_order", "grid"))
    parser.groups["model"].add_argument("--adapter", type=Path, metavar="DIR",
                                        help="put PEFT's LoRA adapter beside --model")
    add = parser.groups["output"].add_argument
    add("--prompt", action="append", metavar="TEXT", help="complete this text; may be given several times")
    add("--chat", action="store_true",
        help="talk to the model in its chat template (without one: ChatML); from a pipe, every line is a turn")
    add("--system", metavar="TEXT", help="with --chat: the system's turn, before the first of the user")
    add("--temperature", type=typed(positive(float)), metavar="T",
        help="draw tokens from softmax(logits / T), T above 0 "
             "(default: 1 with --top-p; without both, take the most likely token)")
    add("--top-p", type=typed(share_above_0), metavar="P",
        help="draw from the most likely tokens that hold this probability together (default: 1)")
    add("--seed", type=typed(seed), help="seed the draws (default: 0)")
    add("--max-new-tokens", type=typed(positive(int)), metavar="TOKENS",
        help=f"write at most this many tokens (default: {NEW_TOKENS}, of a --chat {ANSWER}, or the room that the model "
             f"has)")
    add("--batch-size", type=typed(positive(int)), metavar="PROMPTS",
        help=f"complete this many prompts at a time (default: {BATCH})")
    return parser


def main() -> None:
    run_command(sample_parser(), sample)


def sample(given: Given, work: Work) -> None:
    if ("chat" in given) == ("prompt" in given):
        raise ValueError("give --prompt TEXT to complete it, or --chat to talk" + (": not both" if "chat" in given
                                                                                  else ""))
    if unused := [name for name in ("batch_size", "system") if name in given and ("chat" in given) == (
            name == "batch_size")]:
        raise ValueError(f"{flag(unused[0])} goes with --{'prompt' if 'chat' in given else 'chat'} only")
    source, load = run_as_trained(given) if given["run"] else model_as_asked(given)
    (talk if "chat" in given else complete)(given, source, load, work)


# ---- prompts --------------------------------------------------------------------------------------------------------

def complete(given: Given, source: Source, load: Callable[[], Llama], work: Work) -> None:
    """Prints the completion of each prompt; under the prompt if there are several. All checks run before any weights
    are loaded."""
    sampling = sampling_of(given)
    texts = checked(given["prompt"])
    stop_ids = source.stop_ids()
    prompts = [prompt_ids(text, source.tokenizer, stop_ids[0]) for text in texts]
    max_new_tokens = room_for_answers(prompts, source, given.get("max_new_tokens"))
    check_ids(prompts, source)
    note_tokens("--prompt", [Example(text, "") for text in texts], source.tokenizer, stop_ids[0], to_stderr)
    work.begins("completing", memory="give a smaller --batch-size")
    model = load()
    with dense_weights(model):
        answers = generate(model, prompts, max_new_tokens, stop_ids, given.get("batch_size", BATCH), sampling=sampling)
    work.done()
    for text, prompt, answer in zip(texts, prompts, answers, strict=True):
        if len(prompts) > 1:
            print(f"--- {text}")
        print(continuation(source.tokenizer, prompt, answer))
    if cut := [str(i) for i, answer in enumerate(answers, 1) if len(answer) == max_new_tokens]:
        which = f"the answers to prompts {', '.join(cut)}" if len(prompts) > 1 else "the answer"
        to_stderr(f"{which} reached the limit of {max_new_tokens} new tokens before an end token "
                  f"(--max-new-tokens sets it)")


# ---- turns ----------------------------------------------------------------------------------------------------------

def talk(given: Given, source: Source, load: Callable[[], Llama], work: Work) -> None:
    """Answers turns until the input ends. On a terminal, an answer is shown as it is written."""
    sampling, chat = sampling_of(given), load_template(source.path, source.tokenizer)
    end, positions = chat.end_of_turn, source.config.max_position_embeddings
    max_new_tokens = given.get("max_new_tokens") or min(ANSWER, positions // 2)
    if max_new_tokens >= positions:
        raise ValueError(f"--max-new-tokens {max_new_tokens}: {source.path} has {positions} positions, a turn included")
    to_stderr(f"{chat.where}: a turn ends with {end}" + ("" if chat.own else "; the model has no chat template of its "
                                                                             "own, and may not know this one"))
    system = checked([given["system"]], "--system")[0] if "system" in given else None
    work.begins("loading the model")
    model = load()
    work.begins("talking")
    here = sys.stdin.isatty() and sys.stdout.isatty()
    with dense_weights(model):
        conversation = Talk(model, chat, source.stop_ids(), max_new_tokens, sampling, system)
        for turn in typed_turns() if here else sys.stdin:
            if turn.strip():
                say(conversation, turn.strip(), here)


def typed_turns() -> Iterator[str]:
    """Lines of a person, until Ctrl-D."""
    to_stderr("Ctrl-D ends the conversation")
    while True:
        try:
            yield input("> ")
        except EOFError:
            return print()


def say(conversation: Talk, text: str, here: bool) -> None:
    """Prints the answer to one turn. A turn that cannot be answered is said, and the conversation goes on."""
    shown = ""

    def show(so_far: str) -> None:
        nonlocal shown
        if here and so_far.startswith(shown) and not so_far.endswith("\ufffd"):  # half a character
            print(so_far[len(shown):], end="", flush=True)
            shown = so_far
    forgotten = conversation.forgotten
    try:
        said = conversation.answer(checked([text], "the turn")[0], show)
    except ValueError as error:
        return to_stderr(f"error: {error}")
    print(said[len(shown.strip()):] if here and said.startswith(shown.strip()) else said, flush=True)
    if conversation.forgotten > forgotten:
        to_stderr(f"the oldest {conversation.forgotten} turns are forgotten: the model has no room for them")
    if conversation.cut:
        to_stderr(f"the answer reached the limit of {conversation.max_new_tokens} new tokens before it ended "
                  f"(--max-new-tokens sets it)")


# ---- what is asked for ----------------------------------------------------------------------------------------------

def checked(prompts: Sequence[str], named: str = "--prompt") -> Sequence[str]:
    """Raises ValueError for a prompt that is no text: bytes of a terminal that are not UTF-8 become half surrogates."""
    for i, prompt in enumerate(prompts, 1):
        try:
            check_text(prompt)
        except NotText as error:
            raise ValueError(f"{named}{f' {i} of {len(prompts)}' if named == '--prompt' else ''} {error}") from None
    return prompts


def to_stderr(text: str) -> None:
    """Completions alone go to stdout."""
    print(text, file=sys.stderr)


def sampling_of(given: Given) -> Sampling | None:
    """None: the most likely tokens, if neither --temperature nor --top-p is given."""
    if any(name in given for name in SAMPLING):
        return Sampling(given.get("temperature", 1.0), given.get("top_p", 1.0), given.get("seed", 0))
    if "seed" in given:
        raise ValueError("--seed changes nothing about the most likely tokens: give --temperature or --top-p with it")
    return None


def run_as_trained(given: Given) -> tuple[Source, Callable[[], Llama]]:
    """Where the run is, and what loads it: in the type and on the device of its training, unless flags name others."""
    of_a_model = {"adapter", *sample_parser().configured}.difference(f.name for f in fields(ComputeConfig))
    if others := [flag(name) for name in given if name in of_a_model]:
        raise ValueError(f"{', '.join(others)} is for a model without a run, and {given['run']} has its own: "
                         f"leave it out")
    run = open_run(given["run"])
    check_trained(run)
    if unfinished := run.keep_still().unfinished:
        print(f"{run.path} is unfinished: {unfinished}", file=sys.stderr)
    compute = run.config.compute
    dtype, device = given.get("dtype", compute.dtype), given.get("device", compute.device)
    return Source(run.path), lambda: load_trained(run, run.config, DTYPES[dtype], device)


def model_as_asked(given: Given) -> tuple[Source, Callable[[], Llama]]:
    """Where the model is, and what loads it: rounded if a quantizer, --bits or --block is named, with --adapter beside
    it."""
    if given.get("quantizer") == GPTQ:
        raise ValueError(f"--quantizer {GPTQ} needs calibration rows, and a prompt is none: take a quantizer that "
                         "rounds, or a run that was trained on such a base")
    config = resolve_scoring({name: value for name, value in given.items() if name != "seed"})
    source = Source(config.base.model)
    planned_base(source, config.base)
    adapter = read_peft(given["adapter"], source.config) if "adapter" in given else None

    def load() -> Llama:
        model, _ = load_base(source, config.base, config.compute, None)
        if adapter:
            attach_peft(model, adapter)
        return model
    return source, load


def room_for_answers(prompts: Sequence[Sequence[int]], source: Source, asked: int | None) -> int:
    """How many new tokens: `asked`, or NEW_TOKENS as far as the longest prompt leaves room. Raises ValueError for a
    prompt without tokens, and for more tokens than the model has positions."""
    lengths, positions = [len(prompt) for prompt in prompts], source.config.max_position_embeddings
    if not min(lengths):
        raise ValueError(f"--prompt {lengths.index(0) + 1} of {len(prompts)} is empty, and the tokenizer of "
                         f"{source.path} has no begin token to start from")
    if max(lengths) + (asked or 1) > positions:
        raise ValueError(f"a prompt of {max(lengths)} tokens and {asked or 'any'} new ones do not fit the {positions} "
                         f"positions of {source.path}")
    return asked or min(NEW_TOKENS, positions - max(lengths))


if __name__ == "__main__":
    main()
