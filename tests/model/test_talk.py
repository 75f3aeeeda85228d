"""A conversation: what was said is read again, and the oldest of it gives way."""
import pytest
import torch

from model.chat_template import ChatTemplate
from model.checkpoint import random_model
from model.generate import Sampling
from model.json_tokenizer import JsonTokenizer
from model.stated_tokens import Stated
from model.talk import Talk
from tests.cli import SMALL
from tests.fixtures.make_chat_templates import tokenizer

PLAIN = ("{% for m in messages %}{{ m.role[0] }}{{ m.content }}<|im_end|>{% endfor %}"
         "{% if add_generation_prompt %}a{% endif %}")


@pytest.fixture
def talking(tmp_path, monkeypatch):
    """`talking(answers)`: a conversation with a model that writes these ids, and the prompts that it has read."""
    letters = JsonTokenizer(tokenizer().to_str().encode(), Stated(), tmp_path)
    chat, read = ChatTemplate(PLAIN, "here", letters, {}), []

    def made(answers=(), system=None, sampling=None, limit=40):
        written = iter(answers)

        def generate_each(model, prompts, limit, stop_ids, batch_size, desc, sampling, stopped):
            read.append((letters.decode(prompts[0], special=True), stop_ids, sampling))
            stopped(ids := letters.encode(next(written)))
            yield 0, ids
        if answers:
            monkeypatch.setattr("model.talk.generate_each", generate_each)
        return Talk(random_model(SMALL, torch.float32, seed=1).eval(), chat, (0,), limit, sampling, system), read
    return made


def test_history_and_system_are_read_again_for_every_answer(talking):
    talk, read = talking([" one", "two "], system="s")
    shown = []
    assert [talk.answer("x", shown.append), talk.answer("y")] == ["one", "two"] and shown == [" one"]
    assert [prompt for prompt, _, _ in read] == [
        "ss<|im_end|>ux<|im_end|>a", "ss<|im_end|>ux<|im_end|>aone<|im_end|>uy<|im_end|>a"]
    assert read[0][1] == (0, talk.chat.end_id)  # the end of a turn ends an answer


def test_the_oldest_question_and_answer_give_way_and_the_system_stays(talking):
    talk, read = talking(["1", "2", "3"], system="s")  # 160 positions, 40 for an answer
    for text in ("x" * 50, "y" * 50, "z" * 50):
        talk.answer(text)
    assert read[1][0].count("x") == 50 and "x" not in read[2][0] and read[2][0].startswith("ss<|im_end|>uy")
    assert talk.forgotten == 2 and [turn["role"][0] for turn in talk.turns] == list("suaua")


def test_a_turn_that_has_no_room_alone_is_refused_and_forgotten(talking):
    talk, read = talking(["1", "2"])
    with pytest.raises(ValueError, match="the turn has 123 tokens with its template; the model has room for 120 and an "
                                         "answer of 40"):
        talk.answer("x" * 120)
    assert talk.turns == [] and not read
    assert talk.answer("x" * 117) == "1"


def test_a_users_end_of_turn_is_letters(talking):
    talk, read = talking(["1"])
    talk.answer("a<|im_end|>")
    assert read[0][0] == "ua<|im_end|><|im_end|>a"
    hidden = talk.chat.hidden([{"role": "user", "content": "a<|im_end|>"}])
    assert talk.chat.encode(talk.chat.render(hidden.turns, True), hidden.mark).count(talk.chat.end_id) == 1


def test_every_answer_is_drawn_with_numbers_of_its_own(talking):
    talk, read = talking(["1", "2"], sampling=Sampling(seed=2 ** 63 - 1))
    talk.answer("x"), talk.answer("x")
    seeds = [sampling.seed for _, _, sampling in read]
    assert seeds[0] == 2 ** 63 - 1 != seeds[1] and 0 <= seeds[1] < 2 ** 63


def test_an_answer_stops_at_the_end_of_its_turn(talking):
    talk, _ = talking()
    logits = iter([ord("a"), talk.chat.end_id, ord("b")])
    talk.model.logits = lambda x: torch.eye(SMALL.vocab_size)[[next(logits)]]
    talk.answer("x")
    assert next(logits) == ord("b") and not talk.cut
