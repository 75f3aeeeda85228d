"""What a base says about itself: its name, its commit and its licence. Reads what is on this machine, and fetches
nothing."""
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml  # a dependency of huggingface_hub

from finetune.config import EMBEDDED_BASE
from finetune.run import is_run, open_run
from finetune.values import Place
from interop.trained import Trained
from model.gguf_reader import is_gguf, read_gguf
from model.hub import HubModel, NotFetched, directory_here

README, LICENSES = "README.md", ("LICENSE", "LICENSE.txt", "LICENSE.md")
CACHED = re.compile(r"models--(?P<repo>[^/]+--[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})")  # in the hub's cache
REPO_URL = re.compile(r"https://huggingface\.co/([^/\s]+/[^/\s]+)/?")
FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
LONGEST = 1 << 20  # characters of a README that are read
# The first words of a licence's text -> its identifier on the hub.
TITLES = {"apache license version 2.0": "apache-2.0", "mit license": "mit", "bsd 3-clause license": "bsd-3-clause"}


@dataclass(frozen=True)
class BaseFacts:
    """repo, commit: on the hub; None if they are not known. license: entries of a model card's front matter."""
    name: str
    repo: str | None = None
    commit: str | None = None
    license: dict[str, str] = field(default_factory=dict)
    license_from: str = ""


def base_facts(trained: Trained) -> BaseFacts | None:
    """Of the model at the start of the chain of runs. None if that began with random weights. A base that cannot be
    read any more has a name only."""
    run = (trained.run_of_result or trained).run
    place: Place = run.config.base.model if run else trained.path
    try:
        while run:
            if run.config.base.from_scratch:
                return None
            run = open_run(place) if isinstance(place, Path) and place.is_dir() and is_run(place) else None
            place = run.config.base.model if run else place
        return facts_of_place(place)
    except (ValueError, OSError):
        return BaseFacts(place.resolve().name if isinstance(place, Path) else str(place))


def facts_of_place(place: Place) -> BaseFacts:
    if isinstance(place, HubModel):
        try:
            return BaseFacts(place.repo, place.repo, place.revision, *stated_license(directory_here(place)))
        except NotFetched:
            return BaseFacts(place.repo, place.repo, place.revision)
    if place == EMBEDDED_BASE:
        return BaseFacts("the embedded base, model/base")
    if found := CACHED.search(str(place)):
        repo = found["repo"].replace("--", "/")
        return BaseFacts(repo, repo, found["commit"], *stated_license(place))
    if is_gguf(place):
        return facts_of_gguf(place) if place.is_file() else BaseFacts(place.name)
    return BaseFacts(place.resolve().name, None, None, *stated_license(place))


def facts_of_gguf(file: Path) -> BaseFacts:
    """general.license, and the repository if the metadata name one."""
    metadata = read_gguf(file).metadata
    urls = (metadata.get(f"general.{key}") for key in ("repo_url", "source.repo_url", "base_model.0.repo_url"))
    found = next(filter(None, (REPO_URL.fullmatch(url) for url in urls if isinstance(url, str))), None)
    names = {"license": "general.license", "license_name": "general.license.name",
             "license_link": "general.license.link"}
    license = {ours: value for ours, key in names.items() if isinstance(value := metadata.get(key), str)}
    beside = stated_license(file.parent) if "license" not in license else (license, "its metadata")
    return BaseFacts(file.name, found[1] if found else None, None, *beside)


def stated_license(directory: Path) -> tuple[dict[str, str], str]:
    """Of the front matter of README.md, else of a licence file whose first words are known; and where it stands. An
    unknown text is `other`."""
    stated = front_matter(directory / README)
    keys = ("license", "license_name", "license_link")
    found = {key: stated[key] for key in keys if isinstance(stated.get(key), str)}
    if "license" in found:
        return found, README
    file = next((directory / name for name in LICENSES if (directory / name).is_file()), None)
    if file is None:
        return {}, ""
    text = " ".join(file.read_text(encoding="utf-8", errors="replace")[:LONGEST].lower().replace(",", " ").split())
    known = next((name for title, name in TITLES.items() if text.startswith(title)), None)
    return {"license": known or "other"}, file.name


def front_matter(readme: Path) -> dict:
    """The YAML at the head of a model card. Empty if there is none that can be read: a card is no part of a model."""
    if not readme.is_file():
        return {}
    found = FRONT.match(readme.read_text(encoding="utf-8", errors="replace")[:LONGEST])
    try:
        stated = yaml.safe_load(found[1]) if found else {}
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return stated if isinstance(stated, dict) else {}
