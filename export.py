"""Hand the model that was trained to other tools: a model directory, a PEFT adapter, or a GGUF file.

    python export.py runs/x --format safetensors --to DIR                    # merged; transformers and vLLM load it
    python export.py runs/x --format safetensors --dtype float32 --to DIR
    python export.py runs/x --format peft --to DIR                           # the adapter as a plain LoRA
    python export.py runs/x --format gguf --to x.gguf                        # the k-bit model: codes as they are
    python export.py runs/x --format gguf --dtype float16 --to x.gguf        # dense
    python export.py runs/x --format mlx --to DIR                            # the k-bit model, for mlx-lm
    python export.py runs/x --format compressed-tensors --to DIR             # for vLLM and transformers; also gptq
    python export.py runs/x --format peft --base-format gptq --to DIR        # adapter, and k-bit base in DIR/base
    python export.py runs/x/merged --format gguf --to x.gguf                 # a model directory that is a result itself
    python export.py MODEL --adapter PEFT_DIR --format mlx --to DIR          # with an adapter of PEFT merged into it
    python export.py runs/x --format gguf --to x.gguf --push org/name        # and to the Hugging Face hub, private

The export is read again and compared with the run before it gets its name. The figures are printed and kept in
export.json. A model card goes with every export, and an Ollama Modelfile with a GGUF file.
"""
import threads  # noqa: F401  before torch

# isort: split
import finetune.startup  # noqa: F401 (first, for what goes wrong in the imports below)

# isort: split
from pathlib import Path

from finetune.command import Given, Work, run_command
from finetune.command_line import Parser
from finetune.config import flag
from finetune.lock import hold, release, sweep_locks
from finetune.values import DTYPES
from interop.gguf_writer import GGUFExport
from interop.hand_over import check_target, hand_over
from interop.hugging_face import SafetensorsExport
from interop.peft import PEFTExport
from interop.push import Destination
from interop.stored_format import INTEGER_FORMATS, MLXExport
from interop.trained import Trained
from interop.with_peft import WithPEFT

FORMATS = {export.name: export for export in (SafetensorsExport, PEFTExport, GGUFExport, MLXExport,
                                              *INTEGER_FORMATS.values())}


def export_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, help="export this run; or a model directory or GGUF file, such as RUN/merged")
    parser.groups["model"].add_argument("--adapter", type=Path, metavar="DIR",
                                        help="a model without a run: merge PEFT's LoRA or QA-LoRA adapter into it")
    add = parser.groups["output"].add_argument
    add("--format", choices=FORMATS, required=True, help="write this format")
    add("--to", type=Path, required=True, metavar="PLACE",
        help="write to this new directory; for gguf, a new file NAME.gguf")
    add("--dtype", choices=DTYPES,
        help="store dense weights in this type (default: safetensors, the base's type, or bfloat16 if that is float32; "
             "k-bit formats, each keeps its type; peft, float32 for the base in PLACE/base). Scales and offsets get it "
             "too (default: gptq and compressed-tensors, 16 bits; mlx, what holds them exactly)")
    add("--base-format", choices=INTEGER_FORMATS,
        help="peft: keep the codes of the base in PLACE/base, in this format, for vLLM's --enable-lora (default: "
             "dequantize them)")
    add("--allow-loss", action="store_true",
        help="export even if rounding takes most of what was trained; without it, such an export is refused")
    add("--push", metavar="ORG/NAME",
        help="also push the export to this repository of the Hugging Face hub; a new one is private")
    add("--public", action="store_true", help="--push: make a new repository public")
    return parser


def export(given: Given, work: Work) -> None:
    work.begins("exporting", safe="nothing was exported")
    kind, to = FORMATS[given["format"]], given["to"]
    lock = f".{to.name}.lock"
    sweep_locks(to.parent, lock)
    check_target(to, kind.is_directory)
    trained = trained_of(given)
    if "base_format" in given and kind is not PEFTExport:
        raise ValueError(f"--base-format {given['base_format']} goes with --format peft only")
    more = {"base_format": given["base_format"]} if "base_format" in given else {}
    exported = kind(trained, to, given.get("dtype"), **more)
    if "public" in given and "push" not in given:
        raise ValueError("--public goes with --push only")
    destination = Destination.prepared(given["push"], "public" in given) if "push" in given else None
    hold(to.parent, lock)
    try:
        check_target(to, kind.is_directory)  # another export may have come first
        hand_over(trained, exported, to, "allow_loss" in given, options_of(given))
    finally:
        release(to.parent, lock, remove=True)
    if destination:
        work.begins("pushing", safe=f"the export is complete in {to}",
                    go_on=f"to push it by hand: hf upload {destination.repo} {to}")
        destination.push(to, f"{kind.name} of {trained.name}")
        print(f"pushed to {destination.url}")


def trained_of(given: Given) -> Trained:
    if "adapter" not in given:
        return Trained.at(given["run"])
    if given["format"] == PEFTExport.name:
        raise ValueError(f"--format peft has nothing to do: --adapter {given['adapter']} is PEFT's already. The other "
                         f"formats merge it: give --format safetensors, mlx or gguf")
    return WithPEFT.of(given["run"], given["adapter"])


def options_of(given: Given) -> tuple[str, ...]:
    """The flags that change what is written, as they were typed; of the adapter's place the name."""
    given = {**given, "adapter": given["adapter"].resolve().name} if "adapter" in given else given
    values = [f"{flag(name)} {given[name]}" for name in ("adapter", "base_format", "dtype") if name in given]
    return (*values, "--allow-loss") if "allow_loss" in given else tuple(values)


def main() -> None:
    run_command(export_parser(), export)


if __name__ == "__main__":
    main()
