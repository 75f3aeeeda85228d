"""Models of the Hugging Face hub: `org/name`, or `org/name@revision`.

huggingface_hub keeps the files in the cache that all its users share (HF_HOME says where), goes on with an interrupted download, and with
HF_HUB_OFFLINE=1 takes what the cache has. Here is which files are asked for, and what is said where there is no getting them.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from huggingface_hub import constants, errors, snapshot_download
from huggingface_hub.utils import validate_repo_id

from model.checkpoint import INDEX, load_config, weight_files, weight_names
from model.tokenizer import FILES, tokenizer_file

SMALL = ("config.json", "generation_config.json", *FILES, "tokenizer_config.json", "special_tokens_map.json", INDEX)


@dataclass(frozen=True)
class HubModel:
    repo: str                    # org/name
    revision: str | None = None  # a branch, tag or commit; None: the main branch as it is today
    kind, here = "model", "a directory"

    @classmethod
    def parse(cls, text: str) -> "HubModel":
        """Raises ValueError for what cannot be a name on the hub."""
        repo, at, revision = text.partition("@")
        if repo.count("/") != 1 or bool(at) != bool(revision):
            raise ValueError(f"{text!r} is not of the form org/name or org/name@revision")
        validate_repo_id(repo)
        return cls(repo, revision or None)

    @property
    def name(self) -> str:
        return self.repo.partition("/")[2]

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


class NotFetched(FileNotFoundError):
    """One line: what is wrong, and what to do."""


def directory_of(place: Path | HubModel) -> Path:
    """A directory on this machine; what the hub holds is fetched first. Raises NotFetched."""
    return fetch(place) if isinstance(place, HubModel) else place


def pinned(place: Path | HubModel) -> Path | HubModel:
    """The same place tomorrow: a branch of the hub moves, its commit does not. huggingface_hub names a snapshot's directory after it."""
    return HubModel(place.repo, fetch(place).name) if isinstance(place, HubModel) else place


@cache
def fetch(model: HubModel) -> Path:
    """The cache's directory of the model's commit. The small files come first, so that a model that cannot be read here is refused
    before gigabytes have come."""
    directory = snapshot(model, SMALL)
    load_config(directory)
    tokenizer_file(directory)
    commit = HubModel(model.repo, directory.name)
    snapshot(commit, weight_names(directory))
    try:
        weight_files(directory)
    except FileNotFoundError:
        raise NotFetched(f"{commit}: no safetensors came to {directory} (neither model.safetensors nor {INDEX} with all its "
                         f"shards); weights in other formats are not read from the hub") from None
    return directory


def snapshot(model: HubModel, names: Sequence[str]) -> Path:
    """Those of the files that the repository has. Raises NotFetched."""
    try:
        return Path(snapshot_download(model.repo, revision=model.revision, allow_patterns=list(names)))
    except Exception as error:  # beside its own, the errors of a network library that changes with huggingface_hub's version
        raise NotFetched(reason(model, error)) from None


def reason(place, error: Exception) -> str:
    """One line. `place` is a HubModel, or another place of the hub that says what `kind` of repository it is of, and what would be `here`."""
    login = "log in (hf auth login) or set HF_TOKEN"
    page = f"{constants.ENDPOINT}/{'' if place.kind == 'model' else f'{place.kind}s/'}{place.repo}"
    said = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    reasons = {  # the first that fits: a gated repository is one that is not found, too
        errors.GatedRepoError: f"{place} is gated: accept its licence at {page}, then {login}",
        errors.RepositoryNotFoundError: f"{place}: neither {place.here} here nor a {place.kind} at {constants.ENDPOINT}; if it is a private one, {login}",
        errors.RevisionNotFoundError: f"{place.repo} has no revision {place.revision}: give a branch, a tag or a whole commit hash that is "
                                      f"listed at {page}/commits",
        errors.LocalEntryNotFoundError: f"{place} is not {place.here} here, is not (whole) in the cache {constants.HF_HUB_CACHE}, and "
                                        f"{constants.ENDPOINT} was not reached ({said}); without network, give {place.here.replace(' ', ' local ')}",
        Exception: f"{place} could not be fetched from {constants.ENDPOINT} ({said}); {place.here.replace(' ', ' local ')} needs no network"}
    return next(text for kind, text in reasons.items() if isinstance(error, kind))
