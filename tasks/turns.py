"""Rows of `messages` and of ShareGPT's `conversations` -> turns."""
from collections.abc import Sequence

from model.chat_template import Turn
from tasks.rows import NotText, check_text, parsed

# role, or `from`, of a turn -> what a template calls it. ShareGPT's names are human and gpt
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
         "chatgpt": "assistant", "model": "assistant"}
TOOLS = ("tool_calls", "function_call")


def turns_of(place: str, field: str, value: object) -> list[Turn]:
    """Raises ValueError, naming the place and the turn, for what are no turns. A cell of a .csv file holds JSON."""
    try:
        listed = parsed(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"{place}: {field} is not valid JSON ({error})") from None
    if not isinstance(listed, list):
        raise ValueError(f"{place}: {field} is {kind_of(listed)}, but must be a list of turns")
    return [turn_of(f"{place}, turn {i} of {field}", turn) for i, turn in enumerate(listed, 1)]


def turn_of(place: str, turn: object) -> Turn:
    if not isinstance(turn, dict):
        raise ValueError(f"{place}: is {kind_of(turn)}, but must be an object with role and content, or from and value")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if called := next((name for name in TOOLS if turn.get(name)), None):
        raise ValueError(f"{place}: has {called}, and calls of tools are not read: leave such rows out")
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"{place}: the role is {str(role)[:40]!r}; allowed: {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise ValueError(f"{place}: the content is {kind_of(content)}, but must be text")
    try:
        return {"role": ROLES[role], "content": check_text(content)}
    except NotText as error:
        raise ValueError(f"{place}: {error}") from None


def kind_of(value: object) -> str:
    """The kind of a JSON value, in words."""
    return {dict: "an object", list: "a list", str: "text", type(None): "missing"}.get(type(value), f"{value!r}"[:40])


def fault(turns: Sequence[Turn]) -> str | None:
    """Why nothing can be learned from the turns as they are. A system's turn may come first, and may be empty; then
    user and assistant take turns, and the assistant is the last."""
    roles = [turn["role"] for turn in turns]
    spoken = turns[1:] if roles[:1] == ["system"] else turns
    if not spoken:
        return "no turn of a user and an assistant"
    if "system" in (turn["role"] for turn in spoken):
        return "a system's turn that is not the first"
    if spoken[0]["role"] == "assistant":
        return "an assistant's turn before any user's"
    for before, turn in zip(spoken, spoken[1:], strict=False):
        if before["role"] == turn["role"]:
            return f"two turns of the {turn['role']} in a row"
    if empty := next((turn["role"] for turn in spoken if not turn["content"].strip()), None):
        return f"an empty turn of the {empty}"
    return "a user's turn at the end, without an answer" if spoken[-1]["role"] == "user" else None
