"""Every link inside the repository leads somewhere."""
import re

import pytest

from tests.docs.pages import PAGES, ROOT, anchors, name_of, prose

TARGET = re.compile(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_every_anchor_to_a_heading(page):
    broken = []
    for first, second in TARGET.findall(prose(page.read_text(encoding="utf-8"))):
        target = first or second
        if target.startswith(("http://", "https://")):
            continue
        place, _, anchor = target.partition("#")
        file = (page.parent / place).resolve() if place else page
        if not file.exists() or anchor and anchor not in anchors(file.read_text(encoding="utf-8")):
            broken.append(target)
    assert broken == []


def test_a_broken_anchor_would_be_noticed():
    assert anchors("# A file, in\n\n    # no heading\n\n## `x` and y") == {"a-file-in", "x-and-y"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_reference_links_are_defined(page):
    text = prose(page.read_text(encoding="utf-8"))
    used = set(re.findall(r"\]\[(\w+)\]", text))
    assert used <= set(re.findall(r"^\[(\w+)\]: ", text, re.MULTILINE))


def test_every_page_is_reached_from_the_readme():
    """Directly, or from a page that the README links."""
    seen, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page not in seen and page.suffix == ".md" and page.is_file():
            seen.add(page)
            links = [first or second for first, second in TARGET.findall(page.read_text(encoding="utf-8"))]
            todo += [(page.parent / link.partition("#")[0]).resolve() for link in links if not link.startswith("http")]
    assert set(PAGES) <= seen
