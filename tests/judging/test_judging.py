"""judge.py: two runs' answers, scored in both orders by a server that the test starts, or by a small local model."""
import hashlib
import json
import re
import socket
import threading
import time
from contextlib import contextmanager, suppress
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

import judge as judge_script
from finetune.source import Source
from judging import endpoint
from judging.endpoint import OPENAI, Endpoint, JudgeFailed, wait_asked_for
from judging.judgements import Compared, judge_all, outcome_of
from judging.verdict import LOSS, MALFORMED, TIE, WIN, judge_prompt, read_scores, verdict
from tests.cli import call

pytestmark = pytest.mark.usefixtures("elsewhere")
KEY = "sk-secret-4711"


# ---- the definition --------------------------------------------------------------------------------------------------

BETTER, EQUAL, WORSE = (9, 3), (5, 5), (2, 8)  # scores of a and b; with b first they are shown the other way round


@pytest.mark.parametrize("one,other,expected", [
    (BETTER, BETTER, WIN), (BETTER, EQUAL, WIN), (EQUAL, BETTER, WIN),
    (EQUAL, EQUAL, TIE), (BETTER, WORSE, TIE), (WORSE, BETTER, TIE),
    (WORSE, WORSE, LOSS), (EQUAL, WORSE, LOSS), (WORSE, EQUAL, LOSS),
    (None, BETTER, MALFORMED), (WORSE, None, MALFORMED), (None, None, MALFORMED)])
def test_win_tie_and_loss_are_those_of_the_paper(one, other, expected):
    assert verdict(one, other and other[::-1]) == expected


def test_the_second_order_is_read_the_other_way_round():
    """Negative control: a judge that always gives the first place more says nothing about a and b."""
    assert verdict((9, 3), (9, 3)) == TIE != verdict((9, 3), (3, 9))


scores = st.tuples(st.integers(1, 10), st.integers(1, 10))


@given(scores, scores)
def test_exchanging_the_runs_exchanges_win_and_loss(a_first, b_first):
    assert {WIN: LOSS, LOSS: WIN, TIE: TIE}[verdict(a_first, b_first)] == verdict(b_first, a_first)


@pytest.mark.parametrize("text,expected", [
    ("8 7", (8, 7)), (" \n 10\t1 \nAnswer 1 is better.", (10, 1)), ("7.5, 8", (7.5, 8)), ("9,9", (9, 9)),
    ("", None), ("8", None), ("8 7 6", None), ("0 5", None), ("11 5", None), ("8/10 7/10", None), ("Scores: 8 7", None),
    ("Answer 1 is better.\n8 7", None),
    ("-3 5", None), ("87", None), ("8.7", None), ("8.7.1", None), ("eight seven", None), ("٣ ٤", None)])
def test_two_scores_are_read_or_nothing(text, expected):
    assert read_scores(text) == expected


def test_the_prompt_holds_request_and_answers_in_their_order():
    prompt = judge_prompt("{what} % is it?", "first {x}", "second")
    assert prompt.index("{what} % is it?") < prompt.index("first {x}") < prompt.index("second")
    assert prompt.endswith("Scores:")


# ---- a server --------------------------------------------------------------------------------------------------------

class Server:
    """`reply` gets the prompt and returns text, or (status, headers, body)."""

    def __init__(self, reply):
        self.reply, self.asked, self.headers = reply, [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append((self.path, body))
                outer.headers.append(dict(self.headers))
                answer = outer.reply(body["messages"][0]["content"])
                if answer is None:
                    return self.connection.close()  # without a word
                status, headers, text = answer if isinstance(answer, tuple) else (200, {}, completion(answer))
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(text.encode()))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_):
                pass
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}/v1"


def completion(text):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


@contextmanager
def serving(reply):
    server = Server(reply)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()


@pytest.fixture
def slept(monkeypatch):
    waits = []
    monkeypatch.setattr(endpoint.time, "sleep", waits.append)
    return waits


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def predictions(path, answers, state="trained", requests=None):
    path.mkdir(exist_ok=True)
    with open(path / "predictions.jsonl", "a") as file:
        for i, text in enumerate(answers):
            prompt = requests[i] if requests else f"request {i}"
            file.write(json.dumps({"state": state, "task": "alpaca", "row": i, "prompt": prompt, "gold": "gold",
                                   "text": text, "score": 0.0}) + "\n")


@pytest.fixture
def runs(tmp_path):
    """a's answers are good, fair, bad, and odd; b's all fair."""
    predictions(tmp_path / "a", ["good", "fair", "bad", "odd"])
    predictions(tmp_path / "b", ["fair"] * 4)


def fair_judge(prompt):
    shown = re.search(r"\[Answer 1\]\n(.*)\n\n\[Answer 2\]\n(.*)\n\n\[End\]", prompt)
    if "odd" in shown.groups():
        return "I cannot say."
    return " ".join({"good": "9", "fair": "6", "bad": "2"}[answer] for answer in shown.groups())


def judge(server, *flags):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_BASE_URL", server.address)
        return call(judge_script, "a", "b", "--judge", "some-model", "--out", "out", *flags)


def test_verdicts_counts_and_files_by_hand(runs, tmp_path, capsys):
    with serving(fair_judge) as server:
        assert judge(server) is None
    lines = [json.loads(line) for line in (tmp_path / "out" / "judgements.jsonl").read_text().splitlines()]
    assert [line["verdict"] for line in lines] == ["win", "tie", "loss", "malformed"]
    assert lines[0]["answers"] == ["9 6", "6 9"] and lines[0]["scores"] == [[9, 6], [6, 9]]
    assert lines[3]["scores"] == [None, None]
    assert lines[0]["prompts"] == [judge_prompt("request 0", "good", "fair"), judge_prompt("request 0", "fair", "good")]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [results[name] for name in ("rows", "wins", "ties", "losses", "malformed",
                                       "malformed_answers")] == [4, 1, 1, 1, 1, 2]
    assert results["win_rate"] == 0.5 and results["standard_error"] == pytest.approx(0.5 / 3 ** 0.5)  # of 1, 1/2, 0
    assert results["p_value"] == 1 and (results["mean_score_a"], results["mean_score_b"]) == (pytest.approx(17 / 3), 6)
    assert (results["a"], results["b"], results["template_version"]) == ("a:trained", "b:trained", 1)
    out = capsys.readouterr().out
    assert re.search(r"a against b +1 +1 +1 +1 +50.00% +28.87% +1 +5.67 +6.00", out)


def test_what_is_sent_is_a_chat_completion_without_chance(runs):
    with serving(fair_judge) as server:
        judge(server, "--seed", "3", "--limit", "1")
    path, body = server.asked[0]
    assert path == "/v1/chat/completions" and len(server.asked) == 2
    assert body == {"model": "some-model",
                    "messages": [{"role": "user", "content": judge_prompt("request 0", "good", "fair")}],
                    "temperature": 0, "seed": 3, "max_tokens": 64}
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_a_judge_that_prefers_a_place_gives_ties_only(runs, tmp_path, capsys):
    with serving(lambda prompt: "9 4") as server:
        judge(server)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["wins"], results["ties"], results["losses"], results["preferred_first"]) == (0, 4, 0, 4)
    assert "preferred in both orders in 4 rows" in capsys.readouterr().out


def test_one_malformed_order_is_enough_and_is_not_guessed(runs, tmp_path):
    with serving(lambda prompt: "9 4" if "\ngood\n\n[Answer 2]" in prompt else "the second") as server:
        judge(server, "--limit", "1")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["malformed"], results["malformed_answers"], results["win_rate"],
            results["p_value"]) == (1, 1, None, None)


def test_too_many_requests_are_waited_for_and_asked_again(runs, tmp_path, slept):
    replies = iter([(429, {"Retry-After": "7"}, "{}"), (503, {}, "busy"), None, "9 6", "6 9"])
    with serving(lambda prompt: next(replies)) as server:
        assert judge(server, "--limit", "1") is None
    assert slept == [7, 2, 4] and len(server.asked) == 5  # as asked, then doubled from try to try
    assert json.loads((tmp_path / "out" / "results.json").read_text())["wins"] == 1


def test_a_server_that_stays_busy_is_given_up_in_one_line(runs, slept):
    with serving(lambda prompt: (500, {}, "no\nluck")) as server:
        said = judge(server)
    assert re.search("answered with status 500: no luck; number of tries: 6; ", said), said
    assert slept == [1, 2, 4, 8, 16]
    slept.clear()
    with serving(lambda prompt: (429, {"Retry-After": "3600"}, "quota")) as server:
        said = judge(server)
    assert "the server asks to wait 3600 s" in said and slept == []


def test_nobody_there_is_one_line(runs, slept):
    with serving(fair_judge) as server:
        pass  # closed again
    said = judge(server)
    assert "was not reached" in said and "\n" not in said and len(slept) == 5


@pytest.mark.parametrize("status,body,message", [
    (401, f"Incorrect key {KEY}", r"refuses the key \(401\): set OPENAI_API_KEY"),
    (404, "", r"no model 'some-model' \(404\): check OPENAI_BASE_URL"),
    (403, f"not for {KEY}", r"does not allow this key \(403\): not for \*\*\*"),
    (400, '{"error": "seed?"}', "status 400: .*seed"),
    (302, "", "status 302"), (200, f"<html>{KEY}</html>", r"did not send a chat completion but '<html>\*\*\*</html>'"),
    (200, "[]", "did not send a chat completion")])
def test_what_will_not_get_better_is_said_at_once_and_without_the_key(runs, tmp_path, slept, status, body, message):
    headers = {"Location": "http://127.0.0.1:1/elsewhere"} if status == 302 else {}
    with serving(lambda prompt: (status, headers, body)) as server:
        said = judge(server)
    assert re.search(message, said) and "\n" not in said and KEY not in said, said
    assert slept == [] and len(server.asked) == 1


def test_the_key_is_in_no_file_and_on_no_screen(runs, tmp_path, capsys):
    with serving(lambda prompt: f"9 6\n{KEY}") as server:
        judge(server)
    call(judge_script, "a", "b", "--dry-run")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 5 and not any(KEY in path.read_text() for path in files) and KEY not in capsys.readouterr().out
    assert KEY not in repr(Endpoint("http://x", "m", KEY))
    assert "***" in (tmp_path / "out" / "judgements.jsonl").read_text()  # control: the server did send it


def test_a_message_without_text_is_a_malformed_answer(runs, tmp_path):
    with serving(lambda prompt: (200, {}, json.dumps({"choices": [{"message": {"content": None}}]}))) as server:
        judge(server)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["malformed"] == 4


def test_an_interrupted_judging_goes_on_and_asks_nothing_twice(runs, tmp_path):
    asked = []

    def interrupted(prompt):
        asked.append(prompt)
        return (401, {}, "") if len(asked) == 6 else fair_judge(prompt)
    with serving(interrupted) as server:
        assert "refuses the key" in judge(server)
        file = tmp_path / "out" / "judgements.jsonl"
        assert len(file.read_text().splitlines()) == 2 and not (tmp_path / "out" / "results.json").exists()
        file.write_text(file.read_text() + '{"row": 2, "prompts": ["cut')  # as when the power goes
        server.reply, server.asked = fair_judge, []
        assert judge(server) is None
        left = [prompt for i, text in ((2, "bad"), (3, "odd"))
                for prompt in (judge_prompt(f"request {i}", text, "fair"), judge_prompt(f"request {i}", "fair", text))]
        assert [body["messages"][0]["content"] for _, body in server.asked] == left
        whole = (tmp_path / "out" / "results.json").read_text()
        assert judge(server) is None and len(server.asked) == 4  # nothing is left to ask
        assert (tmp_path / "out" / "results.json").read_text() == whole
        judge(server, "--limit", "1")
        judge(server)
        assert len(server.asked) == 4 and len(file.read_text().splitlines()) == 4  # fewer rows lose nothing
        judge(server, "--seed", "1")
        assert len(server.asked) == 12  # control: another seed is another question


def test_a_line_that_is_no_judgement_is_named(runs, tmp_path):
    (tmp_path / "out").mkdir()
    for line, message in (('{"question": "q"}', "judgements.jsonl, line 1: field 'prompts' is missing"),
                          ("x", "line 1: not valid JSON"),
                          ('{"question": "q", "prompts": [], "answers": ["9 6"]}',
                           "line 1: 1 answers, but a judgement has 2")):
        (tmp_path / "out" / "judgements.jsonl").write_text(line + "\n")
        with serving(fair_judge) as server:
            assert message in judge(server) and not server.asked


def test_a_row_that_stands_twice_is_asked_once(tmp_path):
    predictions(tmp_path / "a", ["good", "good"], requests=["same", "same"])
    predictions(tmp_path / "b", ["bad", "bad"], requests=["same", "same"])
    with serving(fair_judge) as server:
        judge(server)
    assert len(server.asked) == 2 and json.loads((tmp_path / "out" / "results.json").read_text())["wins"] == 2


def test_a_dry_run_prints_both_orders_and_asks_nobody(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setattr(endpoint, "OPENER", None)
    assert call(judge_script, "a", "b", "--dry-run", "--limit", "2") is None
    out = capsys.readouterr().out
    for both in Compared("a", "b", "", ["request 0", "request 1"], ["good", "fair"], ["fair", "fair"]).prompts():
        assert all(prompt in out for prompt in both)
    assert "--- row 0, a b" in out and "--- row 1, b a" in out and "row 2" not in out
    assert "4 prompts" in out and not (tmp_path / "judged").exists() and not (tmp_path / "out").exists()


def test_another_state_is_judged_by_its_name_and_the_place_is_called_after_both(runs, tmp_path, monkeypatch):
    predictions(tmp_path / "b", ["bad"] * 4, state="quantized")
    with serving(fair_judge) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.address + "/")
        assert call(judge_script, "a", "b:quantized", "--judge", "x/y", "--limit", "2") is None
    results = json.loads((tmp_path / "judged" / "a--b-quantized--x-y" / "results.json").read_text())
    assert results["b"] == "b:quantized" and results["wins"] == 2


def test_answers_of_an_older_version_are_judged_by_the_keys_of_now(tmp_path, monkeypatch):
    """Older predictions.jsonl files name a state by its title."""
    predictions(tmp_path / "a", ["good"], state="as trained")
    predictions(tmp_path / "b", ["bad"], state="quantized base")
    with serving(fair_judge) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.address)
        assert call(judge_script, "a", "b:quantized", "--judge", "x", "--out", "out") is None
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["a"], results["b"], results["wins"]) == ("a:trained", "b:quantized", 1)


def test_runs_of_other_rows_are_not_judged(runs, tmp_path):
    predictions(tmp_path / "c", ["fair"] * 4, requests=["request 0", "request 1", "another", "request 3"])
    said = call(judge_script, "a", "c", "--judge", "x")
    assert "were not scored on the same test rows (row 2 is the first that differs)" in said
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "predictions.jsonl").write_text(json.dumps({"state": "trained", "task": "piqa", "prompt": "p",
                                                                  "gold": "g", "score": 1.0}) + "\n")
    assert "--task piqa is answered by choosing" in call(judge_script, "d", "d", "--judge", "x")
    assert "no predictions.jsonl there" in call(judge_script, "a", "nowhere", "--judge", "x")
    assert "holds no state 'merged'" in call(judge_script, "a", "b:merged", "--judge", "x")


@pytest.mark.parametrize("flags,environment,message", [
    ([], {}, "give one judge"), (["--judge", "x", "--judge-model", "a"], {}, "give one judge"),
    (["--judge", "x"], {"OPENAI_API_KEY": ""}, "set OPENAI_BASE_URL"),
    (["--judge", "x"], {"OPENAI_BASE_URL": "file:///etc/passwd"}, "OPENAI_BASE_URL is not of the form"),
    (["--judge", "x"], {"OPENAI_BASE_URL": "http://me:pw@host/v1"}, "OPENAI_BASE_URL is not of the form"),
    (["--judge", "x"], {"OPENAI_BASE_URL": "localhost"}, "not of the form"),
    (["--judge", "x"], {"OPENAI_API_KEY": "sk\nx"}, "OPENAI_API_KEY has characters that are not printable ASCII"),
    (["--limit", "0", "--judge", "x"], {}, "0 is not above 0")])
def test_what_cannot_be_a_judge_is_one_line(runs, tmp_path, monkeypatch, flags, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    said = call(judge_script, "a", "b", *flags)
    assert message in said and "\n" not in said and "pw" not in said and not (tmp_path / "judged").exists()


def test_without_an_address_it_is_openais_own():
    assert Endpoint.from_environment("gpt-4o") == Endpoint(OPENAI, "gpt-4o", KEY, 0)


def test_retry_after_is_seconds_or_a_date():
    assert wait_asked_for("12") == 12 and wait_asked_for(None) == wait_asked_for("soon") == wait_asked_for("-3") == 0
    assert 50 < wait_asked_for(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert wait_asked_for(formatdate(time.time() - 60, usegmt=True)) == 0


# ---- a server that does not end, or sends too much -------------------------------------------------------------------

@contextmanager
def raw(send):
    """A server that answers each connection with what `send` writes, until the client or the test has left."""
    left = threading.Event()

    def unless_left(connection, piece):
        if left.is_set():
            raise OSError
        connection.sendall(piece)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)

        def answer():
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(OSError):
                        connection.settimeout(5)
                        connection.recv(1 << 16)
                        send(partial(unless_left, connection))
                        connection.shutdown(socket.SHUT_WR)
                        while connection.recv(1 << 16):  # closing with unread bytes would reset the connection
                            pass
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        left.set()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def for_ever(piece, pause=0.0):
    def send(sendall):
        sendall(b"HTTP/1.1 ")
        while True:
            sendall(piece)
            if pause:
                threading.Event().wait(pause)
    return send


def endlessly(headers, piece):
    def send(sendall):
        sendall(b"HTTP/1.1 200 OK\r\n" + headers + b"\r\n")
        while True:
            sendall(piece)
    return send


LARGE = 1 << 16


@pytest.mark.parametrize("send,message", [
    (for_ever(b"2", 0.01), "has not ended its answer after 0.2 s"),                        # a drip in the status line
    (for_ever(b"100 Continue\r\n\r\nHTTP/1.1 "), "has not ended its answer after 0.2 s"),  # status lines for ever
    (for_ever(b"200 OK\r\n" + b"a: b\r\n" * 9), r"was not reached \(got more than 100 headers\)"),
    (for_ever(b"200 OK\r\na: " + b"b" * LARGE), "was not reached"),                        # one header without an end
    (endlessly(b"Content-Length: 10000000000\r\n", b"x" * LARGE), "sent more than 1048576 bytes"),
    (endlessly(b"", b"x" * LARGE), "sent more than 1048576 bytes"),
    (endlessly(b"Transfer-Encoding: chunked\r\n", b"10000\r\n" + b"x" * LARGE + b"\r\n"), "sent more than 1048576"),
    (endlessly(b"Transfer-Encoding: chunked\r\n", b"0\r\n" + b"a: b\r\n" * LARGE), "has not ended its answer")])
def test_an_answer_is_bounded_in_bytes_and_in_seconds(slept, send, message):
    with raw(send) as address:
        start = time.perf_counter()
        with pytest.raises(JudgeFailed, match=message):
            Endpoint(address, "m", KEY, longest=0.2).ask(["which?"])
        assert time.perf_counter() - start < 3


def test_the_error_of_a_server_that_never_ends_it_is_bounded_too(slept):
    def send(sendall):
        sendall(b"HTTP/1.1 400 Bad\r\n\r\n")
        while True:
            sendall(b"no " * LARGE)
    with raw(send) as address, pytest.raises(JudgeFailed, match="sent more than 1048576 bytes"):
        Endpoint(address, "m", KEY).ask(["which?"])


def test_a_slow_answer_within_the_bounds_is_taken(slept):
    body = completion("9 6").encode()

    def send(sendall):
        sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        for i in range(0, len(body), 10):
            sendall(body[i:i + 10])
            threading.Event().wait(0.002)
    with raw(send) as address:
        assert Endpoint(address, "m", KEY, longest=5).ask(["which?"]) == ["9 6"]


@pytest.mark.parametrize("body", ["[" * 500_000, '{"choices":' * 90_000, '[{"a":' * 5000 + "1" + "}]" * 5000,
                                  "9" * 9000, '{"choices": {"0": 1}}', "\ufeff{}", "NaN", '{"choices": [[[]]]}'])
def test_an_answer_of_another_shape_is_one_line(runs, body):
    with serving(lambda prompt: (200, {}, body)) as server:
        said = judge(server)
    assert "did not send a chat completion" in said and "\n" not in said and len(said) < 700


@pytest.mark.parametrize("status", [200, 400])
def test_nothing_that_a_terminal_obeys_is_shown(runs, status, capsys):
    body = "\x1b]0;owned\x07\x1b[2J\x9b31m \u202egnol\u2066\u200b \x00\x08\r\n\u2028 tail"
    with serving(lambda prompt: (status, {}, body)) as server:
        said = judge(server)
    shown = said + "".join(capsys.readouterr())
    assert all(c.isprintable() or c == "\n" for c in shown) and "\\x1b]0;owned\\x07" in said and "tail" in said
    assert "\\u202egnol" in said


def test_a_verdict_with_control_characters_is_kept_escaped_and_not_shown(runs, tmp_path, capsys):
    with serving(lambda prompt: "9 6\n\x1b[2J\u202e\ud800") as server:
        assert judge(server) is None
    kept = (tmp_path / "out" / "judgements.jsonl").read_bytes()
    assert kept.isascii() and b"\x1b" not in kept and b"u001b[2J" in kept
    assert all(c.isprintable() or c == "\n" for c in "".join(capsys.readouterr()))


# ---- a local model ---------------------------------------------------------------------------------------------------

def test_a_local_judge_goes_on_from_the_same_prompts_and_is_known_by_its_weights(runs, tmp_path, wide_base, capsys):
    assert call(judge_script, "a", "b", "--judge-model", wide_base, "--out", "out", "--batch-size", "3") is None
    lines = [json.loads(line) for line in (tmp_path / "out" / "judgements.jsonl").read_text().splitlines()]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["judge"]["judge"] == Source(wide_base).fingerprint
    # random weights
    assert len(lines) == 4 and results["malformed"] == 4 and all(len(line["answers"]) == 2 for line in lines)
    assert any(answer.strip() for line in lines for answer in line["answers"])
    before = hashlib.sha256((tmp_path / "out" / "judgements.jsonl").read_bytes()).hexdigest()
    assert call(judge_script, "a", "b", "--judge-model", wide_base, "--out", "out") is None
    assert hashlib.sha256((tmp_path / "out" / "judgements.jsonl").read_bytes()).hexdigest() == before


def test_what_does_not_fit_a_local_judge_is_refused_before_its_weights_are_read(runs, tmp_path, small_base,
                                                                                monkeypatch):
    monkeypatch.setattr(Source, "load", None)
    said = call(judge_script, "a", "b", "--judge-model", small_base, "--out", "out")
    assert "has 160 positions, but row 0 needs" in said and "\n" not in said
    assert not (tmp_path / "out").exists()


class Scripted:
    name = "scripted"

    def identity(self):
        return {}

    def ask(self, prompts):
        return [fair_judge(prompt) for prompt in prompts]


@given(st.lists(st.tuples(st.sampled_from(["good", "fair", "bad", "odd"]), st.sampled_from(["good", "fair", "bad"])),
                min_size=1, max_size=9), st.integers(1, 4))
def test_counts_add_up_and_batches_do_not_matter(tmp_path_factory, pairs, at_a_time):
    compared = Compared("a", "b", "t", [str(i) for i in range(len(pairs))], [a for a, _ in pairs],
                        [b for _, b in pairs])
    judgements = judge_all(compared, Scripted(), tmp_path_factory.mktemp("out"), at_a_time)
    outcome = outcome_of(judgements, compared)
    order = {"bad": 0, "fair": 1, "good": 2}
    assert outcome.wins == sum(a != "odd" and order[a] > order[b] for a, b in pairs)
    assert outcome.malformed == sum(a == "odd" for a, _ in pairs)
    assert outcome.wins + outcome.ties + outcome.losses + outcome.malformed == outcome.rows == len(pairs)
