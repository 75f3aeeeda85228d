"""Data files of the Hugging Face hub: `org/name[@revision][:path/in/the/repository.csv]`.

Without a path it is the one file whose name holds the split's name. huggingface_hub keeps files where it keeps those of models, see model/hub.py.
"""
import glob
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from huggingface_hub import list_repo_files, snapshot_download
from huggingface_hub.utils import validate_repo_id

from model.hub import NotFetched, reason
from tasks.rows import SUFFIXES

SPLITS = {"train": ("train",), "test": ("test",), "validation": ("validation", "valid", "dev")}  # what a file of each is called


@dataclass(frozen=True)
class HubData:
    repo: str                    # org/name
    revision: str | None = None  # a branch, tag or commit; None: the main branch as it is today
    path: str | None = None      # of a file in the repository; None: the file that is called after the split
    kind, here = "dataset", "a file"

    @classmethod
    def parse(cls, text: str) -> "HubData":
        """Raises ValueError for what cannot be a name on the hub."""
        name, colon, path = text.partition(":")
        repo, at, revision = name.partition("@")
        if repo.count("/") != 1 or bool(at) != bool(revision) or bool(colon) != bool(path):
            raise ValueError(f"{text!r} is not of the form org/name, org/name@revision or org/name@revision:path/of/a/file")
        validate_repo_id(repo)
        if path and not Path(path).suffix.lower() in SUFFIXES:
            raise ValueError(f"{path} is none of {', '.join(SUFFIXES)}")
        if path and (path.startswith("/") or ".." in Path(path).parts):
            raise ValueError(f"{path} is no path inside a repository")
        return cls(repo, revision or None, path or None)

    def __str__(self) -> str:
        return f"{self.repo}{f'@{self.revision}' if self.revision else ''}{f':{self.path}' if self.path else ''}"


def data_file(place: Path | HubData | None, split: str) -> Path | None:
    """A file on this machine; what the hub holds is fetched first. `split` is a key of SPLITS. Raises NotFetched, and ValueError where
    the repository has not exactly one file for the split."""
    return fetch(place, split)[0] if isinstance(place, HubData) else place


def pinned_data(place: Path | HubData | None, split: str) -> Path | HubData | None:
    """The same file tomorrow, by commit and path."""
    return fetch(place, split)[1] if isinstance(place, HubData) else place


@cache
def fetch(data: HubData, split: str) -> tuple[Path, HubData]:
    """The file in huggingface_hub's cache, and where it lies on the hub for good."""
    if data.path is None:
        data = replace(data, path=file_of_split(data, split))
    try:
        directory = Path(snapshot_download(data.repo, repo_type="dataset", revision=data.revision, allow_patterns=[glob.escape(data.path)]))
    except Exception as error:  # beside its own, the errors of a network library that changes with huggingface_hub's version
        raise NotFetched(reason(data, error)) from None
    file = directory / data.path
    if not file.is_file():
        raise NotFetched(f"{data}: the data set has no such file at commit {directory.name}; {data.repo} alone lists what it has")
    return file, replace(data, revision=directory.name)


def file_of_split(data: HubData, split: str) -> str:
    """The only readable file of the repository that is called after the split. Raises ValueError, naming those that could be meant."""
    try:
        files = list_repo_files(data.repo, repo_type="dataset", revision=data.revision)
    except Exception as error:
        raise NotFetched(reason(data, error)) from None
    readable = sorted(file for file in files if Path(file).suffix.lower() in SUFFIXES)
    named = [file for file in readable if any(re.search(f"(?<![a-z]){name}", Path(file).name.lower()) for name in SPLITS[split])]
    if len(named) == 1:
        return named[0]
    if not readable:
        raise ValueError(f"{data}: the data set has no file that can be read here ({', '.join(SUFFIXES)})")
    shown = [str(replace(data, path=file)) for file in named or readable]
    raise ValueError(f"{data}: {len(named) or 'none'} of its {len(readable)} readable files {'are' if len(named) > 1 else 'is'} called after the "
                     f"{split} split; name one: {', '.join(shown[:20])}{', ...' if len(shown) > 20 else ''}")
