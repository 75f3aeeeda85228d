"""PEFT's adapter_config.json: what it may say, and which layers it names.

Any entry is refused by name, unless it is read, is empty, or is known to change nothing.
"""
import re
from functools import cache
from pathlib import Path

from model.files import read_json

CONFIG = "adapter_config.json"
# The values that leave plain LoRA plain. None, False and empty always do.
PLAIN: dict[str, tuple] = {
    "bias": ("none",), "fan_in_fan_out": (False,), "use_dora": (False,), "lora_bias": (False,),
    "modules_to_save": (), "trainable_token_indices": (), "target_parameters": (), "megatron_config": (),
    "layer_replication": (), "alora_invocation_tokens": (), "corda_config": (),
    "arrow_config": (), "use_bdlora": (), "velora_config": (), "kasa_config": (), "monteclora_config": (),
    "lora_ga_config": (), "loftq_config": (), "ensure_weight_tying": (False,), "task_type": ("CAUSAL_LM",),
    # pissa, olora, corda, loftq and others change the base too: the adapter beside the original base is another model
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva")}
READ = ("peft_type", "r", "lora_alpha", "use_rslora", "use_qalora", "rank_pattern", "alpha_pattern", "target_modules",
        "exclude_modules", "layers_to_transform", "layers_pattern")
# They say where the adapter came from or how it was trained. megatron_core and qalora_group_size are always written,
# and have no effect without megatron_config and use_qalora.
WITHOUT_EFFECT = ("base_model_name_or_path", "revision", "inference_mode", "lora_dropout", "peft_version",
                  "auto_mapping", "runtime_config", "eva_config", "megatron_core", "qalora_group_size")


def read_config(directory: Path) -> dict:
    """adapter_config.json. Raises FileNotFoundError; ValueError if it states more than plain LoRA."""
    path = directory / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{directory}: no PEFT adapter there (no {CONFIG})")
    stated = read_json(path)
    if stated.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type {stated.get('peft_type')!r} is not read; LORA is")
    for name, value in stated.items():
        plain = value in (None, False, "", [], {}) and not isinstance(value, float) or value in PLAIN.get(name, ())
        if not plain and name not in (*READ, *WITHOUT_EFFECT):
            raise ValueError(f"{path}: {name[:60]} {repr(value)[:60]} is not plain LoRA, and not read")
    if not isinstance(stated.get("use_rslora") or False, bool):
        raise ValueError(f"{path}: use_rslora is {stated['use_rslora']!r}, but must be true or false")
    if not isinstance(stated.get("use_qalora") or False, bool):
        raise ValueError(f"{path}: use_qalora is {str(stated['use_qalora'])[:60]}, but must be true or false")
    if stated.get("use_qalora"):
        check_group(path, stated.get("qalora_group_size"))
    check_factor(path, "r", stated.get("r"))
    check_factor(path, "lora_alpha", stated.get("lora_alpha"))
    for name, what in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        patterns = stated.get(name) or {}
        if not isinstance(patterns, dict):
            raise ValueError(f"{path}: {name} is {str(patterns)[:60]}, but must be an object")
        for pattern, value in patterns.items():
            check_pattern(path, name, pattern)
            check_factor(path, f"{name} {pattern!r}", value, what)
    check_target_entries(path, stated)
    return stated


LARGEST_FACTOR = 1e6


def check_factor(path: Path, name: str, value: object, what: str | None = None) -> None:
    """Raises ValueError unless a rank is an integer, and lora_alpha a number, above 0 and not absurdly large."""
    kinds, words = (int, "an integer") if (what or name) == "r" else ((int, float), "a number")
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value <= LARGEST_FACTOR:
        raise ValueError(f"{path}: {name} is {str(value)[:60]}, not {words} above 0, up to {LARGEST_FACTOR:.0f}")


def check_group(path: Path, group: object) -> None:
    """Raises ValueError for a group that QA-LoRA cannot average. Beside a layer, a group of 1 has the shape of a plain
    LoRA, whose factor is another one."""
    if isinstance(group, bool) or not isinstance(group, int) or group < 2:
        raise ValueError(f"{path}: qalora_group_size is {str(group)[:60]}, but with use_qalora it must be a whole "
                         f"number above 1: the inputs that are averaged")


def check_pattern(path: Path, name: str, pattern: str, most: int = 2) -> None:
    """Raises ValueError for a regular expression that is wrong, or that may take very long to match.

    Names of layers are short. Without a repeated group, and with few repetitions, matching stays fast."""
    slow = re.search(r"\)\s*[*+{]|\(\?(?!:)|\\[1-9]", pattern)
    repeated = re.findall(r"[*+{]|(?<![(*+}])\?", pattern)
    if slow or len(repeated) > most or len(pattern) > 256:
        raise ValueError(f"{path}: {name} holds {pattern[:60]!r}, which may take very long to match: write the names "
                         f"of the layers, with at most {most} of * + ? {{ and none of * + {{ after a group")
    try:
        compiled_pattern(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: {name} holds {pattern[:60]!r}, which is no regular expression ({error})") from None


def check_target_entries(path: Path, stated: dict) -> None:
    """Raises ValueError unless the entries that name layers are texts, lists of texts, or numbers of layers."""
    for name in ("target_modules", "exclude_modules", "layers_pattern"):
        value = stated.get(name)
        if isinstance(value, str) and name != "layers_pattern":
            check_pattern(path, name, value, 4)
        names = [value] if isinstance(value, str) else value or []
        if not isinstance(names, list) or not all(isinstance(text, str) for text in names):
            raise ValueError(f"{path}: {name} is {str(value)[:60]}, but must be a text or a list of texts")
        if name == "layers_pattern" and not all(re.fullmatch("[A-Za-z0-9_]*", text) for text in names):
            raise ValueError(f"{path}: layers_pattern is {str(value)[:60]}, but must be names of modules")
    numbers = stated.get("layers_to_transform")
    for number in numbers if isinstance(numbers, list) else [numbers]:
        if number is not None and type(number) is not int:
            raise ValueError(f"{path}: layers_to_transform is {str(numbers)[:60]}, but must be integers")


def is_target(stated: dict, name: str) -> bool:
    """Whether PEFT would put an adapter beside the layer. A text is a regular expression for the whole name; a list
    holds ends of names, and only such layers are selected by their number."""
    def among(wanted: str | list[str]) -> bool:
        if isinstance(wanted, str):
            return re.fullmatch(wanted, name) is not None
        return any(name == end or name.endswith(f".{end}") for end in wanted)
    targets, numbers = stated["target_modules"], stated.get("layers_to_transform")
    if (excluded := stated.get("exclude_modules")) and among(excluded):
        return False
    if isinstance(targets, str) and targets.lower() == "all-linear":
        return name.startswith("model.layers.")
    if isinstance(targets, str) or name in targets or numbers in (None, []):
        return among(targets)
    pattern = stated.get("layers_pattern") or "[^.]*"
    place = re.match(rf".*?\.(?:{pattern if isinstance(pattern, str) else '|'.join(pattern)})\.(\d+)\.", name)
    chosen = numbers if isinstance(numbers, list) else [numbers]
    return among(targets) and place is not None and int(place[1]) in chosen


@cache
def compiled_pattern(pattern: str) -> re.Pattern:
    """The expression for names that end with `pattern`, after a dot."""
    return re.compile(rf"(.*\.)?({pattern})$")
