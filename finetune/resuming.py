"""What a run holds itself when it goes on, and what of it must be whole."""
import math
from collections.abc import Callable

from finetune.kept import Kept, facts_of, is_another
from finetune.run import Run
from model.config_json import config_to_json
from model.directory import load_config
from model.durable import copy_file
from model.files import write_json
from model.tokenizer_files import copy_tokenizer


def holds_its_base(run: Run) -> bool:
    """Whether training goes on from the run's own files: its codes, or the state of weights that all train."""
    return run.base_file.is_file() or weights_from_state(run)


def weights_from_state(run: Run) -> bool:
    """Whether all weights train, and a state holds them. An earlier version does not say in which type to store
    them."""
    return run.config.adapter_kind is None and run.has_state() and "stored_as" in facts_of(run.kept_file)


def check_kept(run: Run, step: int, best: float, keep: Callable[[], None]) -> None:
    """What the finished epochs have kept must be there before training goes on from `step`. If the state is of the step
    at which it was kept, `keep` writes it again. Raises ValueError. `best`: the lowest validation loss so far."""
    if best == math.inf:
        return
    try:
        return read_whole(run)
    except (ValueError, FileNotFoundError) as error:
        kept_at = facts_of(run.kept_file).get("step")
        if kept_at != step:
            at = f" It was kept at step {kept_at}, and the state is of step {step}." if kept_at else ""
            raise ValueError(f"{error}.{at} Put a copy of it back; or delete {run.states.newest.parent}, and --resume "
                             f"trains again from the first step") from None
        print(f"{error}. Written again from the state, which is of the same step")
    keep()


def read_whole(run: Run) -> None:
    """Raises FileNotFoundError, and ValueError with the tensor that is not what was written, or for another file."""
    if not run.trained_file.is_file():
        raise FileNotFoundError(f"{run.trained_file} is missing")
    kept = Kept(run.trained_file, run.kept_file, ended=False)
    kept.tensors.check()
    if another := is_another(kept):
        raise ValueError(another)


def keep_base_of_gptq(run: Run) -> str:
    """The base of a run that diverged before anything was trained, as a model directory of its own: another run can
    start from it. Returns how, as the end of an error; nothing for a base that is made in a moment."""
    if not (run.base_file.is_file() and run.config.base.by_gptq):
        return ""
    place = run.path / "base"
    write_json(place / "config.json", config_to_json(load_config(run.path)))
    copy_tokenizer(run.path, place)
    copy_file(run.base_file, place / "model.safetensors")
    return (f". The base that GPTQ made is kept: train on it by --model {place} --quantizer none --method "
            f"{run.config.method}")
