"""A user's own rows: their layout is recognised by the fields, and said in one line.

| task | fields of a row |
|---|---|
| `messages` | messages: a list of role and content; or conversations: a list of from and value (ShareGPT) |
| `instruction` | instruction, output, input (may be left out) |
| `completion` | prompt, completion |
| `classification` | text, label |
| `banking77` | text, category: the embedded data set's own fields |
| `text` | text |

A row that has the fields of several layouts has the first of them, in this order: what is structured goes before what
was made of it. One file holds one layout.
"""
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tasks.rows import first_row, placed_rows
from tasks.task import Example, Splits, one_tenth, shuffled

AUTO = "auto"  # the task of rows whose layout is not known yet
Row = tuple[str, dict]  # place, fields


@dataclass(frozen=True)
class Layout:
    task: str
    fields: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join(self.fields)


LAYOUTS = (Layout("messages", ("messages",)), Layout("messages", ("conversations",)),
           Layout("instruction", ("instruction", "output"), ("input",)), Layout("completion", ("prompt", "completion")),
           Layout("classification", ("text", "label")), Layout("banking77", ("text", "category")),
           Layout("text", ("text",)))


def layout_of(place: str, row: object) -> Layout:
    """Raises ValueError, naming the place, if the row has no layout. A field that is null is not there."""
    if not isinstance(row, dict):
        raise ValueError(f"{place}: expected a JSON object, found {type(row).__name__}")
    for layout in LAYOUTS:
        if all(row.get(name) is not None for name in layout.fields):
            return layout
    found = ", ".join(name for name, value in row.items() if value is not None) or "nothing"
    raise ValueError(f"{place}: the row has {found}, which is none of the layouts that are recognised: "
                     f"{'; '.join(map(str, LAYOUTS))}. Rename its fields, or name the data set by --task (see "
                     f"train.py --list-tasks)")


def recognised(path: Path) -> str:
    """The task of a file's first row."""
    return layout_of(*first_row(path)).task


def own_rows(path: Path, task: str) -> tuple[list[Row], Layout]:
    """Every row of a file of one layout, which is said. Raises ValueError, naming file and line, for another task's
    layout, and for a row of another layout than the first, or without one."""
    rows = placed_rows(path, ())
    (first, row), *others = rows
    layout = layout_of(first, row)
    if layout.task != task:
        raise ValueError(f"{first}: the row has {layout}, but --task {task} reads "
                         f"{' or '.join(str(known) for known in LAYOUTS if known.task == task)}: give --task "
                         f"{layout.task}, or leave --task out")
    for place, row in others:
        check_layout(place, row, layout, first)
    unread = [name for name in rows[0][1] if name not in (*layout.fields, *layout.optional)]
    print(f"{path}: {len(rows)} rows of {layout}: --task {task}"
          + (f" (not read: {', '.join(map(str, unread[:8]))}{', ...' if len(unread) > 8 else ''})" if unread else ""))
    return rows, layout


def check_layout(place: str, row: dict, layout: Layout, first: str) -> None:
    if layout_of(place, row) == layout:
        return
    missing = [name for name in layout.fields if row.get(name) is None]
    why = f"has no {' and no '.join(missing)}" if missing else f"has {layout_of(place, row)} as well"
    raise ValueError(f"{place}: the row {why}, but {first.rpartition(', ')[2]} has {layout} and so must every row of "
                     f"the file: correct the row, or give the others a file of their own")


# ---- rows that are left out -----------------------------------------------------------------------------------------

@dataclass
class LeftOut:
    """Rows that cannot be learned from, by reason."""
    rows: Counter = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)  # reason -> the place of its first row

    def add(self, place: str, reason: str) -> None:
        self.rows[reason] += 1
        self.first.setdefault(reason, place)

    def counts(self) -> dict[str, int]:
        """`{"an empty output (the first: my.jsonl, line 7)": 2}`"""
        return {f"{reason} (the first: {self.first[reason]})": n for reason, n in self.rows.items()}


def whole(rows: Iterable[Row], names: Sequence[str], left_out: LeftOut) -> list[Row]:
    """The rows in which none of these fields is empty."""
    kept = []
    for place, row in rows:
        if empty := next((name for name in names if not str(row[name]).strip()), None):
            left_out.add(place, f"empty {empty}")
        else:
            kept.append((place, row))
    return kept


def own_splits(read: Callable[[Path, LeftOut], list[Example]], data: Path, test_data: Path | None, limit: int | None,
               seed: int, test_tenth: bool = False) -> Splits:
    """A tenth of the rows is for validation. Test rows come from --test-data; with `test_tenth`, and without such a
    file, another tenth is for test. Raises ValueError if no row is left of a file."""
    validation, train = one_tenth(shuffled(left := all_of(read, data, found := LeftOut()), seed)[:limit])
    if test_data:
        test = all_of(read, test_data, of_test := LeftOut())
        for reason, n in of_test.counts().items():
            print(f"{test_data}: {n} test rows are left out: {reason}")
    else:
        test, train = one_tenth(train) if test_tenth and len(left) > 2 else ([], train)
    return Splits(train, validation, test, found.counts())


def all_of(read: Callable[[Path, LeftOut], list[Example]], path: Path, left_out: LeftOut) -> list[Example]:
    rows = read(path, left_out)
    if not rows:
        reasons = "; ".join(f"{n} with {reason}" for reason, n in left_out.counts().items())
        raise ValueError(f"{path}: no row is left: {reasons}")
    return rows
