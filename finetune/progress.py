"""The progress bar of training: the step, the time left, loss, learning rate and tokens a second.

    training  42%|####      | step 59/141, 3 min 20 s left, loss 1.832, lr 4.1e-03, 5310 tokens/s

An optimizer without a learning rate shows what it has instead (`sigma 9.7e-01`).
Nothing is shown unless stderr is a terminal. The time left counts the validations that are still to come.
"""
from tqdm import tqdm

FORMAT = "{desc} {percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt}{postfix}"


def training_bar(step: int, total: int) -> tqdm:
    return tqdm(desc="training", initial=step, total=total, bar_format=FORMAT, disable=None)


def seconds_left(steps: int, a_step: float, evaluations: int, an_evaluation: float) -> float:
    """`a_step` and `an_evaluation`: seconds that the latest ones took; 0 for what has not been yet."""
    return steps * a_step + evaluations * an_evaluation


def figures(left: float, loss: float, rate: tuple[str, float], tokens_per_s: float) -> str:
    name, value = rate
    return f"{in_words(left)} left, loss {loss:.3f}, {name} {value:.1e}, {tokens_per_s:.0f} tokens/s"


def in_words(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 05 min`, `3 d 04 h`"""
    rest = round(seconds)
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    for (name, size), (smaller, part) in zip(units, units[1:], strict=False):
        if rest >= size:
            return f"{rest // size} {name} {rest % size // part:02d} {smaller}"
    return f"{rest} s"
