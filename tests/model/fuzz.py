"""Damaged files for every reader: `python -m tests.model.fuzz CASES [READER ...]`, in the root of the project.

Nothing but ValueError or OSError may leave a reader, its message has to name the user's file, and no case may take more
than SECONDS or MEMORY. Prints, for each reader, how many cases loaded and how many were refused.
"""
import json
import os
import resource
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load, load_file, save, save_file

from adapters.peft_in import CONFIG as PEFT_CONFIG
from adapters.peft_in import WEIGHTS as PEFT_WEIGHTS
from adapters.peft_in import read_peft
from model.checkpoint import empty_model, load_model, random_model, save_model
from model.config_json import config_to_json
from model.directory import INDEX, load_config, weight_files
from model.gguf_reader import gguf_config, read_gguf
from model.tokenizer import load_tokenizer
from quant.grid import Block
from quant.linear import QuantLinear
from quant.minmax import MinMax
from tests.model.test_model import TINY
from tests.model.test_tokenizer import BOS, EOS, json_tokenizer, small_sentencepiece
from tests.prebuilt import TOOLS, WIDE, write_model

SECONDS, MEMORY, CHUNK = 5, 1 << 30, 1000  # of one case; of CHUNK cases, beyond what the imports take
NUMBERS = [0, 1, -1, 2, 3, 31, 127, 255, 1 << 16, 10 ** 6, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40,
           (1 << 63) - 1,
           1 << 63, (1 << 64) - 1, 10 ** 30, -(1 << 63)]
TEXTS = ["", "a", "0", "1e-5", "\0", "../x", "/etc/passwd", "x" * 300, "\ud83d", "<s>", "(a+)+$", "(a|a)*b", "[",
         "a{9999999}",
         ".*.*.*.*x", "float16", "llama", "yarn", "default", "q_proj", "null", "U8", "F8_E4M3", "I64"]
SCALARS = st.one_of(st.none(), st.booleans(), st.sampled_from(NUMBERS), st.sampled_from(TEXTS), st.text(max_size=8),
                    st.sampled_from([0.0, -0.5, 1e-45, 1e308, 16.0, float("nan"), float("inf"), -float("inf")]))
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.sampled_from(TEXTS) | st.text(max_size=5), inner, max_size=3), max_leaves=6)
DEEP = "[" * 100_000 + "]" * 100_000


class TooLong(BaseException):
    """A case took longer than SECONDS. Not caught as an Exception by what is tested."""


# ---- damage -------------------------------------------------------------------------------------------------------

def places(value, path=()):
    """Every path into a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


@st.composite
def damaged_json(draw, base: dict, more: tuple[str, ...] = ()) -> bytes:
    """A JSON object with some values replaced, removed or added; now and then damaged as text too.

    more: keys that the base lacks and that the reader looks at."""
    value = json.loads(json.dumps(base))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(value))[:400]))
        if more and draw(st.booleans()):
            path = (draw(st.sampled_from(more)),)
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        if not path:
            if draw(st.integers(0, 9)) == 0:
                value = draw(VALUES)
                break
        elif draw(st.integers(0, 4)) == 0 and not (isinstance(holder, dict) and path[-1] not in holder):
            del holder[path[-1]]
        else:
            holder[path[-1]] = draw(VALUES)
    text = json.dumps(value)
    kind = draw(st.integers(0, 19))
    if kind == 0:
        text = text[:draw(st.integers(0, len(text)))]
    elif kind == 1 and text.startswith("{\""):
        text = "{" + text[1:-1] + ", " + text[1:]  # every key twice
    elif kind == 2:
        text = "{\"a\": " + DEEP + "}"
    elif kind == 3:
        text = text.replace("32", "9" * 5000, 1)
    data = text.encode()
    return draw(damaged_bytes(data)) if kind == 4 else data


@st.composite
def damaged_bytes(draw, base: bytes, head: int | None = None) -> bytes:
    """Bytes with some replaced by numbers or others, cut out, doubled, or cut off. head: most damage lies before it."""
    data = bytearray(base)
    for _ in range(draw(st.integers(1, 3))):
        end = max(1, min(len(data), head) if head and draw(st.integers(0, 3)) else len(data))
        place, kind = draw(st.integers(0, end - 1)), draw(st.integers(0, 7))
        if kind <= 3:
            width = draw(st.sampled_from([1, 2, 4, 8]))
            number = draw(st.sampled_from(NUMBERS)) % (1 << 8 * width)
            data[place:place + width] = number.to_bytes(width, "little")
        elif kind == 4:
            new = draw(st.binary(min_size=1, max_size=12))
            data[place:place + len(new)] = new
        elif kind == 5:
            del data[place:place + draw(st.sampled_from([1, 4, 8, 100]))]
        elif kind == 6:
            data[place:place] = data[place:place + draw(st.sampled_from([1, 8, 64]))]
        elif draw(st.integers(0, 3)) == 0:
            del data[place:]
    return bytes(data)


@st.composite
def damaged_safetensors(draw, base: bytes) -> bytes:
    """Bytes, or a header of other values with the same data behind it."""
    if draw(st.integers(0, 2)) == 0:
        return draw(damaged_bytes(base, 400))
    length = int.from_bytes(base[:8], "little")
    header = draw(damaged_json(json.loads(base[8:8 + length])))
    return len(header).to_bytes(8, "little") + header + base[8 + length:]


@st.composite
def changed_tensors(draw, base: bytes) -> bytes:
    """A whole file in which parts of one layer of codes have other values, shapes or types, or are missing."""
    tensors = load(base)
    parts = [name for name in sorted(tensors) if "up_proj" in name]
    for name in draw(st.lists(st.sampled_from(parts), min_size=1, max_size=3, unique=True)):
        tensor, kind = tensors[name], draw(st.integers(0, 6))
        if kind == 0:
            del tensors[name]
        elif kind == 1:
            tensors[name] = tensor.flatten()[:draw(st.integers(0, 9))].clone()
        elif kind == 2:
            tensors[name] = tensor[None].clone() if draw(st.booleans()) else tensor.flatten()
        elif kind == 3:
            tensors[name] = tensor.to(draw(st.sampled_from([torch.float16, torch.int32, torch.uint8, torch.int64])))
        elif kind == 4:
            tensors[name] = tensor.permute(list(range(tensor.ndim))[::-1]).contiguous()
        else:
            value = draw(st.sampled_from([0, 1, 2, 3, 48, 64, 100, 255, 2 ** 31 - 1]))
            flat = tensors[name].clone().flatten()
            most = value if tensor.is_floating_point() else torch.iinfo(flat.dtype).max
            flat[:draw(st.integers(1, 9))] = min(value, most)
            tensors[name] = flat.view(tensor.shape)
    return save(tensors)


# ---- readers ------------------------------------------------------------------------------------------------------

def forget_checksums(path: Path) -> None:
    """Otherwise every damage would end there, and no other check would be reached."""
    with safe_open(path, "pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != "sha256"}
    save_file(load_file(path), path, metadata)


def small_model(directory: Path) -> Path:
    """A directory of a model with dense and quantized layers."""
    directory.mkdir(parents=True)
    model = random_model(TINY, torch.float32, 0)
    for layer in model.model.layers:
        weight = layer.mlp.up_proj.weight.detach()
        layer.mlp.up_proj = QuantLinear.from_weight(MinMax(4, Block(4, 8)).quantize(weight))
    save_model(model, directory / "model.safetensors")
    forget_checksums(directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config_to_json(TINY)))
    return directory


def use_tokenizer(directory: Path) -> None:
    tokenizer = load_tokenizer(directory)
    ids = tokenizer.encode("a lost card</s>\0 \u00e9<|im_start|>x")
    tokenizer.decode([*ids, 10 ** 6])
    tokenizer.token(3), tokenizer.token(10 ** 6)


def use_config(directory: Path) -> None:
    config = load_config(directory)
    if config.num_hidden_layers < 5:
        empty_model(config, torch.float32)
    config_to_json(config)


def use_model(directory: Path) -> None:
    load_model(weight_files(directory), TINY, torch.float32)


def use_prebuilt(directory: Path) -> None:
    load_model(weight_files(directory), load_config(directory), torch.float32)


def use_gguf(path: Path) -> None:
    gguf_config(read_gguf(path))
    load_model(weight_files(path), load_config(path), torch.float32)
    use_tokenizer(path)


def small_gguf(path: Path) -> bytes:
    from tests.gguf_files import add_tensor, gguf, gguf_name
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {"embedding_length": 32, "feed_forward_length": 32, "block_count": 1, "attention.head_count": 2,
                       "context_length": 64}.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_float32("llama.rope.scaling.factor", 4.0)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "a", "b"]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([2, 3, 3, *[6] * 256, 1, 1])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    from dataclasses import replace
    config = replace(TINY, vocab_size=len(tokens), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                     num_attention_heads=2, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True)
    for name, weight in random_model(config, torch.float32, 0).state_dict().items():
        if name != "lm_head.weight":
            add_tensor(writer, gguf_name(name), weight, "Q4_1" if "proj" in name else "F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def small_peft(directory: Path) -> Path:
    directory.mkdir()
    stated = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {"layers.1.self_attn.q_proj": 2},
              "alpha_pattern": {"q_proj": 8}, "use_rslora": False, "bias": "none", "init_lora_weights": True}
    (directory / PEFT_CONFIG).write_text(json.dumps(stated))
    tensors = {f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_{side}.weight": torch.ones(shape)
               for i in range(2) for side, shape in (("A", (2, 24)), ("B", (24, 2)))}
    save_file(tensors, directory / PEFT_WEIGHTS)
    return directory


PREBUILT = ("gptq", "awq", "compressed-tensors asymmetric", "bitsandbytes", "hqq")
Case = tuple[Path, st.SearchStrategy, Callable[[Path], None], Path]


def readers(root: Path) -> dict[str, Case]:
    """Name -> the file that is damaged, its contents, the reader, and what it is given."""
    model, index = small_model(root / "model"), small_model(root / "index")
    config = config_to_json(TINY) | {"sliding_window": 4, "max_window_layers": 1, "query_pre_attn_scalar": 4}
    (index / "model.safetensors").rename(index / "a.safetensors")
    weights = (model / "model.safetensors").read_bytes()
    shards = {"metadata": {"total_size": 32}, "weight_map": {"model.norm.weight": "a.safetensors",
                                                             "lm_head.weight": "a.safetensors"}}
    (root / "json").mkdir()
    json_tokenizer(root / "json", True, bos_token=BOS, eos_token=EOS)
    tokenizer = json.loads((root / "json" / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = dict(list(tokenizer["model"]["vocab"].items()))
    beside = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": True, "legacy": False,
              "added_tokens_decoder": {"2": {"content": "</s>", "special": True}, "300": {"content": "<|im_start|>"}}}
    for name in ("sp", "beside", "added"):
        (root / name).mkdir()
        (root / name / "tokenizer.model").write_bytes(small_sentencepiece())
    peft, ends = small_peft(root / "peft"), {"eos_token_id": [2, 3]}
    special = {"bos_token": BOS, "eos_token": {"content": EOS}, "additional_special_tokens": ["a", {"content": "b"}]}
    made = {
        "config.json": (root / "model" / "config.json", damaged_json(config, (
            "rope_scaling", "rope_parameters", "rope_theta", "layer_types", "model_type", "quantization_config",
            "eos_token_id", "tie_word_embeddings", "model_config", "original_max_position_embeddings")), use_config,
            root / "model"),
        "generation_config.json": (root / "model" / "generation_config.json", damaged_json(ends), use_config,
                                   root / "model"),
        "special_tokens_map.json": (root / "json" / "special_tokens_map.json", damaged_json(special), use_tokenizer,
                                    root / "json"),
        "safetensors": (root / "weights" / "model.safetensors", damaged_safetensors(weights), use_model,
                        root / "weights"),
        "index": (index / INDEX, damaged_json(shards), use_model, index),
        "gguf": (root / "x.gguf", damaged_bytes(small_gguf(root / "x.gguf"), 700), use_gguf, root / "x.gguf"),
        "tokenizer.json": (root / "json" / "tokenizer.json", damaged_json(tokenizer), use_tokenizer, root / "json"),
        "tokenizer.model": (root / "sp" / "tokenizer.model", damaged_bytes(small_sentencepiece()), use_tokenizer,
                            root / "sp"),
        "tokenizer_config.json": (root / "beside" / "tokenizer_config.json", damaged_json(beside), use_tokenizer,
                                  root / "beside"),
        "added_tokens.json": (root / "added" / "added_tokens.json", damaged_json({"<|im_start|>": 300, "</s>": 2}),
                              use_tokenizer, root / "added"),
        "adapter_config.json": (peft / PEFT_CONFIG, damaged_json(json.loads((peft / PEFT_CONFIG).read_text()), (
            "exclude_modules", "eva_config", "rank_pattern", "alpha_pattern", "use_dora", "lora_alpha")),
            lambda place: read_peft(place, TINY), peft),
        "quantization_config": (root / "settings" / "config.json", st.one_of(*(
            damaged_json({**config_to_json(WIDE), "quantization_config": tool.config}) for tool in TOOLS.values())),
            use_config, root / "settings")}
    for name in PREBUILT:
        write_model(TOOLS[name], root / name, root / "json")
        file = root / name / "model.safetensors"
        whole = file.read_bytes()
        damage = st.one_of(damaged_safetensors(whole), *[changed_tensors(whole)] * 3)
        made[name] = file, damage, use_prebuilt, root / name
    for file, whole in {root / "weights" / "model.safetensors": weights, index / INDEX: json.dumps(shards).encode(),
                        root / "settings" / "config.json": json.dumps(config_to_json(WIDE)).encode(),
                        root / "beside" / "tokenizer_config.json": json.dumps(beside).encode(),
                        root / "model" / "generation_config.json": json.dumps(ends).encode(),
                        root / "json" / "special_tokens_map.json": json.dumps(special).encode(),
                        root / "added" / "added_tokens.json": b'{"<|im_start|>": 300, "</s>": 2}'}.items():
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(whole)
    return made


# ---- the loop -----------------------------------------------------------------------------------------------------

def limit_memory() -> None:
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run(name: str, case: Case, root: Path, cases: int, number: int) -> Counter:
    damaged, contents, reader, place = case
    found: Counter = Counter()

    def stop(signum, frame):
        raise TooLong(f"{name}: more than {SECONDS} seconds")

    @seed(number)
    @settings(max_examples=cases, deadline=None, database=None,
              suppress_health_check=list(HealthCheck),
              phases=[Phase.generate])
    @given(contents)
    def check(data: bytes) -> None:
        damaged.write_bytes(data)
        signal.signal(signal.SIGALRM, stop)
        signal.alarm(SECONDS)
        try:
            reader(place)
            found["loaded"] += 1
        except (ValueError, OSError) as error:
            found[type(error).__name__] += 1
            assert str(root) in str(error), f"names no file: {error}"
        finally:
            signal.alarm(0)
    reader(place)  # control: the whole file loads
    check()
    return found


@settings(max_examples=1, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(VALUES)
def draw_once(value) -> None:
    """Hypothesis prepares its tables of characters at the first draw."""


def warm_up(directory: Path) -> None:
    """What the first case needs and the others find: done here once, and not in every child.

    PyTorch imports torch._dynamo, which takes a second, when the first model is built on the meta device."""
    draw_once()
    use_config(directory)


def in_a_child(work: Callable[[], Counter]) -> Counter:
    """Its result, from a process that is forked for it: memory of earlier cases, hypothesis's own too, does not count.

    Exits if the child does not end well; the child has said why."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            limit_memory()
            os.write(writing, json.dumps(work()).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit(f"a child ended with status {os.waitstatus_to_exitcode(status)}")
    with open(reading, "rb") as file:
        return Counter(json.loads(file.read()))


def main() -> None:
    cases, names = int(sys.argv[1]), sys.argv[2:]
    with TemporaryDirectory() as written:
        root = Path(written)
        made = readers(root)
        warm_up(root / "model")
        for name in names or made:
            whole, found = made[name][0].read_bytes(), Counter()
            for start in range(0, cases, CHUNK):
                made[name][0].write_bytes(whole)
                count = min(CHUNK, cases - start)
                try:
                    found += in_a_child(lambda name=name, count=count, start=start: run(
                        name, made[name], root, count, start))
                except SystemExit:
                    kept = Path("fuzz-failures")
                    kept.mkdir(exist_ok=True)
                    shutil.copy(made[name][0], kept / name)
                    print(f"{name}: the last case is kept in {kept.resolve()}", file=sys.stderr)
                    raise
            made[name][0].write_bytes(whole)
            print(f"{name}: {json.dumps(found)}", flush=True)


if __name__ == "__main__":
    main()
