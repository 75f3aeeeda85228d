"""An Ollama Modelfile beside a GGUF file: FROM, TEMPLATE, SYSTEM and the texts at which an answer stops.

Ollama's templates are Go templates, and a model's chat template is a jinja2 program. A TEMPLATE is written only if it
is certain: the program, run on four conversations, writes what one of `FORMATS` does. Otherwise it is left out, and the
file says so.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from interop.gguf_metadata_writer import Metadata
from model.gguf_tokenizer_reader import SPLITTINGS
from model.template_sandbox import compiled, rendered
from tasks.task import Task

TEMPLATE_KEY = "tokenizer.chat_template"
Turn = dict[str, str]


@dataclass(frozen=True)
class Format:
    """How a conversation is written: each turn between two texts, and a text before the next answer."""
    name: str
    turns: dict[str, tuple[str, str]]  # role -> the texts before and after
    stop: str                          # ends an answer

    def text(self, turns: Sequence[Turn]) -> str:
        """What the model reads before it answers."""
        return "".join(turn["content"].join(self.turns[turn["role"]]) for turn in turns) + self.turns["assistant"][0]

    def go_template(self) -> str:
        """The same, as Ollama reads it."""
        roles = (f'if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
                 for role, (before, after) in self.turns.items())
        return f"{{{{ range .Messages }}}}{{{{ {'{{ else '.join(roles)}{{{{ end }}}}{{{{ end }}}}" \
               f"{self.turns['assistant'][0]}"


def same_for_all(before: str, after: str, roles: Sequence[str] = ("system", "user", "assistant")) -> dict:
    return {role: (before.format(role), after) for role in roles}


FORMATS = (
    Format("ChatML", same_for_all("<|im_start|>{}\n", "<|im_end|>\n"), "<|im_end|>"),
    Format("Llama 3", same_for_all("<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>"), "<|eot_id|>"),
    Format("Gemma", {"user": ("<start_of_turn>user\n", "<end_of_turn>\n"),
                     "assistant": ("<start_of_turn>model\n", "<end_of_turn>\n")}, "<end_of_turn>"),
    Format("Phi-3", same_for_all("<|{}|>\n", "<|end|>\n"), "<|end|>"),
    Format("Phi-4-mini", same_for_all("<|{}|>", "<|end|>"), "<|end|>"),
    Format("Phi-4", same_for_all("<|im_start|>{}<|im_sep|>", "<|im_end|>"), "<|im_end|>"),
    Format("Zephyr", same_for_all("<|{}|>\n", "</s>\n"), "</s>"))


def chatml_ended_by(end: str) -> Format:
    """The ChatML of a model without a chat template, whose tokenizer does not know `<|im_end|>`."""
    return Format(f"ChatML with {end}", same_for_all("<|im_start|>{}\n", f"{end}\n"), end)


ASKED = [{"role": "user", "content": "What is it?"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "It is this."}, {"role": "user", "content": "And\n\nthen?"}]
SYSTEM = [{"role": "system", "content": "Answer {{ briefly }}."}]
DAYS = (date(2001, 2, 3), date(2024, 11, 25))  # a template that writes the date of today differs between them


def modelfile_file(to: Path) -> Path:
    """`x.gguf` -> `x.Modelfile`, beside it."""
    return to.with_suffix(".Modelfile")


def modelfile(metadata: Metadata, file: Path, task: Task | None) -> str:
    """The text of the Modelfile for a GGUF file with these metadata. task: what it was trained on, for a remark if that
    was no chat."""
    source = metadata[TEMPLATE_KEY][0] if TEMPLATE_KEY in metadata else None
    ends, lines = end_texts(metadata), [f"FROM ./{file.name}"]
    names = {f"{kind}_token": token(metadata, kind) or "" for kind in ("bos", "eos")}
    found = known_format(str(source), names, adds_begin(metadata)) if source else None
    if found:
        form, system, begin = found
        lines.append(f"# the model's chat template is {form.name}")
        lines.append(f'TEMPLATE """{begin}{form.go_template()}"""')
        lines += [f'SYSTEM """{system}"""'] if system else []
        ends = [form.stop, *ends]
    elif source:
        known = ", ".join(form.name for form in FORMATS)
        lines.append(f"# TEMPLATE is left out: the model's chat template is not one of {known}. It is in the GGUF file")
    else:
        lines += ["# the model has no chat template: a prompt is read as it is", 'TEMPLATE """{{ .Prompt }}"""']
    if task and source and not task.converses:
        lines.append(f"# trained on prompts of task {task.name}. Give prompts that are no chat without the template: "
                     f'"raw": true in a request')
    lines += [f'PARAMETER stop "{end}"' for end in dict.fromkeys(ends) if '"' not in end]
    return "\n".join(lines) + "\n"


def known_format(template: str, names: dict[str, str], begins: bool) -> tuple[Format, str, str] | None:
    """The format in which this chat template writes every conversation, the system turn that it adds on its own, and
    the begin token if the TEMPLATE must write it. None: it is none of FORMATS, or not certain.

    names: `bos_token` and `eos_token`, which templates write. llama.cpp adds the begin token if the file says so
    (`begins`): the TEMPLATE then leaves it out."""
    begin = "" if begins else names["bos_token"]
    end = names.get("eos_token")
    for form in (*FORMATS, *([chatml_ended_by(end)] if end else [])):
        for first in dict.fromkeys((names["bos_token"], "")):
            system = added_system(template, names, form, first)
            if system is not None and '"""' not in system:
                return form, system, begin if first else ""
    return None


def added_system(template: str, names: dict[str, str], form: Format, first: str) -> str | None:
    """The content of the system turn that the template adds where there is none; "" if it adds none. None if it writes
    one of the conversations in another way than `form` behind `first`."""
    before, after = form.turns.get("system", ("", ""))
    try:
        alone = written(template, names, ASKED)
        system = alone.removeprefix(first + before).removesuffix(after + form.text(ASKED)) \
            if alone != first + form.text(ASKED) else ""
        default = [{"role": "system", "content": system}] if system else []
        pairs = [(turns, [*default, *turns]) for turns in (ASKED, ANSWERED)]
        if "system" in form.turns:
            pairs += [(turns, turns) for turns in ([*SYSTEM, *ASKED], [*SYSTEM, *ANSWERED])]
        elif default:
            return None
        same = all(written(template, names, turns) == first + form.text(whole) for turns, whole in pairs)
    except ValueError:
        return None
    return system if same else None


def written(template: str, names: dict[str, str], turns: list[Turn]) -> str:
    """What the chat template writes before an answer. Raises ValueError if it fails, or writes the day."""
    texts = {rendered(compiled(template, day), {**names, "messages": turns, "add_generation_prompt": True,
                                                "tools": None, "documents": None}) for day in DAYS}
    if len(texts) > 1:
        raise ValueError("the chat template writes the day")
    return texts.pop()


# ---- the tokens in the metadata -----------------------------------------------------------------------------------

def token(metadata: Metadata, kind: str) -> str | None:
    """`token(metadata, "bos")`: its text; None if the file names none."""
    place, tokens = metadata.get(f"tokenizer.ggml.{kind}_token_id"), metadata.get("tokenizer.ggml.tokens")
    if not place or not tokens or not isinstance(place[0], int) or not isinstance(tokens[0], list):
        return None
    return tokens[0][place[0]] if 0 <= place[0] < len(tokens[0]) else None


def adds_begin(metadata: Metadata) -> bool:
    """As llama.cpp decides it, and the reader of GGUF files here."""
    if stated := metadata.get("tokenizer.ggml.add_bos_token"):
        return bool(stated[0])
    kind, pre = (str(metadata.get(f"tokenizer.ggml.{key}", ("",))[0]) for key in ("model", "pre"))
    return kind == "llama" or pre in SPLITTINGS and SPLITTINGS[pre].begin


def end_texts(metadata: Metadata) -> list[str]:
    return list(filter(None, (token(metadata, kind) for kind in ("eos", "eot"))))
