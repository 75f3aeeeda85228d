"""The judge's prompt, the scores in its answer, and the verdict of both orders.

Source: Shen et al., Sec. 4.2, "Evaluations using GPT-4/ChatGPT".
"""
import re

TEMPLATE_VERSION = 1
WIN, TIE, LOSS, MALFORMED = "win", "tie", "loss", "malformed"
NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
TWO_SCORES = re.compile(rf"{NUMBER}(?:\s*,\s*|\s+){NUMBER}")


def judge_prompt(request: str, first: str, second: str) -> str:
    """Asks for a score from 1 to 10 for each of two answers to one request.

    Shen et al. state the scale but no wording, so the wording is ours. The prompt ends where the scores must begin. A
    local model without a chat template can thus be given the same prompt as an endpoint."""
    return (
        "Two assistants have answered the same request.\n\n"
        f"[Request]\n{request}\n\n[Answer 1]\n{first}\n\n[Answer 2]\n{second}\n\n[End]\n"
        "Score each answer from 1 to 10 by how correct, relevant, helpful and complete it is; 10 is the best. "
        "Neither the order in which the answers\nstand nor their length as such may count. "
        "Write one line of two numbers with a space between them, the score of answer 1 and the score of\n"
        "answer 2, and nothing else.\nScores:")


def read_scores(text: str) -> tuple[float, float] | None:
    """`read_scores("8 7.5\\n...") == (8.0, 7.5)`

    The first line that is not empty must be two numbers from 1 to 10, with white space or a comma between them, and
    nothing else. Otherwise the result is None: nothing is guessed."""
    line = text.strip().partition("\n")[0].strip()
    if not (found := TWO_SCORES.fullmatch(line)):
        return None
    first, second = float(found[1]), float(found[2])
    return (first, second) if 1 <= first <= 10 and 1 <= second <= 10 else None


def better(own: float, other: float) -> int:
    """1 if `own` is the better score of one order, 0 on a tie, -1 if it is the worse one."""
    return (own > other) - (own < other)


def verdict(a_first: tuple[float, float] | None, b_first: tuple[float, float] | None) -> str:
    """The verdict from the scores of both orders, each in the order shown:

        win   a is better in both orders, or in one and ties in the other
        tie   a tie in both orders, or better in one and worse in the other
        loss  a is worse in both orders, or in one and ties in the other

    It is malformed if an order has no scores. Source: Shen et al., Sec. 4.2, "performs worse in both orderings or ties
    in one and loses in the other"."""
    if a_first is None or b_first is None:
        return MALFORMED
    return {1: WIN, 0: TIE, -1: LOSS}[better(better(*a_first) + better(b_first[1], b_first[0]), 0)]
