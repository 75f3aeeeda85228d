"""Data files of the Hugging Face hub: `org/name[@revision][:path/in/the/repository.csv]`.

Without a path, the file is the only one that is named after the split. Files go to the shared cache of huggingface_hub,
as those of models do (model/hub.py).
"""
import glob
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import huggingface_hub

from model.hub import NotFetched, reason
from tasks.rows import SUFFIXES

SPLITS = {"train": ("train",), "test": ("test",), "validation": ("validation", "valid", "dev")}  # split -> file names


@dataclass(frozen=True)
class HubData:
    repo: str                    # org/name
    revision: str | None = None  # a branch, tag or commit; None: the main branch as it is today
    path: str | None = None      # of a file in the repository; None: the file that is named after the split
    kind, here = "dataset", "a file"

    @classmethod
    def parse(cls, text: str) -> "HubData":
        """Raises ValueError where `text` cannot be a name on the hub."""
        name, colon, path = text.partition(":")
        repo, at, revision = name.partition("@")
        if repo.count("/") != 1 or bool(at) != bool(revision) or bool(colon) != bool(path):
            raise ValueError(f"{text!r} is not of the form org/name, org/name@revision or "
                             "org/name@revision:path/of/a/file")
        from huggingface_hub.utils import validate_repo_id
        validate_repo_id(repo)
        if path and Path(path).suffix.lower() not in SUFFIXES:
            raise ValueError(f"{path} does not end in one of {', '.join(SUFFIXES)}")
        if path and (path.startswith("/") or ".." in Path(path).parts):
            raise ValueError(f"{path} is not a path inside the repository")
        return cls(repo, revision or None, path or None)

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{revision}{f':{self.path}' if self.path else ''}"


def data_file(place: Path | HubData | None, split: str) -> Path | None:
    """The file on this machine. A file of the hub is fetched first. `split` is a key of SPLITS.

    Raises NotFetched, and ValueError where the repository does not have exactly one file for the split."""
    return fetch(place, split)[0] if isinstance(place, HubData) else place


def pinned_data(place: Path | HubData | None, split: str) -> Path | HubData | None:
    """The place by commit and path, so that it names the same file tomorrow."""
    return fetch(place, split)[1] if isinstance(place, HubData) else place


@cache
def fetch(data: HubData, split: str) -> tuple[Path, HubData]:
    """The file in huggingface_hub's cache, and its place on the hub by commit and path."""
    if data.path is None:
        data = replace(data, path=file_of_split(data, split))
    try:
        directory = Path(huggingface_hub.snapshot_download(data.repo, repo_type="dataset", revision=data.revision,
                                                           allow_patterns=[glob.escape(data.path)]))
    except Exception as error:  # also errors of the network library, which differs between versions of huggingface_hub
        raise NotFetched(reason(data, error)) from None
    file = directory / data.path
    if not file.is_file():
        raise NotFetched(f"{data}: the data set has no such file at commit {directory.name}; "
                         f"see https://huggingface.co/datasets/{data.repo} for its files")
    return file, replace(data, revision=directory.name)


def file_of_split(data: HubData, split: str) -> str:
    """The only readable file that is named after the split. Raises ValueError, naming the candidates."""
    try:
        files = huggingface_hub.list_repo_files(data.repo, repo_type="dataset", revision=data.revision)
    except Exception as error:
        raise NotFetched(reason(data, error)) from None
    readable = sorted(file for file in files if Path(file).suffix.lower() in SUFFIXES)
    named = [file for file in readable
             if any(re.search(f"(?<![a-z]){name}", Path(file).name.lower()) for name in SPLITS[split])]
    if len(named) == 1:
        return named[0]
    if not readable:
        raise ValueError(f"{data}: the data set has no file that can be read here ({', '.join(SUFFIXES)})")
    shown = [str(replace(data, path=file)) for file in named or readable]
    raise ValueError(f"{data}: {len(named) or 'none'} of its {len(readable)} readable files "
                     f"{'are' if len(named) > 1 else 'is'} named after the {split} split; give one of: "
                     f"{', '.join(shown[:20])}{', ...' if len(shown) > 20 else ''}")
