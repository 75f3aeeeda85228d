"""The steps of one implementation in one process: what `training_step.py` starts. Prints one line of JSON.

    python one_process.py ours TREE METHOD WORKLOAD SETTINGS
"""
import json
import random
import resource
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

HELD = ExitStack()  # of contexts that last as long as the process
Rows = list[tuple[list[int], int]]  # token ids, and how many of them are the prompt


def main() -> None:
    kind, tree, method, workload, text = sys.argv[1:]
    settings = json.loads(text)
    if kind == "ours":
        sys.path.insert(0, tree)
    step, batches = (ours if kind == "ours" else peers)(method, workload, settings)
    if kind == "ours":
        keep_blocks()
    before = peak_mb()
    losses = [step(batches[0])]
    wall, processor = time.perf_counter(), time.process_time()
    timed = [batches[i % len(batches)] for i in range(1, settings["steps"] + 1)]
    losses += [step(batch) for batch in timed]
    n = len(timed)
    print(json.dumps({"wall": (time.perf_counter() - wall) / n, "processor": (time.process_time() - processor) / n,
                      "tokens": sum(len(tokens) for batch in timed for tokens, _ in batch) / n,
                      "peak_mb": peak_mb(), "before_training_mb": before, "losses": losses}))


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def batches_of(workload: str, settings: dict) -> list[Rows]:
    """The same rows for every implementation, in batches of similar length."""
    rng = random.Random(0)
    if workload == "fixed":
        return [[([rng.randrange(10, 49000) for _ in range(128)], 1) for _ in range(8)] for _ in range(4)]
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(Path(settings["model"]) / "tokenizer.json"))
    texts = [json.loads(line) for line in Path(settings["data"]).read_text().splitlines()[:512]]
    rows = []
    for row in texts:
        prompt = tokenizer.encode(f"{row['context']}\nQuestion: {row['question']}\nQuery:").ids
        rows.append((prompt + tokenizer.encode(f" {row['answer']}").ids + [0], len(prompt)))
    rows.sort(key=lambda row: len(row[0]))
    batches = [rows[start:start + 16] for start in range(0, len(rows), 16)]
    rng.shuffle(batches)
    return batches


def ours(method: str, workload: str, settings: dict) -> tuple[Callable[[Rows], float], list[Rows]]:
    import torch

    import train as train_script  # noqa: F401  what the command imports, memory included
    from adapters.adapted import adapter_parameters
    from finetune.adapted_model import attach_adapters
    from finetune.command_line import train_parser
    from finetune.loop import summed_loss
    from finetune.quantize import load_base
    from finetune.resolve import resolve_run
    from finetune.source import Source
    from tasks.task import Encoded
    given = train_parser().given(["--model", settings["model"], "--method", method, "--targets", "attention", "--dtype",
                                  settings["dtype"], *settings["flags"]])  # rank 16 is the default
    config = resolve_run(given)
    torch.manual_seed(0)
    model, _ = load_base(Source(config.base.model), config.base, config.compute, None)
    model.requires_grad_(False)
    attach_adapters(model, config)
    model.train()
    parameters = list(adapter_parameters(model).values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)

    def step(rows: Rows) -> float:
        loss, n = summed_loss(model, [Encoded(*row) for row in rows])
        (loss / n).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item() / n
    return step, batches_of(workload, settings)


def keep_blocks() -> None:
    """As `Trainer.run` does; older commits do not."""
    try:
        from finetune.allocator import kept_blocks
    except ModuleNotFoundError:
        return
    HELD.enter_context(kept_blocks())


def peers(method: str, workload: str, settings: dict) -> tuple[Callable[[Rows], float], list[Rows]]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    dtype = getattr(torch, settings["dtype"])
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=dtype, device_map={"": "cpu"},
                                                 quantization_config=nf4 if method == "qlora" else None)
    model.requires_grad_(False)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, lora_dropout=0.0, target_modules=[
        "q_proj", "k_proj", "v_proj", "o_proj"]))
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)

    def step(rows: Rows) -> float:
        longest = max(len(tokens) for tokens, _ in rows)
        ids, labels = torch.zeros(len(rows), longest, dtype=torch.long), torch.full((len(rows), longest), -100)
        mask = torch.zeros_like(ids)
        for i, (tokens, prompt) in enumerate(rows):
            ids[i, :len(tokens)], mask[i, :len(tokens)] = torch.tensor(tokens), 1
            labels[i, prompt:len(tokens)] = torch.tensor(tokens[prompt:])
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()
    return step, batches_of(workload, settings)


if __name__ == "__main__":
    main()
