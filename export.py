"""Hand the model that was trained to other tools: a dense model directory, a PEFT adapter, or a GGUF file.

    python export.py runs/x --format safetensors --to DIR                    # merged; transformers and vLLM load it
    python export.py runs/x --format safetensors --dtype float32 --to DIR
    python export.py runs/x --format peft --to DIR                           # the adapter as the plain LoRA that it equals
    python export.py runs/x --format gguf --to x.gguf                        # the k-bit model itself: codes and scales untouched
    python export.py runs/x --format gguf --dtype float16 --to x.gguf        # dense
    python export.py runs/x/merged --format gguf --to x.gguf                 # a model directory that is a result itself

What was written is read again and compared with the run before it gets its name; the figures are printed and kept in export.json.
"""
import argparse
import sys
from pathlib import Path

from finetune.arguments import OneLineParser
from interop.gguf_writer import GGUFExport
from interop.hand_over import check_target, hand_over
from interop.hugging_face import DTYPES, SafetensorsExport
from interop.peft import PEFTExport
from interop.trained import Trained

FORMATS = {export.name: export for export in (SafetensorsExport, PEFTExport, GGUFExport)}


def main() -> None:
    parser = OneLineParser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory; or a model directory or GGUF file, such as RUN/merged and RUN/restored-8bit")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--to", type=Path, required=True, metavar="PLACE", help="a new directory; for gguf a new file that ends in .gguf")
    parser.add_argument("--dtype", choices=DTYPES, help="safetensors: of the weights; default: that of the base, bfloat16 where it was float32. gguf: a "
                        "dense model of this type; default: everything as the run has it, codes as codes. peft: of the base in PLACE/base, where the "
                        "base is codes; default: float32")
    args = parser.parse_args()
    kind = FORMATS[args.format]
    try:
        check_target(args.to, kind.is_directory)
        trained = Trained.at(args.run)
        hand_over(trained, kind(trained, args.to, args.dtype), args.to)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was exported")


if __name__ == "__main__":
    main()
