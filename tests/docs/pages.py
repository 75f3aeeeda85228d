"""The pages that people read, and what the tests take out of them."""
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def name_of(page: Path) -> str:
    """A test id: `docs/tasks.md`."""
    return page.relative_to(ROOT).as_posix()


def code_lines(text: str) -> list[str]:
    """Lines of fenced and indented code, without the indent. A backslash at the end joins a line with the next."""
    lines, fenced = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            lines.append(line.strip())
    joined: list[str] = []
    for line in lines:
        line = re.sub(r"\s#\s.*", "", line).strip()  # a comment behind a command
        if joined and joined[-1].endswith("\\"):
            joined[-1] = f"{joined[-1][:-1].strip()} {line}"
        else:
            joined.append(line)
    return joined


def prose(text: str) -> str:
    """The page without its code."""
    return "\n".join(line for line in FENCED.sub("", text).splitlines() if not line.startswith("    "))


def anchors(text: str) -> set[str]:
    """What GitHub makes of each heading: `## A file, in` -> `a-file-in`."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("\\", "").lower()).replace(" ", "-") for heading in headings}
