"""The untrained bases of the comparison of methods: which training ended above them, and how far they lie apart."""
from experiments.claims.evidence import Cells, Facts
from model.files import some

NAMED = 6
LITTLE = 1 / 3  # of the loss before training
SHARED = {"full": "lora", "blora": "lora", "qblora": "qlora", "codes": "qlora", "lota": "qalora"}  # named after a row


def base_losses(cells: Cells, plan: str) -> dict[tuple[str, int], float]:
    """Validation loss of each untrained base, by the row that it is named after and its width."""
    return {(facts["tags"]["row"], facts["tags"]["bits"]): state["validation_loss"] for facts in cells.facts.values()
            if facts["plan"] == plan and facts["tags"]["role"] == "base" for state in facts["states"].values()}


def base_of(row: str) -> str:
    """The row that the base of a row is named after: that of `qblora-2-truncation` is QLoRA's."""
    if row.endswith("-gptq"):
        return "qalora"
    if row.startswith("qablora-"):
        return "-".join(row.split("-")[:2])
    first = row.split("-")[0]
    return SHARED.get(first, first)


def untrained_loss(losses: dict[tuple[str, int], float], row: str, bits: int) -> float | None:
    """Of the row's own base, or the highest of its width where that was not scored."""
    of_width = [loss for (_, width), loss in losses.items() if width == bits]
    return losses.get((base_of(row), bits), max(of_width, default=None))


def last_loss(facts: Facts) -> float | None:
    """At the end of the training. None: it did not get so far."""
    training = facts.get("training") or {}
    ends = [step["validation_loss"] for step in training.get("validations", []) if "validation_loss" in step]
    return ends[-1] if ends else training.get("best_validation_loss")


def of_divergence(cells: Cells, plan: str) -> list[str]:
    """How often training broke off, and how often it ended above the loss that it began with."""
    trained = {name: facts for name, facts in cells.facts.items() if facts["plan"] == plan and facts.get("training")}
    broken = [name for name, facts in trained.items() if "diverged" in facts["training"]]
    losses, above, little = base_losses(cells, plan), [], 0
    for name, facts in trained.items():
        base, end = untrained_loss(losses, facts["tags"]["row"], facts["tags"]["bits"]), last_loss(facts)
        if base is None or end is None or name in broken:
            continue
        if end > base:
            above.append(f"{name} ({end:.2f}, base {base:.2f})")
        elif end > base * (1 - LITTLE):
            little += 1
    return [f"Of {len(trained)} cells that were trained, {len(broken)} broke off as the loss was not finite"
            f"{few(broken)}. {len(above)} ended above the validation loss of the untrained base of their width"
            f"{few(above)}. {little} more lowered that loss by less than a third."]


def few(names: list[str]) -> str:
    """`: a; b and 3 more`"""
    return f": {some(names, NAMED, '; ')}" if names else ""


def of_bases(cells: Cells) -> list[str]:
    """What QA-BLoRA and QA-LoRA begin from on a real model at 2 bits."""
    losses = base_losses(cells, "methods_real")
    qablora, qalora = (losses.get((row, 2)) for row in ("qablora-4x8", "qalora"))
    if qablora is None or qalora is None:
        return []
    return [f"The base confounds QA-BLoRA beside QA-LoRA at 2 bits. QA-BLoRA's is rounded plainly in 4x8 blocks: "
            f"{qablora:.1f} nats before training. QA-LoRA's is rounded by GPTQ in 32x1: {qalora:.1f} nats."]
