"""Conversations: every turn of the assistant is learned, up to the token that ends it, and nothing else."""
import json

import pytest
import torch

from finetune.config import EMBEDDED_BASE
from finetune.loop import mean_loss, summed_loss
from finetune.shown import token_list
from model.chat_template import ChatTemplate
from model.checkpoint import random_model
from model.files import write_json
from model.json_tokenizer import JsonTokenizer
from model.stated_tokens import Stated
from model.tokenizer import load_tokenizer
from tasks.batching import collate
from tasks.measured import log_likelihood
from tasks.messages import Asked, Conversation, Messages, encode_turns, hidden_of
from tasks.task import Asking, Encoded
from tests.cli import SMALL
from tests.fixtures.make_chat_templates import CONVERSATIONS, FILE, tokenizer
from tests.model.test_chat_template import chat_of, letters  # noqa: F401  a fixture

GOLDEN = json.loads(FILE.read_text(encoding="utf-8"))
SEVERAL = (("user", "a"), ("assistant", "b"), ("user", "d"), ("assistant", " e"), ("user", "f"), ("assistant", "g"))


def conversation(*turns) -> Conversation:
    return Conversation("", turns[-1][1], turns, "my.jsonl, line 3")


def encoded(chat: ChatTemplate, *turns) -> Encoded:
    return encode_turns(chat, hidden_of(chat, conversation(*turns)), "my.jsonl, line 3")


def learned(chat: ChatTemplate, *turns) -> str:
    row = encoded(chat, *turns)
    return chat.tokenizer.decode([row.tokens[place] for place in row.learned], special=True)


# ---- what is learned ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["one", "system", "several"])
def test_the_learned_places_are_those_that_transformers_marks(letters, name):  # noqa: F811
    """By the `generation` block of the template, which is not looked at here."""
    row = encoded(chat_of("chatml", letters), *CONVERSATIONS[name])
    whole, marked = GOLDEN[f"chatml/{name}/whole"][1], GOLDEN[f"chatml/{name}/learned"][1]
    assert list(row.learned) == marked and row.tokens == whole[:len(row.tokens)] and len(whole) == len(row.tokens) + 1


@pytest.mark.parametrize("style,said", [
    ("llama3", "b<|eot_id|>e<|eot_id|>g<|eot_id|>"), ("qwen2.5", "b<|im_end|> e<|im_end|>g<|im_end|>"),
    ("gemma", "b<end_of_turn>e<end_of_turn>g<end_of_turn>"), ("mistral", " b</s>  e</s> g</s>"),
    ("phi3", "b<|end|> e<|end|>g<|end|>"), ("zephyr", "b</s> e</s>g</s>")])
def test_every_turn_of_the_assistant_is_learned_with_its_end_and_nothing_else(letters, style, said):  # noqa: F811
    chat = chat_of(style, letters)
    row = encoded(chat, *SEVERAL)
    assert learned(chat, *SEVERAL) == said and len(row.read) == 2
    golden = chat.encode(chat.render(conversation(*SEVERAL).as_turns(), prompt=False), "\ufdd0")
    assert row.tokens == golden[:len(row.tokens)]


def test_a_prompt_of_a_model_is_what_was_trained_on(letters):  # noqa: F811
    """At every turn: the ids before what is learned are those of the prompt alone."""
    for style in ("llama3", "mistral", "phi3"):
        chat = chat_of(style, letters)
        row, turns = encoded(chat, *SEVERAL), conversation(*SEVERAL).as_turns()
        starts = [row.prompt_length, *(end for _, end in row.read)]
        for start, before in zip(starts, (1, 3, 5), strict=True):
            assert row.tokens[:start] == chat.encode(chat.render(turns[:before], prompt=True), "\ufdd0")


def test_one_turn_is_learned_by_a_template_that_rewrites_and_more_are_refused(letters):  # noqa: F811
    chat = chat_of("qwen3", letters)
    assert learned(chat, *SEVERAL[:2]) == "<think>\n\n</think>\n\nb<|im_end|>"
    with pytest.raises(ValueError, match=r"my.jsonl, line 3: the chat template \(qwen3\) rewrites what stands before "
                                         r"when turns follow turn 2: .*<think>.* becomes .*one question and one "
                                         r"answer, or a chat_template.jinja beside the model"):
        encoded(chat, *SEVERAL)


def test_a_prompt_that_the_turn_does_not_begin_with_is_refused(letters):  # noqa: F811
    text = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}")
    chat = ChatTemplate(text, "thinks", letters, {})
    with pytest.raises(ValueError, match=r"line 3: the chat template \(thinks\) rewrites .* when turn 2 follows its "
                                         r"prompt"):
        encoded(chat, *SEVERAL[:2])
    assert learned(chat, ("user", "a"), ("assistant", "<think>\nb</think>c")) == "b</think>c<|im_end|>"


def test_what_the_template_refuses_is_named_with_the_row(letters):  # noqa: F811
    with pytest.raises(ValueError, match="my.jsonl, line 3: the chat template refuses it: System role not supported"):
        encoded(chat_of("gemma", letters), ("system", "s"), *SEVERAL[:2])


def test_an_answer_that_spells_the_end_of_a_turn_goes_on(letters):  # noqa: F811
    chat = chat_of("chatml", letters)
    assert learned(chat, ("user", "a"), ("assistant", "b<|im_end|>c")) == "b<|im_end|>c<|im_end|>"
    row = encoded(chat, ("user", "a"), ("assistant", "b<|im_end|>c"))
    assert [row.tokens[place] for place in row.learned].count(chat.end_id) == 1


def test_the_begin_token_stands_once():
    """The tokenizer of the embedded base adds one, and so does its ChatML."""
    task = Messages()
    task.meet(EMBEDDED_BASE, base := load_tokenizer(EMBEDDED_BASE), 2, 100)
    row, = task.encode([conversation(*SEVERAL)], base, 2)
    assert row.tokens[0] == 1 and row.tokens.count(1) == 1 and base.begin == [1]
    assert base.decode(row.tokens).endswith("assistant\ng")
    assert [t for t in row.tokens if t == 2] == [2] * 6


def test_where_the_tokenizer_joins_prompt_and_answer_the_answer_is_encoded_alone(letters):  # noqa: F811
    """Merges `:` and a letter, as byte-level tokenizers may."""
    made = json.loads(tokenizer().to_str())
    made["model"]["merges"] = [[":", "b"]]
    rare, = (letter for letter, i in made["model"]["vocab"].items() if i == 255)
    made["model"]["vocab"][":b"] = made["model"]["vocab"].pop(rare)
    joining = JsonTokenizer(json.dumps(made).encode(), Stated(), EMBEDDED_BASE)
    text = ("{% for m in messages %}{{ m.role }}:{{ m.content }}</s>{% endfor %}"
            "{% if add_generation_prompt %}assistant:{% endif %}")
    chat = ChatTemplate(text, "joins", joining, {})
    row = encoded(chat, ("user", "b"), ("assistant", "b"))
    assert row.tokens.count(255) == 1 and learned(chat, ("user", "b"), ("assistant", "b")) == "b</s>"
    assert chat.encode("assistant:b", "\ufdd0").count(255) == 1  # control: of the whole text they are one


# ---- training and scores --------------------------------------------------------------------------------------------

def test_the_loss_of_a_conversation_is_that_of_its_answers():
    model = random_model(SMALL, torch.float32, seed=3).eval()
    row = Encoded([5, 6, 7, 8, 9, 10, 11], 2, ((3, 5),))  # 7, 10 and 11 are learned
    p = model(torch.tensor([row.tokens])).log_softmax(-1)[0]
    by_hand = -sum(p[place - 1, row.tokens[place]].item() for place in (2, 5, 6))
    other = Encoded([5, 9], 1)
    assert list(row.learned) == [2, 5, 6] and list(other.learned) == [1]
    loss, n = summed_loss(model, [row])
    assert (loss.item(), n) == (pytest.approx(by_hand, abs=1e-4), 3)
    assert -log_likelihood(model, row) == pytest.approx(by_hand, abs=1e-4)
    both = mean_loss(model, [row, other], 2)
    assert both == pytest.approx((by_hand + summed_loss(model, [other])[0].item()) / 4, abs=1e-5)
    batch = collate([row, other])
    assert batch.targets.tolist() == [7, 10, 11, 9]
    assert batch.at.tolist() == [[False, True, False, False, True, True], [True, False, False, False, False, False]]
    everything, _ = summed_loss(model, [Encoded(row.tokens, 2)])
    assert abs(everything.item() - by_hand) > 1  # control: with the user's turn it is another


def test_show_example_tells_learned_turns_from_read_ones(letters):  # noqa: F811
    chat = chat_of("chatml", letters)
    lines = token_list(encoded(chat, *SEVERAL[:4]), chat.tokenizer).splitlines()
    kinds = [line.split(None, 2)[2] for line in lines]
    assert kinds.count("learned, special") == 2
    assert [line.split()[1] for line in lines if line.rstrip().endswith("learned")] == ["'b'", "'Ġ'", "'e'"]


def test_a_test_row_asks_for_the_last_answer(letters):  # noqa: F811
    task = Messages()
    task.chat = chat_of("chatml", letters)
    row, = task.test_rows([conversation(*SEVERAL)], letters, 100)
    asking = Asking(letters, (0,), 5, 1)
    assert isinstance(row, Asked) and row.answer == "g" and row.prompt.endswith("f<|im_end|>\n<|im_start|>assistant\n")
    assert task.prompt_of(row, asking) == row.tokens[:len(row.ids)] and len(row.tokens) == len(row.ids) + 2
    assert task.gold_tokens(row, asking) == 1 and task.whole_row(row, asking).read


def test_two_spellings_of_rows_have_their_own_fingerprint_but_a_place_has_none():
    from dataclasses import replace

    from tasks.task import Splits
    row = conversation(*SEVERAL)
    marks = [Splits([r]).fingerprints()["train"] for r in (
        row, replace(row, place="other.jsonl, line 9"), conversation(*SEVERAL[2:]), replace(row, turns=SEVERAL[:2]))]
    assert marks[0] == marks[1] and len(set(marks)) == 3


def test_a_template_that_writes_the_day_writes_that_of_the_run(tmp_path, letters):  # noqa: F811
    (tmp_path / "chat_template.jinja").write_text(
        "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    write_json(tmp_path / "config.json", {"data": {"day": "2020-02-29"}})
    task = Messages()
    assert task.meet(tmp_path, letters, 0, 9) == (letters.tokenizer.token_to_id("<|im_end|>"),)
    assert task.chat.render([], prompt=True) == "29 Feb 2020" and task.facts() == {"day": "2020-02-29"}
    (tmp_path / "config.json").unlink()
    task.meet(tmp_path, letters, 0, 9)
    assert task.facts()["day"] > "2026"
