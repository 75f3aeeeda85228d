"""The Ollama Modelfile beside a GGUF file. `go` reads the few words of Go's templates that it uses."""
import re
from pathlib import Path

import pytest

from interop.modelfile import ANSWERED, ASKED, FORMATS, SYSTEM, TEMPLATE_KEY, known_format, modelfile
from model.template_sandbox import compiled, rendered
from tasks import TASKS

CHATML = ("{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}"
          "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
SMOLLM = ("{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
          "You are SmolLM<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + "
          "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
LLAMA3 = ("{% for m in messages %}{% set text = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
          "m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set text = bos_token + text %}{% endif %}"
          "{{ text }}{% endfor %}{% if add_generation_prompt %}"
          "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
GEMMA = ("{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
         "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + "
         "m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ "
         "'<start_of_turn>model\n' }}{% endif %}")
ZEPHYR = ("{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
          "{{ '<|assistant|>\n' }}")
KNOWN = {"ChatML": (CHATML, ""), "SmolLM": (SMOLLM, ""), "Llama 3": (LLAMA3, "<|begin_of_text|>"),
         "Gemma": (GEMMA, "<bos>"), "Zephyr": (ZEPHYR, "<s>")}
TURNS = [{"role": "user", "content": "Hello {{ .Content }}"}, {"role": "assistant", "content": "a\n\nb"},
         {"role": "user", "content": "c"}]


def metadata(template: str | None, begin: str = "", adds: bool | None = None, end: str = "</s>") -> dict:
    found = {"tokenizer.ggml.model": ("gpt2", "STRING", None),
             "tokenizer.ggml.tokens": (["x", end, begin], "ARRAY", "STRING"),
             "tokenizer.ggml.eos_token_id": (1, "UINT32", None)}
    found |= {"tokenizer.ggml.bos_token_id": (2, "UINT32", None)} if begin else {}
    found |= {} if adds is None else {"tokenizer.ggml.add_bos_token": (adds, "BOOL", None)}
    return found | ({TEMPLATE_KEY: (template, "STRING", None)} if template else {})


def go(modelfile: str, turns: list[dict]) -> str:
    """What Ollama makes of the conversation."""
    template = re.search(r'TEMPLATE """(.*?)"""', modelfile, re.DOTALL)[1]
    system = re.search(r'SYSTEM """(.*?)"""', modelfile, re.DOTALL)
    if system and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": system[1]}, *turns]
    begin, body, answer = re.fullmatch(r"(.*?)\{\{ range \.Messages \}\}(.*)\{\{ end \}\}\{\{ end \}\}(.*)", template,
                                       re.DOTALL).groups()
    texts = {}
    for part in re.split(r"\{\{ (?:else )?if eq \.Role ", body)[1:]:
        role, before, after = re.fullmatch(r'"(\w+)" \}\}(.*)\{\{ \.Content \}\}(.*)', part, re.DOTALL).groups()
        texts[role] = before, after
    return begin + "".join(texts[t["role"]][0] + t["content"] + texts[t["role"]][1] for t in turns) + answer


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("adds", [True, False])
def test_ollama_reads_what_the_chat_template_writes(name, adds):
    template, begin = KNOWN[name]
    text = modelfile(metadata(template, begin, adds), Path("dir/x.gguf"), None)
    assert text.startswith("FROM ./x.gguf\n") and f"chat template is {name if name != 'SmolLM' else 'ChatML'}" in text
    for turns in (TURNS, TURNS[:1], *([[*SYSTEM, *TURNS]] if name != "Gemma" else [])):
        whole = rendered(compiled(template), {"messages": turns, "add_generation_prompt": True, "bos_token": begin,
                                               "eos_token": "</s>"})
        ours = go(text, turns)
        assert (begin if adds and whole.startswith(begin) else "") + ours == whole  # llama.cpp adds the begin token
    assert ('SYSTEM """You are SmolLM"""' in text) == (name == "SmolLM")


@pytest.mark.parametrize("name,stop", [("ChatML", "<|im_end|>"), ("Llama 3", "<|eot_id|>"), ("Gemma", "<end_of_turn>"),
                                       ("Zephyr", "</s>")])
def test_an_answer_stops_at_the_end_of_its_turn_and_at_the_end_token(name, stop):
    text = modelfile(metadata(*KNOWN[name]), Path("x.gguf"), None)
    assert [line for line in text.splitlines() if line.startswith("PARAMETER")] == [
        f'PARAMETER stop "{end}"' for end in dict.fromkeys((stop, "</s>"))]


@pytest.mark.parametrize("template", [
    CHATML.replace("m['content']", "m['content'] | upper"), LLAMA3.replace("bos_token + text", "'Today ' + text"),
    CHATML.replace("{% for", "{{ strftime_now('%d %b %Y') }}{% for"), "{% if", "{{ messages }}", "x" * 10,
    SMOLLM.replace("You are SmolLM", "Today is {{ strftime_now('%d') }}"),
    CHATML.replace("'<|im_end|>' + '\n'", "('<|im_end|>\n' if not loop.last else '')")])
def test_a_template_that_is_not_certain_is_left_out_and_that_is_said(template):
    text = modelfile(metadata(template), Path("x.gguf"), None)
    assert 'TEMPLATE "' not in text and "# TEMPLATE is left out" in text and 'PARAMETER stop "</s>"' in text


def test_a_model_without_a_chat_template_reads_prompts_as_they_are():
    text = modelfile(metadata(None), Path("x.gguf"), TASKS["banking77"])
    assert 'TEMPLATE """{{ .Prompt }}"""' in text and "banking77" not in text


def test_only_a_run_that_was_not_trained_to_chat_is_said_to_read_other_prompts():
    text = modelfile(metadata(CHATML), Path("x.gguf"), TASKS["banking77"])
    assert "prompts of task banking77" in text and '"raw": true' in text
    assert "raw" not in modelfile(metadata(CHATML), Path("x.gguf"), TASKS["messages"])


def test_chatml_of_a_tokenizer_without_its_tokens_is_known():
    """What `load_template` makes for a model without a chat template."""
    template = CHATML.replace("<|im_end|>", "</s>")
    text = modelfile(metadata(template), Path("x.gguf"), None)
    assert go(text, TURNS) == rendered(compiled(template), {"messages": TURNS, "add_generation_prompt": True})
    assert [line for line in text.splitlines() if line.startswith("PARAMETER")] == ['PARAMETER stop "</s>"']


def test_the_conversations_tell_the_formats_apart():
    texts = [form.text(turns) for form in FORMATS for turns in (ASKED, ANSWERED)]
    assert len(set(texts)) == len(texts) == 2 * len(FORMATS)
    assert known_format(CHATML, {"bos_token": ""}, False)[0].name == "ChatML"
