"""What is to be done: cells, plans, and the settings that a plan is made for."""
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

RUN_OF = "cell:"   # `cell:NAME` in a cell's arguments is the run directory of that cell
BEST_OF = "best:"  # `--lr best:A,B`: the value of --lr in the one of these cells with the lowest validation loss


@dataclass(frozen=True)
class Settings:
    """What all cells of a plan have in common. `scale` below 1 makes rows and steps fewer, to try a plan out."""
    model: Path | None            # None: the embedded base
    data: Path                    # the directory with sql_create_context, bitext, ...
    device: str = "cpu"
    scale: float = 1.0
    scratch: Path = Path("cells")  # files that a plan writes before its runs, such as calibration texts

    def rows(self, n: int, least: int = 1) -> int:
        """`Settings(..., scale=0.01).rows(500) == 5`"""
        return max(least, round(self.scale * n))

    @property
    def flags(self) -> list[str]:
        """Of every cell: where the model is and where it computes."""
        return [*(["--model", str(self.model)] if self.model else []), "--device", self.device]

    @property
    def graphs(self) -> list[str]:
        """For cells whose training can be recorded."""
        return ["--cuda-graphs"] if self.device.startswith("cuda") else []

    def to_json(self) -> dict:
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Cell:
    """One run and its scores.

    argv: of train.py, without --out. `cell:NAME` stands for the run of another cell, which is done first, and
    `--lr best:A,B` for the rate of the cell with the lower validation loss.
    states: which states to score: base, quantized, trained, merged (as trained and merged and, with --requantize,
    requantized), restored-8bit, restored-16bit and so on. A cell that asks for base and quantized only does not train.
    priority: the lower, the earlier.
    kind: cells of one kind take about the same time; `seconds` is the guess until one of them is done.
    tags: what tables select by, such as {"bits": 2, "seed": 0}. They are copied into the facts."""
    name: str
    argv: Sequence[str]
    states: Sequence[str] = ("trained",)
    priority: int = 0
    kind: str = ""
    seconds: float = 5.0
    tags: dict = field(default_factory=dict)
    after: Sequence[str] = ()  # further cells to be done first

    @property
    def needs(self) -> list[str]:
        """The cells to be done first."""
        return list(dict.fromkeys([*self.runs, *(name for _, names in self.choices for name in names)]))

    @property
    def runs(self) -> list[str]:
        """The cells whose runs it reads."""
        return [*(word.removeprefix(RUN_OF) for word in self.argv if word.startswith(RUN_OF)), *self.after]

    @property
    def choices(self) -> list[tuple[int, list[str]]]:
        """(place in argv, the cells to choose from) of each `best:` in the arguments."""
        return [(i, word.removeprefix(BEST_OF).split(",")) for i, word in enumerate(self.argv)
                if word.startswith(BEST_OF)]

    def settled(self, done: Mapping[str, dict]) -> "Cell":
        """The cell with every `best:` replaced. Raises ValueError if training diverged in all cells of a choice."""
        argv = list(self.argv)
        for place, names in self.choices:
            losses = {name: loss for name in names
                      if (loss := done[name]["training"]["best_validation_loss"]) is not None}
            if not losses:
                raise ValueError(f"cell {self.name}: training diverged in all of {', '.join(names)}")
            best = done[min(losses, key=losses.__getitem__)]["argv"]
            argv[place] = value_after(best, argv[place - 1])
        return replace(self, argv=argv)

    @property
    def trains(self) -> bool:
        return not set(self.states) <= {"base", "quantized"}

    def command(self, folder: Path) -> list[str]:
        """train.py's arguments, for runs in `folder`."""
        return [str(run_folder(folder, word.removeprefix(RUN_OF))) if word.startswith(RUN_OF) else word
                for word in self.argv] + ["--out", str(run_folder(folder, self.name))]


@dataclass(frozen=True)
class Plan:
    """`about`: rows, steps, seeds, tests and corrections, in words. It is stored with the results."""
    name: str
    about: str
    cells: list[Cell]


def value_after(argv: Sequence[str], flag: str) -> str:
    """`value_after(["--lr", "1e-3"], "--lr") == "1e-3"`"""
    return argv[argv.index(flag) + 1]


def run_folder(folder: Path, name: str) -> Path:
    return folder / name


def checked(cells: Sequence[Cell]) -> Sequence[Cell]:
    """Raises ValueError for a name that occurs twice, or a need that is no earlier cell."""
    seen: set[str] = set()
    for cell in cells:
        if cell.name in seen:
            raise ValueError(f"two cells are called {cell.name}")
        if missing := [need for need in cell.needs if need not in seen]:
            raise ValueError(f"cell {cell.name} needs {missing[0]}, which is no cell before it")
        seen.add(cell.name)
    return cells


def selected(cells: Iterable[Cell], words: Sequence[str]) -> list[Cell]:
    """Those whose name holds one of the words, and what they need. All cells if there are no words. Raises ValueError
    for a word that no name holds."""
    every = list(cells)
    if lost := [word for word in words if not any(word in cell.name for cell in every)]:
        raise ValueError(f"--only {lost[0]}: no cell of these plans has that in its name: --list shows their names")
    wanted = {cell.name for cell in every if not words or any(word in cell.name for word in words)}
    for cell in reversed(every):
        if cell.name in wanted:
            wanted.update(cell.needs)
    return [cell for cell in every if cell.name in wanted]
