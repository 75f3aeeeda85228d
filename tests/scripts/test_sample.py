"""sample.py as a user runs it."""
import io
import re
import shutil

import pytest
import torch

import sample as sample_script
from finetune.run import open_run
from finetune.source import Source, load_trained
from model.chat_template import ChatTemplate, load_template
from model.checkpoint import random_model, save_model
from model.config_json import config_to_json
from model.files import write_json
from model.generate import generate
from model.tokenizer import continuation, load_tokenizer
from tests.cli import FEW, SMALL, call, train_once

pytestmark = pytest.mark.usefixtures("elsewhere")
FLOAT = ("--dtype", "float32")


def completion(capsys, *arguments) -> str:
    capsys.readouterr()
    assert call(sample_script, *arguments) is None
    return capsys.readouterr().out


def expected(model, source, text, n=8) -> str:
    prompt = source.tokenizer.encode(text)
    return continuation(source.tokenizer, prompt, generate(model, [prompt], n, source.stop_ids(), 1)[0])


def test_a_prompt_is_completed_greedily_and_several_each_under_its_own(small_base, capsys):
    source = Source(small_base)
    model = source.load(torch.float32, "cpu")
    first, second = (expected(model, source, text) for text in ("My card", "A much longer question about money"))
    asked = ("--model", small_base, *FLOAT, "--max-new-tokens", "8", "--prompt")
    assert completion(capsys, *asked, "My card") == first + "\n" and first.strip()
    assert completion(capsys, *asked, "My card", "--prompt", "A much longer question about money") == (
        f"--- My card\n{first}\n--- A much longer question about money\n{second}\n")


def test_a_run_answers_as_trained_and_not_as_its_base(small_base, tmp_path, capsys):
    train_once(small_base, *FEW, "--lr", "0.1", "--steps", "12", *FLOAT)
    run = open_run(tmp_path / "x")
    trained = expected(load_trained(run, run.config, torch.float32, "cpu"), Source(tmp_path / "x"), "Where is my card")
    assert completion(capsys, "x", "--prompt", "Where is my card", "--max-new-tokens", "8") == trained + "\n"
    assert completion(capsys, "--model", small_base, *FLOAT, "--prompt", "Where is my card", "--max-new-tokens",
                      "8") != trained + "\n"
    assert {p.name for p in (tmp_path / "x").iterdir()}.isdisjoint({"eval.json"})  # nothing was scored


def test_a_quantizer_that_rounds_is_in_the_completion(capsys):
    """Of the embedded base, which has learnt to write: the small one repeats a word at any width."""
    plain, eight, two = (completion(capsys, *FLOAT, "--max-new-tokens", "12", "--prompt", "Once upon a time",
                                    *flags).splitlines()
                         for flags in ((), ("--bits", "8"), ("--quantizer", "nf", "--bits", "2")))
    assert eight[0].startswith("quantized; largest") and two[0].startswith("quantized; largest")
    assert eight[1:] == plain and two[1:] != plain


def test_sampling_takes_a_seed(small_base, capsys):
    asked = ("--model", small_base, *FLOAT, "--max-new-tokens", "12", "--prompt", "My card", "--temperature", "1.5",
             "--top-p", "0.95")
    first, again, other = (completion(capsys, *asked, "--seed", seed) for seed in (1, 1, 2))
    assert first == again != other


def test_a_completion_goes_on_after_a_line_break_and_ends_at_the_end_token(small_base, tmp_path, capsys, monkeypatch):
    """A model whose most likely tokens are set by hand: line break, letter, end."""
    source = Source(small_base)
    newline = source.tokenizer.encode("a\n")[len(source.tokenizer.encode("a")):][0]
    letter = source.tokenizer.encode("a")[-1]
    written = iter([newline, letter, 2, letter])

    def hand_set(given):
        model = random_model(SMALL, torch.float32, seed=1).eval()
        model.logits = lambda x: torch.eye(SMALL.vocab_size)[[next(written)]]
        return source, lambda: model
    monkeypatch.setattr(sample_script, "model_as_asked", hand_set)
    out = completion(capsys, "--model", small_base, "--prompt", "x")
    assert out == "\na\n" or out == "\n a\n"
    assert next(written) == letter  # it stopped at the end token, and not before


def test_max_new_tokens_is_what_fits_up_to_128_unless_given(small_base, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(sample_script, "generate", lambda model, prompts, n, *rest, **more: asked.append(n)
                        or [[] for _ in prompts])
    length = len(load_tokenizer(small_base).encode("card " * 60))
    assert 32 < length < 160
    for flags in (["--prompt", "x"], ["--prompt", "card " * 60], ["--prompt", "x", "--max-new-tokens", "7"]):
        completion(capsys, "--model", small_base, *flags)
    assert asked == [128, 160 - length, 7]


def test_a_continuation_keeps_the_space_it_begins_with(small_base):
    tokenizer = load_tokenizer(small_base)
    prompt, whole = tokenizer.encode("where is"), tokenizer.encode("where is my card")
    assert whole[:len(prompt)] == prompt and tokenizer.decode(whole[len(prompt):]) == "my card"  # on its own it is lost
    assert continuation(tokenizer, prompt, whole[len(prompt):]) == " my card"


def test_an_answer_that_ran_into_the_limit_is_said_and_one_that_ended_is_not(small_base, capsys, monkeypatch):
    asked = ("--model", small_base, *FLOAT, "--max-new-tokens", "4", "--prompt", "a")
    assert call(sample_script, *asked) is None
    said = capsys.readouterr()
    assert "the answer reached the limit of 4 new tokens before an end token" in said.err and "limit" not in said.out
    monkeypatch.setattr(sample_script, "generate", lambda *rest, **more: [[9, 9, 9], [9, 9, 9, 9]])
    assert call(sample_script, *asked, "--prompt", "b") is None
    assert "the answers to prompts 2 reached the limit of 4 new tokens" in capsys.readouterr().err
    monkeypatch.setattr(sample_script, "generate", lambda *rest, **more: [[9, 9, 9]])
    assert call(sample_script, *asked) is None
    assert capsys.readouterr().err == ""


def test_the_letters_of_an_end_token_in_a_prompt_are_said_to_be_letters(small_base, capsys):
    asked = ("--model", small_base, *FLOAT, "--max-new-tokens", "1", "--prompt")
    call(sample_script, *asked, "a </s> b")
    assert "--prompt: 1 rows hold the text </s>, which this tokenizer reads as letters" in capsys.readouterr().err
    call(sample_script, *asked, "a b")
    assert "hold the text" not in capsys.readouterr().err


X = ["--prompt", "x"]
BAD = [
    (["--temperature", "0.5"], "give --prompt TEXT to complete it, or --chat to talk"),
    ([*X, "--chat"], "give --prompt TEXT to complete it, or --chat to talk: not both"),
    ([*X, "--system", "s"], "--system goes with --chat only"),
    (["--chat", "--batch-size", "3"], "--batch-size goes with --prompt only"),
    (["--chat", "--seed", "1"], "--seed changes nothing about the most likely tokens"),
    (["--chat", "--max-new-tokens", "160"], "--max-new-tokens 160: .* has 160 positions, a turn included"),
    ([*X, "--top-p", "0"], r"--top-p: 0 is not in \(0, 1\]"),
    ([*X, "--temperature", "0"], "--temperature: 0 is not above 0"),
    ([*X, "--seed", "1"], "--seed changes nothing about the most likely tokens"),
    ([*X, "--task", "pretrain"], "unrecognized arguments: --task"),
    ([*X, "--data", "d", "--limit", "3"], "unrecognized arguments: --data --limit 3"),
    ([*X, "--json", "j"], "unrecognized arguments: --json"),
    ([*X, "--compare", "a"], "unrecognized arguments: --compare"),
    ([*X, "--restore", "8"], "unrecognized arguments: --restore"),
    ([*X, "--quantizer", "gptq"], "gptq needs calibration rows, and a prompt is none"),
    ([*X, "--bits", "7"], "bits=7 is not possible"),
    (["--prompt", "word " * 400], r"a prompt of \d{3,} tokens and any new ones do not fit the 160 positions"),
    ([*X, "--max-new-tokens", "160"], "tokens and 160 new ones do not fit the 160 positions"),
    ([*X, "--batch-size", "0"], "--batch-size: 0 is not above 0"), (["a", "b", *X], "unrecognized arguments: b"),
    (["a", *X, "--bits", "4"], "--bits is for a model without a run, and a has its own: leave it out"),
    (["a", *X], "a: no run there")]


@pytest.mark.parametrize("arguments,message", BAD, ids=[" ".join(a)[:60] for a, _ in BAD])
def test_bad_input_is_one_clear_line(small_base, arguments, message):
    model = [] if arguments[0] == "a" else ["--model", small_base]
    said = call(sample_script, *model, *arguments)
    assert said and "\n" not in said and re.search(message, said), said


def test_a_run_that_has_not_been_trained_yet_says_so(small_base, tmp_path):
    train_once(small_base, *FEW)
    (tmp_path / "x" / "adapter.safetensors").unlink()
    assert "go on with python train.py --resume x" in call(sample_script, "x", "--prompt", "hello")


def test_a_prompt_of_bytes_that_are_no_text_is_refused(small_base):
    """Python reads a byte of the command line that is not UTF-8 as half a surrogate pair."""
    given = b"caf\xe9".decode(errors="surrogateescape")
    said = call(sample_script, "--model", small_base, "--prompt", "a", "--prompt", given)
    assert "--prompt 2 of 2 holds half of a surrogate pair, U+DCE9 (at 3)" in said


def test_an_empty_prompt_needs_a_begin_token(small_base, tmp_path, capsys):
    """Sentencepiece files bring one; this tokenizer.json does not."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    assert completion(capsys, "--model", small_base, "--prompt", "", "--max-new-tokens", "2")
    base = tmp_path / "base"
    shutil.copytree(small_base, base)
    (base / "tokenizer.model").unlink()
    tokenizer = Tokenizer(models.BPE({c: i + 3 for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(base / "tokenizer.json"))
    said = call(sample_script, "--model", base, "--prompt", "x", "--prompt", "")
    assert "--prompt 2 of 2 is empty" in said
    assert call(sample_script, "--model", base, "--prompt", "x", "--max-new-tokens", "2") is None


def test_a_tokenizer_of_another_vocabulary_is_refused(small_base, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(small_base, base)
    write_json(base / "config.json", {**config_to_json(SMALL), "vocab_size": 100})
    save_model(random_model(Source(base).config, torch.float32, seed=1), base / "model.safetensors", torch.float16)
    assert "but config.json says vocab_size 100" in call(sample_script, "--model", base, "--prompt", "hello world")


def test_a_prompt_that_brings_its_own_begin_token_is_read_with_one(small_base, monkeypatch):
    read = []

    def generated(model, prompts, *rest, **more):
        read.extend(prompts)
        return [[] for _ in prompts]
    monkeypatch.setattr(sample_script, "generate", generated)
    call(sample_script, "--model", small_base, "--prompt", "I lost my card")
    kind = type(Source(small_base).tokenizer)
    encode = kind.encode
    monkeypatch.setattr(kind, "encode", lambda self, text: [1, *encode(self, text)] if text else encode(self, text))
    call(sample_script, "--model", small_base, "--prompt", "I lost my card")
    once, twice = read
    assert twice == once and once.count(1) == 1


def test_each_flag_of_sampling_is_used(small_base, capsys):
    """Of 4096 nearly equal tokens, a high temperature draws others than the most likely; a small top-p, never."""
    asked = ("--model", small_base, *FLOAT, "--max-new-tokens", "6", "--prompt", "My card")
    greedy, hot, other_seed, narrow, cold = (completion(capsys, *asked, *more) for more in (
        (), ("--temperature", "9"), ("--temperature", "9", "--seed", "1"), ("--temperature", "9", "--top-p", "1e-9"),
        ("--temperature", "1e-4")))
    assert narrow == cold == greedy
    assert len({greedy, hot, other_seed}) == 3


# ---- turns ----------------------------------------------------------------------------------------------------------

def talk(capsys, monkeypatch, lines, *arguments):
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    capsys.readouterr()
    assert call(sample_script, "--chat", *arguments) is None
    return capsys.readouterr()


def test_every_line_of_a_pipe_is_a_turn_and_what_was_said_is_kept(small_base, capsys, monkeypatch):
    asked, source = ("--model", small_base, *FLOAT, "--max-new-tokens", "6"), Source(small_base)
    said = talk(capsys, monkeypatch, "Where is my card?\n\nAnd now?\n", *asked)
    chat, model = load_template(small_base, source.tokenizer), source.load(torch.float32, "cpu")
    turns, answers = [], []
    for text in ("Where is my card?", "And now?"):
        turns.append({"role": "user", "content": text})
        prompt = chat.encode(chat.render(turns, prompt=True), "\ufdd0")
        answers.append(source.tokenizer.decode(generate(model, [prompt], 6, source.stop_ids(), 1)[0]).strip())
        turns.append({"role": "assistant", "content": answers[-1]})
    assert said.out == "".join(f"{answer}\n" for answer in answers)
    assert "a turn ends with </s>; the model has no chat template of its own" in said.err
    assert said.err.count("the answer reached the limit of 6 new tokens") == 2


def test_the_systems_turn_is_read_and_a_turn_without_room_is_said(small_base, capsys, monkeypatch):
    rendered = []
    render = ChatTemplate.render
    monkeypatch.setattr(ChatTemplate, "render", lambda self, turns, prompt: rendered.append(
        [turn["content"] for turn in turns]) or render(self, turns, prompt))
    asked = ("--model", small_base, *FLOAT, "--max-new-tokens", "2")
    said = talk(capsys, monkeypatch, "word " * 300 + "\nhi\n", *asked, "--system", "Be brief.")
    assert rendered[-1] == ["Be brief.", "hi"] and len(said.out.splitlines()) == 1
    assert re.search(r"error: the turn has \d{3} tokens with its template; the model has room for 158", said.err)
    talk(capsys, monkeypatch, "hi\n", *asked)
    assert rendered[-1] == ["hi"]
