"""The rows of the plan `methods` on a real model, without its further parts."""
from experiments.cells.plan import Plan, Settings
from experiments.plans.method_rows import SMALL, methods
from experiments.plans.methods import ABOUT, Asked
from experiments.plans.rows import SCC, calibration
from model.checkpoint import load_config

WIDTH = 256  # hidden_size of the embedded base: usual rates fall with the width above it
EPOCHS = 2
REAL = """
Base: SmolLM2-135M-Instruct; usual rates times 256 / 576, for its hidden_size. Task: sql-create-context, 2,000 training
rows (a tenth for validation), batches of 32, 2 epochs, 256 test rows. Only QLoRA is rounded afterwards by GPTQ, which
takes longer than training."""


def plan(settings: Settings) -> Plan:
    """Raises ValueError without a model."""
    if settings.model is None:
        raise ValueError("the plan methods_real needs a model: give --model")
    slower = min(1.0, WIDTH / load_config(settings.model).hidden_size)
    asked = Asked("methods_real", settings, SCC.flags(settings, EPOCHS), calibration(settings), slower,
                  rounded=("qlora",))
    return Plan("methods_real", ABOUT + REAL, asked.cells([row for row in methods() if row.name in SMALL]))
