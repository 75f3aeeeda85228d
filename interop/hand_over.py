"""One export of any format: checked, written beside its name, read again, compared, and only then renamed."""
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from torch import Tensor

from interop.comparison import Difference, compare, files_of, token_rows
from interop.lost import Lost, what_is_lost
from interop.model_card import card_file, model_card
from interop.modelfile import modelfile_file
from interop.trained import Trained
from model.checksums import sum_file, write_sums
from model.durable import make_directory
from model.files import write_record, write_text
from model.llama import Llama
from model.published import publish, scratch_directory

REPORT = "export.json"


class Export(Protocol):
    """What the class of each format offers. Its constructor takes (trained, to, dtype). It makes all checks that need
    headers only."""
    name: str
    is_directory: bool
    tolerance: float  # of `compare`

    def write(self, model: Llama, place: Path) -> dict:
        """Writes the model. Returns facts for the report."""

    def reread(self, place: Path) -> Llama:
        """Loads what was written."""

    def beside(self, to: Path) -> dict[Path, str]:
        """Texts that go with the export, by their place. After `write`."""

    def expected(self, model: Llama, name: str) -> Tensor | None:
        """What the file must hold for a tensor of the run; None if that is not known exactly."""


def check_target(to: Path, is_directory: bool) -> None:
    """Raises FileExistsError if the place is taken, ValueError for a name of the wrong kind."""
    if not is_directory and to.suffix != ".gguf":
        raise ValueError(f"--to {to} is not the name of a GGUF file: give one that ends in .gguf")
    if is_directory and to.suffix == ".gguf":
        raise ValueError(f"--to {to} looks like a GGUF file, but this format writes a directory: give another name")
    taken = [to] if is_directory else [to, report_file(to), sum_file(to), card_file(to), modelfile_file(to)]
    for path in taken:
        if path.exists() and not (is_directory and path.is_dir() and not any(path.iterdir())):
            raise FileExistsError(f"--to {to}: {path} exists already; give another place")


def report_file(to: Path) -> Path:
    """Beside a GGUF file: `x.gguf` -> `x.export.json`."""
    return to.with_suffix(f".{REPORT}")


def hand_over(trained: Trained, export: Export, to: Path, allow_loss: bool = False,
              options: tuple[str, ...] = ()) -> None:
    """Exports to `to`, which in the end is complete or absent. Raises ValueError if the export, read again, is not what
    it should be, or if rounding has taken most of what was trained and `allow_loss` is False.

    options: the command's other flags, which the model card names."""
    rows = token_rows(trained)
    with scratch_directory(to) as scratch:
        made = scratch / to.name
        if export.is_directory:
            make_directory(made)
        model = trained.load()
        facts = {**export.write(model, made), **trained.state()}
        again = export.reread(made)
        difference = compare(model, again, rows, export.expected, export.tolerance)
        lost = what_is_lost(trained, model, again, rows, difference.largest_weight_difference > 0)
        warning = lost.check(allow_loss)
        files = files_of(made)
        report = report_json(trained, export.name, facts, difference, lost, files)
        card = model_card(trained, export.name, to, facts, difference, lost, options)
        texts = {card_file(to): card, **export.beside(to)}
        if export.is_directory:
            for path, text in texts.items():
                write_text(made / path.relative_to(to), text)
            write_record(made / REPORT, report)
            write_sums(made)
            publish(made, to)
        else:
            publish_file(made, to, report, texts)
    print("\n".join(report_lines(f"{to}: {export.name} of {trained.path}", facts, difference, lost, files)))
    if warning:
        print(f"WARNING: {warning}")


def publish_file(made: Path, to: Path, report: dict, texts: dict[Path, str]) -> None:
    """What stands beside the file comes first: an export with its name is complete. Without it, nothing stays."""
    write_sums(made)
    try:
        write_record(report_file(to), report)
        for path, text in texts.items():
            write_text(path, text)
        publish(sum_file(made), sum_file(to))
        publish(made, to)
    except BaseException:
        for beside in (report_file(to), sum_file(to), *texts):
            beside.unlink(missing_ok=True)
        raise


def report_lines(title: str, facts: dict, difference: Difference, lost: Lost, files: dict[str, dict]) -> list[str]:
    """The lines that are printed. The JSON report holds the same facts."""
    return [title, *(f"  {name.replace('_', ' ')}: {value}" for name, value in facts.items()),
            f"  largest weight difference to the run: {difference.largest_weight_difference:.3g} "
            f"(in {difference.in_tensor})",
            *lost.lines(),
            f"  largest logit difference to the run: {difference.largest_logit_difference:.3g}, of logits up to "
            f"{difference.largest_logit:.3g} ({difference.rows} fixed rows, {difference.tokens} tokens, float32)",
            *(f"  sha256 {stated['sha256']}  {name}  {stated['bytes'] / 1e6:.2f} MB" for name, stated in files.items())]


def report_json(trained: Trained, form: str, facts: dict, difference: Difference, lost: Lost,
                files: dict[str, dict]) -> dict:
    method = trained.run.config.method if trained.run else None
    read = trained.run.keep_still().to_json() if trained.run else None
    return {"format": form, "source": trained.name, "method": method, "trained": read, **facts,
            **asdict(difference), **lost.to_json(), "files": files}
