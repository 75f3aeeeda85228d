"""Models of the Hugging Face Hub: `org/name`, or `org/name@revision`.

huggingface_hub downloads files into the shared cache (HF_HOME sets its place) and resumes interrupted downloads. With
HF_HUB_OFFLINE=1 it uses only the cache. This file selects the files to download, and explains failures in one line.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import huggingface_hub  # its functions are imported when they are first used: with its client, that takes 0.3 s

from model.directory import INDEX, SINGLE, load_config, shard_names, weight_files
from model.tokenizer_files import FILES, TRAVELLING, tokenizer_file

CARD = ("README.md", "LICENSE", "LICENSE.txt", "LICENSE.md")  # they state the licence, for the card of an export
SMALL = ("config.json", "adapter_config.json", *FILES, *TRAVELLING, INDEX, *CARD)


@dataclass(frozen=True)
class HubModel:
    repo: str                    # org/name
    revision: str | None = None  # a branch, tag or commit; None: the current main branch
    kind, here = "model", "a directory"

    @classmethod
    def parse(cls, text: str) -> "HubModel":
        """Raises ValueError for text that cannot be a name on the Hub."""
        repo, at, revision = text.partition("@")
        if repo.count("/") != 1 or bool(at) != bool(revision):
            raise ValueError(f"{text!r} is not org/name or org/name@revision")
        from huggingface_hub.utils import validate_repo_id
        validate_repo_id(repo)
        return cls(repo, revision or None)

    @property
    def name(self) -> str:
        return self.repo.partition("/")[2]

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


class NotFetched(FileNotFoundError):
    """The message is one line: what is wrong, and what to do."""


def directory_of(place: Path | HubModel) -> Path:
    """A local directory. A model of the Hub is downloaded first. Raises NotFetched."""
    return fetch(place) if isinstance(place, HubModel) else place


def directory_here(place: Path | HubModel) -> Path:
    """As `directory_of`, without the network. Raises NotFetched for what is not in the cache."""
    if not isinstance(place, HubModel):
        return place
    from huggingface_hub import errors
    try:
        return Path(huggingface_hub.snapshot_download(place.repo, revision=place.revision, local_files_only=True))
    except errors.LocalEntryNotFoundError:
        raise NotFetched(f"{place} is not in the cache of the hub on this machine") from None


def pinned(place: Path | HubModel) -> Path | HubModel:
    """The same model in the future: a branch moves, a commit does not.

    huggingface_hub names the directory of a snapshot after its commit."""
    return HubModel(place.repo, fetch(place).name) if isinstance(place, HubModel) else place


@cache
def fetch(model: HubModel) -> Path:
    """The directory of the model's commit in the cache.

    Small files are downloaded and checked first: an unsupported model is refused before its weights are downloaded.
    Raises NotFetched, and ValueError as `load_config` does."""
    directory = snapshot(model, SMALL)
    load_config(directory)
    tokenizer_file(directory)
    commit = HubModel(model.repo, directory.name)
    snapshot(commit, [SINGLE])
    if (shards := shard_names(directory)) and not (directory / SINGLE).is_file():
        snapshot(commit, shards)
    try:
        weight_files(directory)
    except FileNotFoundError:
        raise NotFetched(f"{commit}: no safetensors in {directory}; needs model.safetensors, or {INDEX} with all its "
                         f"shards. Other formats (.bin, .pth, .gguf) are not read from the Hub") from None
    return directory


def snapshot(model: HubModel, names: Sequence[str]) -> Path:
    """Downloads the named files that the repository has. Raises NotFetched."""
    try:
        return Path(huggingface_hub.snapshot_download(model.repo, revision=model.revision, allow_patterns=list(names)))
    except Exception as error:  # also those of the network library, which depends on huggingface_hub's version
        raise NotFetched(reason(model, error)) from None


def reason(place, error: Exception) -> str:
    """The failure in one line. place: a HubModel, or another repository with its `kind` ("model") and the name of its
    local form, `here` ("a directory")."""
    from huggingface_hub import constants, errors
    kind, here = place.kind, place.here
    login = "log in (hf auth login) or set HF_TOKEN"
    local = here.replace(" ", " local ")
    site = constants.ENDPOINT
    page = f"{site}/{'' if kind == 'model' else f'{kind}s/'}{place.repo}"
    said = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    reasons = {  # the first that fits; a GatedRepoError is also a RepositoryNotFoundError
        errors.GatedRepoError: f"{place} is gated: accept its licence at {page}, then {login}",
        errors.RepositoryNotFoundError: f"{place}: neither {here} here nor a {kind} at {site}; "
                                      f"if it is private, {login}",
        errors.RevisionNotFoundError: f"{place.repo} has no revision {place.revision}: give a branch, a tag or a whole "
                                      f"commit hash that is listed at {page}/commits",
        errors.LocalEntryNotFoundError: f"{place} is not {here} here, is not (whole) in the cache "
                                        f"{constants.HF_HUB_CACHE}, and {site} was not reached ({said}); without "
                                        f"network, give {local}",
        Exception: f"{place} could not be fetched from {site} ({said}); {local} needs no network"}
    return next(text for known, text in reasons.items() if isinstance(error, known))
