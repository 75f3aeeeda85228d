"""The rows of the plan `methods` on a real model, with one of its further parts."""
from experiments.cells.plan import Plan, Settings
from experiments.plans.method_rows import real_rows
from experiments.plans.methods import ABOUT, REAL_SEEDS, Asked
from experiments.plans.rows import SCC, calibration
from model.directory import load_config

WIDTH = 256  # hidden_size of the embedded base: usual rates fall with the width above it
EPOCHS = 2
REAL = """
Base: SmolLM2-135M-Instruct; usual rates times 256 / 576, for its hidden_size. Task: sql-create-context, 2,000 training
rows (a tenth for validation), batches of 32, 2 epochs, 256 test rows. Only QLoRA and LoRA are rounded afterwards by
GPTQ, which takes longer than training. Changed after the first 54 cells of this plan, since a GPU was lent for 15
minutes at a time: seed 0 only, and 3 bits use the rates tuned at 4 bits. (After 12 rates at 2 bits, 2 bits used them,
too. That was taken back, since QA-BLoRA's rate of 4 bits is far from its best at 2: every row has rates of its own at 2
bits.)"""


def plan(settings: Settings) -> Plan:
    """Raises ValueError without a model."""
    if settings.model is None:
        raise ValueError("the plan methods_real needs a model: give --model")
    slower = min(1.0, WIDTH / load_config(settings.model).hidden_size)
    asked = Asked("methods_real", settings, SCC.flags(settings, EPOCHS), calibration(settings), slower,
                  ("qlora", "lora-rounded"), REAL_SEEDS)
    return Plan("methods_real", ABOUT + REAL, asked.cells(real_rows()))
