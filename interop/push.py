"""`export.py --push org/name`: an export on the Hugging Face hub, in one commit.

What can fail is tried first: the name, the network, the token, and the repository, which is created private. Then the
export is made, and its files go up. Files that name directories of this machine do not go up as they are: export.json
stays here, and adapter_config.json names its base without them.
"""
import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import huggingface_hub  # its functions are imported when they are first used: with its client, that takes 0.3 s

from interop.hand_over import REPORT
from interop.model_card import CARD, card_file
from interop.modelfile import modelfile_file
from interop.peft import CONFIG
from model.checksums import SUMS, sum_file
from model.files import read_json

LOGIN = "log in (hf auth login) or set HF_TOKEN, with a token that may write"


@dataclass(frozen=True)
class Destination:
    """A repository that exists and that this token may write to."""
    repo: str
    url: str

    @classmethod
    def prepared(cls, repo: str, public: bool) -> "Destination":
        """Creates the repository if there is none; one that is there keeps its visibility. Raises ValueError, and
        NotReached for a network that fails."""
        check_name(repo)
        from huggingface_hub import constants
        if constants.HF_HUB_OFFLINE:
            raise ValueError(f"--push {repo}: HF_HUB_OFFLINE is set, so nothing can be pushed: unset it, or export "
                             f"without --push")
        if not huggingface_hub.get_token():
            raise ValueError(f"--push {repo}: there is no token for {constants.ENDPOINT}: {LOGIN}")
        api = huggingface_hub.HfApi()
        check_role(repo, tried(repo, api.whoami))
        return cls(repo, str(tried(repo, api.create_repo, repo, private=not public, exist_ok=True)))

    def push(self, to: Path, message: str) -> None:
        """One commit with all files of the export. Raises ValueError, which says where the export is."""
        add = huggingface_hub.CommitOperationAdd
        operations = [add(name, content if isinstance(content, bytes) else str(content))
                      for name, content in files_to_push(to).items()]
        try:
            tried(self.repo, huggingface_hub.HfApi().create_commit, self.repo, operations, commit_message=message)
        except (ValueError, OSError) as error:
            raise ValueError(f"{error}. The export is complete in {to}; to push it by hand: hf upload {self.repo} "
                             f"{to}") from None


class NotReached(OSError):
    """The message is one line: what is wrong, and what to do."""


def check_name(repo: str) -> None:
    """Raises ValueError for a text that is no org/name."""
    if repo.count("/") != 1:
        raise ValueError(f"--push {repo}: the form is org/name, as in my-name/my-model")
    from huggingface_hub.utils import HFValidationError, validate_repo_id
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"--push {repo}: {str(error).splitlines()[0]}") from None


def check_role(repo: str, who: dict[str, Any]) -> None:
    """Raises ValueError for a token that may only read. What a fine-grained one may do, create_repo finds out."""
    if ((who.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
        raise ValueError(f"--push {repo}: the token of {who.get('name')} may only read: {LOGIN}")


def tried(repo: str, call: Callable, *args: Any, **more: Any) -> Any:
    """What the call returns. Raises `refusal`."""
    try:
        return call(*args, **more)
    except Exception as error:  # also those of the network library, which depends on huggingface_hub's version
        raise refusal(repo, error) from None


def refusal(repo: str, error: Exception) -> Exception:
    """The failure in one line. It holds no token."""
    from huggingface_hub import constants, errors
    site = constants.ENDPOINT
    said = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return ValueError(f"--push {repo}: {site} does not accept the token ({said}): {LOGIN}")
    if isinstance(error, errors.RepositoryNotFoundError) or status in (403, 404):
        return ValueError(f"--push {repo}: {site} does not let this token write there ({said}): check the "
                          f"organisation's name, and {LOGIN}")
    if isinstance(error, ValueError) or status is not None and status < 500:
        return ValueError(f"--push {repo}: {site} refuses it ({said})")
    return NotReached(f"--push {repo}: {site} was not reached ({said})")


# ---- the files ----------------------------------------------------------------------------------------------------

def files_to_push(to: Path) -> dict[str, Path | bytes]:
    """Name in the repository -> the file, or its bytes where they differ. The card of a GGUF file becomes README.md,
    which the hub shows, and its Modelfile Modelfile."""
    if to.is_file():
        return {to.name: to, sum_file(to).name: sum_file(to), CARD: card_file(to), "Modelfile": modelfile_file(to)}
    found: dict[str, Path | bytes] = {}
    for path in sorted(path for path in to.rglob("*") if path.is_file() and path.name != REPORT):
        name = path.relative_to(to).as_posix()
        found[name] = config_to_push(path) if path.name == CONFIG else path
    for name in [name for name in found if Path(name).name == SUMS]:
        found[name] = sums_to_push(to, name, found)
    return found


def config_to_push(path: Path) -> bytes:
    """adapter_config.json with a base that lies on this machine by its last part: `base` is beside it."""
    config = read_json(path)
    base = Path(str(config["base_model_name_or_path"]))
    if base.is_absolute():
        config["base_model_name_or_path"] = base.name
    return (json.dumps(config, indent=2) + "\n").encode()


def sums_to_push(to: Path, sums: str, pushed: dict[str, Path | bytes]) -> bytes:
    """A SHA256SUMS of what is pushed: without export.json, and with the other bytes of adapter_config.json."""
    lines = []
    for line in (to / sums).read_text(encoding="utf-8").splitlines():
        stated, _, name = line.partition("  ")
        content = pushed.get((Path(sums).parent / name).as_posix())
        if content is not None:
            lines.append(f"{sha256(content).hexdigest() if isinstance(content, bytes) else stated}  {name}\n")
    return "".join(lines).encode()
