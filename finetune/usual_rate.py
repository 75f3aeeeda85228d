"""The learning rate without --lr.

    lr = lr_m * (lam_in / lam_m)^p * sqrt((lora_alpha / rank) / s) * min(1, 256 / width) * d

| factor | what it is | why |
|---|---|---|
| lr_m | the rate of the method's row in `METHODS` | works on the embedded base, whose width is 256 |
| lam_in / lam_m | inputs averaged, over the method's own | the mean of n numbers is sqrt(n) times smaller: p = 1/2 |
| | | for QA-LoRA. QA-BLoRA's full core also adds up n times fewer of them: p = 1 |
| | | BLoRA's rank grows as its inputs get fewer, which makes up for it: p = 0 |
| s | the adapter's scaling; not lora_alpha / rank with `--scaling rslora` | s scales what B moves, not what A moves |
| width | the model's hidden_size | Adam moves each weight alike, and a layer adds up `width` of them |
| d | 1/20 with --distill alone, else 1 | the model begins beside its teacher, and has no task to learn |

On the embedded base with the method's usual tile, it is lr_m. docs/learning-rate.md has the measurements.
"""
import math
from dataclasses import replace

from adapters.lam import Lam
from adapters.lora import SCALINGS
from finetune.config import RunConfig
from finetune.methods import Method

WIDTH = 256  # hidden_size of the embedded base
BESIDE_ITS_TEACHER = 1 / 20  # d
POWERS = {"qalora": 0.5, "qablora": 1.0}  # p; 0 for adapters that are not listed


def usual_inputs(method: Method) -> int | None:
    """The inputs that the method averages unless --lam or --block say otherwise; None: its row does not say."""
    place = method.block if method.lam == "block" else method.lam
    return Lam.parse(place).lam_in if place else None


def factors(config: RunConfig, width: int) -> dict[str, float]:
    """What the method's rate is multiplied by, in words, but for factors of 1."""
    adapter, method = config.adapter, config.of_method
    found = {f"min(1, {WIDTH}/{width}) for hidden_size {width}": min(1.0, WIDTH / width)}
    if adapter.lam and adapter.operators == "avgpool" and (usual := usual_inputs(method)):
        inputs, power = adapter.lam.lam_in, POWERS.get(method.adapter, 0.0)
        found[f"({inputs}/{usual})^{power:g} for --lam {adapter.lam}"] = (inputs / usual) ** power
    if adapter.lam:
        plain, s = (SCALINGS[name](adapter.lora_alpha, adapter.rank) for name in ("lora", adapter.scaling))
        found[f"{adapter.rank}^(-1/4) for --scaling {adapter.scaling}"] = math.sqrt(plain / s)
    if config.training.distill == 1 and not config.training.distill_from:
        found["1/20 for --distill"] = BESIDE_ITS_TEACHER
    return {words: factor for words, factor in found.items() if factor != 1}


def with_usual_rate(config: RunConfig, width: int) -> RunConfig:
    """The configuration with that rate, to three digits. A line says so if it is not that of the method."""
    found = factors(config, width)
    if config.of_method.lr is None or not found:
        return config
    lr = float(f"{config.of_method.lr * math.prod(found.values()):.2e}")
    print(f"--lr is not given: {lr:g} = {config.of_method.lr:g} of {config.of_method.title} * {' * '.join(found)}")
    return replace(config, training=replace(config.training, lr=lr))
