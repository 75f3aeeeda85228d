"""Counts of outcomes, as a table and as JSON."""
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

SAME = "same"            # in the end the same bytes, or the same numbers, as without the fault
AGAIN = "again"          # nothing had been saved yet; the same command, given again, ends with the same bytes
SENTENCE = "sentence"    # refused in one line; nothing that had been saved is lost
LOST = "lost"            # what had been saved cannot be used any more
SILENT = "silent"        # other numbers, without a word
TRACEBACK = "traceback"
HANGS = "hangs"
OUTCOMES = (SAME, AGAIN, SENTENCE, LOST, SILENT, TRACEBACK, HANGS)
GOOD = {SAME, AGAIN, SENTENCE}
NO_CHECKSUM = "for which no checksum exists"  # of a section: a flipped bit cannot be known there


@dataclass
class Row:
    section: str
    case: str
    counts: Counter = field(default_factory=Counter)
    extra: Counter = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Report:
    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    clock: float = field(default_factory=time.monotonic)
    place: Path | None = None  # it is written there every 20 cases, too

    def add(self, section: str, case: str, outcome: str, detail: str = "", **extra: int) -> None:
        row = next((r for r in self.rows if (r.section, r.case) == (section, case)), None)
        if row is None:
            self.rows.append(row := Row(section, case))
        row.counts[outcome] += 1
        row.extra.update(extra)
        now = time.monotonic()
        row.seconds, self.clock = row.seconds + now - self.clock, now
        if outcome not in (SAME, AGAIN):
            row.details.append(f"{outcome}: {detail}")
        if self.place and sum(sum(r.counts.values()) for r in self.rows) % 20 == 0:
            self.write(self.place)
        if outcome not in GOOD and NO_CHECKSUM not in section:
            print(f"  {section}, {case}: {outcome}: {detail}", flush=True)

    @property
    def bad(self) -> int:
        return sum(n for row in self.rows for outcome, n in row.counts.items()
                   if outcome not in GOOD and NO_CHECKSUM not in row.section)

    def table(self) -> str:
        lines = ["| section | case | cases | " + " | ".join(OUTCOMES) + " | also |",
                 "|---|---|" + "---:|" * (len(OUTCOMES) + 1) + "---|"]
        every: Counter = Counter()
        for row in self.rows:
            every.update(row.counts)
            also = ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in row.extra.items())
            lines.append(_line(row.section, row.case, row.counts, also))
        lines.append(_line("all", "", every, ""))
        return "\n".join(lines + [f"\n{section}: skipped, {why}" for section, why in self.skipped.items()])

    def write(self, place: Path) -> None:
        """place.json has every case that did not end with the same bytes; place.md has the table."""
        rows = [{"section": r.section, "case": r.case, "cases": sum(r.counts.values()), **r.counts,
                 "extra": dict(r.extra), "seconds": round(r.seconds, 1), "details": r.details} for r in self.rows]
        place.with_suffix(".json").write_text(json.dumps({"rows": rows, "skipped": self.skipped}, indent=1) + "\n")
        place.with_suffix(".md").write_text(self.table() + "\n")


def _short(section: str) -> str:
    """`kill, full` -> `kill`"""
    return section.partition(",")[0].partition(":")[0]


def _line(section: str, case: str, counts: Counter, also: str) -> str:
    numbers = " | ".join(str(counts[outcome] or "") for outcome in OUTCOMES)
    return f"| {section} | {case} | {sum(counts.values())} | {numbers} | {also} |"


def beside(*files: Path) -> str:
    """The counts of several reports by section, each cell with one number a file: `34 / 0`."""
    totals: list[dict[str, Counter]] = []
    for file in files:
        totals.append(found := {})
        for row in json.loads(file.read_text())["rows"]:
            section = row["section"]
            section = f"damage: base, {NO_CHECKSUM}" if NO_CHECKSUM in section else _short(section)
            found.setdefault(section, Counter()).update({k: row.get(k, 0) for k in ("cases", *OUTCOMES)})
    columns = ("cases", *(o for o in OUTCOMES if any(c[o] for found in totals for c in found.values())))
    lines = ["| section | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for section in dict.fromkeys(name for found in totals for name in found):
        cells = (" / ".join(str(found.get(section, Counter())[column]) for found in totals) for column in columns)
        lines.append(f"| {section} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
