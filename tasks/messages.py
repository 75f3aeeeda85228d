"""One's own conversations, by a chat template. Every turn of the assistant is learned, and nothing else.

What is learned follows from rendering: the text of the turns before an assistant's, with the generation prompt, is
read; what the assistant's turn adds to it is learned, up to and with the token that ends the turn. Both must be the
beginning of the text of all turns. If a template writes earlier turns otherwise once later ones follow, a model would
be trained on text that it never sees. Such a row is refused.
"""
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from model.chat_template import FILE, ChatTemplate, Hidden, Turn, load_template
from model.files import read_json, write_text
from model.tokenizer import Tokenizer, continuation
from tasks.measured import MeasuredTask
from tasks.own_rows import LeftOut, own_rows, own_splits
from tasks.task import Asking, Encoded, Example, Splits
from tasks.turns import fault, turns_of


@dataclass(frozen=True)
class Conversation(Example):
    """The prompt is all that comes before the last answer, in plain words; the template makes the text."""
    turns: tuple[tuple[str, str], ...] = ()       # (role, content)
    place: str = field(default="", compare=False)

    def as_turns(self) -> list[Turn]:
        return [{"role": role, "content": content} for role, content in self.turns]


@dataclass(frozen=True)
class Asked(Conversation):
    """A test row: the prompt as rendered, and the ids of prompt and of the whole row."""
    question: str = ""
    ids: tuple[int, ...] = ()
    whole: Encoded | None = None

    @property
    def tokens(self) -> list[int]:
        return self.whole.tokens if self.whole else list(self.ids)


class Messages(MeasuredTask):
    name, needs_data = "messages", True
    title, licence = "your own conversations", "yours"
    rows = "messages (role, content); or conversations (from, value)"
    protocol = (f"{MeasuredTask.protocol}; the model's chat template; loss over all turns of the assistant, the other "
                "scores of the last one")
    encodes_tokens, converses = False, True
    chat: ChatTemplate

    def splits(self, data: Path, test_data: Path | None, limit: int | None, seed: int) -> Splits:
        return self.checked(own_splits(self._read, data, test_data, limit, seed))

    def _read(self, path: Path, left_out: LeftOut) -> list[Example]:
        rows, layout = own_rows(path, self.name)
        kept: list[Example] = []
        for place, row in rows:
            turns = turns_of(place, layout.fields[0], row[layout.fields[0]])
            if reason := fault(turns):
                left_out.add(place, reason)
                continue
            asked = "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns[:-1])
            kept.append(Conversation(asked, turns[-1]["content"], tuple((t["role"], t["content"]) for t in turns),
                                     place))
        return kept

    def meet(self, directory: Path, tokenizer: Tokenizer, end_id: int, longest: int) -> tuple[int, ...]:
        """Says which template is used. The token that ends a turn ends an answer, too."""
        self.day = day_of(directory)
        self.chat = load_template(directory, tokenizer, self.day)
        end = self.chat.end_of_turn
        print(f"{self.chat.where}: the model's own chat template; a turn ends with {end}" if self.chat.own else
              f"{directory}: the model has no chat template, so ChatML is used, and kept with the run; a turn ends "
              f"with {end}")
        return () if self.chat.end_id == end_id else (self.chat.end_id,)

    def facts(self) -> dict:
        return {"day": self.day.isoformat()} if "strftime_now" in self.chat.text else {}

    def leave_beside(self, directory: Path) -> None:
        if not self.chat.own:
            write_text(directory / FILE, self.chat.text)

    def encode(self, examples: Sequence[Conversation], tokenizer: Tokenizer, eos_id: int) -> list[Encoded]:
        spelt: Counter = Counter()
        encoded = []
        for example in examples:
            hidden = hidden_of(self.chat, example)
            spelt.update(hidden.found)
            encoded.append(encode_turns(self.chat, hidden, example.place))
        for text, n in spelt.items():
            print(f"--task {self.name}: {n} rows hold the text {text}, which is read as letters there: only the chat "
                  f"template writes this token")
        return encoded

    # ---- test rows

    def test_rows(self, test: Sequence[Conversation], tokenizer: Tokenizer, longest: int) -> list[Asked]:
        return [self._asked(row) for row in test]

    def _asked(self, row: Conversation) -> Asked:
        hidden = hidden_of(self.chat, row)
        text = self.chat.render(hidden.turns[:-1], prompt=True)
        return Asked(self.chat.shown(text, hidden.mark), row.answer, row.turns, row.place, row.prompt,
                     tuple(self.chat.encode(text, hidden.mark)), encode_turns(self.chat, hidden, row.place))

    def prompt_of(self, row: Asked, asking: Asking) -> list[int]:
        return list(row.ids)

    def whole_row(self, row: Asked, asking: Asking) -> Encoded:
        assert row.whole
        return row.whole

    def question_of(self, row: Asked) -> str:
        return row.question

    def gold_tokens(self, row: Asked, asking: Asking) -> int:
        return len(self.whole_row(row, asking).tokens) - len(row.ids) - 1

    def texts(self, row: Asked) -> tuple[str, ...]:
        return ()  # its ids are known


def day_of(directory: Path) -> date:
    """The day that a template may write into every row: of a run the day on which it began, so that it goes on with the
    same rows; else today."""
    file = directory / "config.json"
    stated = read_json(file).get("data") if file.is_file() else None
    day = stated.get("day") if isinstance(stated, dict) else None
    return date.fromisoformat(day) if isinstance(day, str) else date.today()


def hidden_of(chat: ChatTemplate, row: Conversation) -> Hidden:
    try:
        return chat.hidden(row.as_turns())
    except ValueError as error:
        raise ValueError(f"{row.place}: {error}") from None


def encode_turns(chat: ChatTemplate, hidden: Hidden, place: str) -> Encoded:
    """Raises ValueError, naming the row, if the template refuses it or rewrites earlier turns."""
    try:
        text, spans = learned_text(chat, hidden)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    ids: list[int] = []
    at, places = 0, []
    for end in (end for span in spans for end in span):
        ids, at = extended(chat, hidden.mark, ids, text, at, end, place), end
        places.append(len(ids))
    return Encoded(ids, places[0], tuple(zip(places[1:-1:2], places[2::2], strict=True)))


def learned_text(chat: ChatTemplate, hidden: Hidden) -> tuple[str, list[tuple[int, int]]]:
    """The text of all turns, and what of it is learned: (from, before) of each assistant's turn."""
    turns, spans = hidden.turns, []
    whole = chat.render(turns, prompt=False)
    for i, turn in enumerate(turns, 1):
        if turn["role"] != "assistant":
            continue
        before = chat.render(turns[:i - 1], prompt=True)
        after = whole if i == len(turns) else chat.render(turns[:i], prompt=False)
        end = after.find(chat.end_of_turn, len(before)) + len(chat.end_of_turn)
        if not after.startswith(before):
            raise rewrites(chat, before, after, f"turn {i} follows its prompt", "begins its turns as its prompts end")
        if end < len(before) + len(chat.end_of_turn):
            raise ValueError(f"the chat template ({chat.where}) does not end turn {i} with {chat.end_of_turn}")
        if not whole.startswith(after[:end]):
            raise rewrites(chat, after[:end], whole, f"turns follow turn {i}", "leaves earlier turns as they are")
        spans.append((len(before), end))
    return whole, spans


def rewrites(chat: ChatTemplate, shorter: str, longer: str, when: str, does: str) -> ValueError:
    """Shows where the two texts part."""
    at = next((i for i, (a, b) in enumerate(zip(shorter, longer, strict=False)) if a != b), len(longer))
    then, now = (re.sub("[\ufdd0-\ufdef]", "", text[max(0, at - 20):at + 30]) for text in (shorter, longer))
    return ValueError(f"the chat template ({chat.where}) rewrites what stands before when {when}: {then!r} becomes "
                      f"{now!r}, so that the model would learn turns that it never reads: give rows of one question "
                      f"and one answer, or a {FILE} beside the model that {does}")


def extended(chat: ChatTemplate, mark: str, ids: list[int], text: str, at: int, end: int, place: str) -> list[int]:
    """`ids`, which are those of text[:at], extended to those of text[:end].

    A tokenizer may join characters across `at`. The new part is then encoded alone, as it is when a model writes it."""
    whole = chat.encode(text[:end], mark)
    if whole[:len(ids)] == ids:
        return whole
    part = chat.encode_rest(text[at:end], mark)
    if continuation(chat.tokenizer, ids, part).split() != chat.tokenizer.decode(part).split():
        raise ValueError(f"{place}: {text[at:end][:60]!r} cannot be told from what stands before it: the tokenizer "
                         f"joins the two")
    return ids + part
