"""What the judge is asked, how its answer is read, and what both orders come to (blora.txt Sec. 4.2, "Evaluations using GPT-4/ChatGPT")."""
import re

TEMPLATE_VERSION = 1
WIN, TIE, LOSS, MALFORMED = "win", "tie", "loss", "malformed"
NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
TWO_SCORES = re.compile(rf"{NUMBER}(?:\s*,\s*|\s+){NUMBER}")


def judge_prompt(request: str, first: str, second: str) -> str:
    """Two answers to one request, to be scored from 1 to 10 each. The paper states the scale and no wording; this one is ours.

    It ends where the scores have to begin, so that a local model without a chat template is asked the same as an endpoint."""
    return f"""Two assistants have answered the same request.

[Request]
{request}

[Answer 1]
{first}

[Answer 2]
{second}

[End]
Score each answer from 1 to 10 by how correct, relevant, helpful and complete it is; 10 is the best. Neither the order in which the answers
stand nor their length as such may count. Write one line of two numbers with a space between them, the score of answer 1 and the score of
answer 2, and nothing else.
Scores:"""


def read_scores(text: str) -> tuple[float, float] | None:
    """`read_scores("8 7.5\\n...") == (8.0, 7.5)`: the first line that is not empty must be two numbers from 1 to 10, with white space or a
    comma between them, and nothing else. None otherwise: nothing is guessed."""
    line = text.strip().partition("\n")[0].strip()
    if not (found := TWO_SCORES.fullmatch(line)):
        return None
    first, second = float(found[1]), float(found[2])
    return (first, second) if 1 <= first <= 10 and 1 <= second <= 10 else None


def better(own: float, other: float) -> int:
    """1 where the own answer is the better one of an order, 0 on a tie, -1 where it is the worse one."""
    return (own > other) - (own < other)


def verdict(a_first: tuple[float, float] | None, b_first: tuple[float, float] | None) -> str:
    """Of the scores of both orders, as shown:

        win   a is better in both orders, or in one and ties in the other
        tie   a tie in both orders, or better in one and worse in the other
        loss  a is worse in both orders, or in one and ties in the other

    (blora.txt Sec. 4.2; its "performs worse in both orderings or ties in one and loses in the other".) Malformed where an order has none."""
    if a_first is None or b_first is None:
        return MALFORMED
    return {1: WIN, 0: TIE, -1: LOSS}[better(better(*a_first) + better(b_first[1], b_first[0]), 0)]
