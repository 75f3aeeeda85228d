"""A judge behind an address: any server with OpenAI's /chat/completions. It needs only the standard library.

The address and the key come from OPENAI_BASE_URL and OPENAI_API_KEY. The key is sent in one header of the requests to
that address, and nowhere else. Redirections are not followed, and the key is removed from the server's texts before
they are shown or stored. Answers are bounded in bytes and in seconds. Control characters in them are shown escaped.
"""
import email.utils
import http.client
import json
import os
import queue
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, NamedTuple

OPENAI = "https://api.openai.com/v1"
TRIES = 6                # for one answer
FIRST_WAIT = 1.0         # seconds; doubled after each try
LONGEST_WAIT = 120.0     # seconds; if the server asks for a longer wait, judging stops
TIMEOUT = 120.0          # seconds without a byte
LONGEST_ANSWER = 240.0   # seconds from the request to the answer's last byte
LARGEST_ANSWER = 1 << 20  # bytes
NEW_TOKENS = 64          # two numbers need a few


class JudgeFailed(ValueError):
    """The message is one line: why there is no answer, and the remedy."""


class NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None  # urllib would send the key to the other address; now status 3xx is an error


OPENER = urllib.request.build_opener(NoRedirection)


class Reply(NamedTuple):
    status: int
    retry_after: str | None
    body: bytes


@dataclass(frozen=True)
class Endpoint:
    address: str
    model: str
    key: str | None = field(default=None, repr=False)
    seed: int = 0
    timeout: float = TIMEOUT
    longest: float = LONGEST_ANSWER

    @classmethod
    def from_environment(cls, model: str, seed: int = 0) -> "Endpoint":
        """Raises ValueError for an invalid address or key."""
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        address = os.environ.get("OPENAI_BASE_URL", "").strip()
        if not (key or address):
            raise ValueError(f"--judge {model}: no server is set; set OPENAI_BASE_URL to the address of an "
                             "OpenAI-compatible server (and OPENAI_API_KEY, if it needs a key), or give --judge-model "
                             "DIR; --dry-run prints the prompts without either")
        if not key.isascii() or not key.isprintable():
            raise ValueError("OPENAI_API_KEY has characters that are not printable ASCII; set it to a valid key")
        parts = urllib.parse.urlsplit(address or OPENAI)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError("OPENAI_BASE_URL is not of the form http(s)://host[:port][/path], such as "
                             "http://localhost:8000/v1; a key must be given by OPENAI_API_KEY")
        return cls((address or OPENAI).rstrip("/"), model, key or None, seed)

    @property
    def name(self) -> str:
        return self.model

    def identity(self) -> dict:
        """What an answer depends on besides the prompt."""
        return {"judge": self.model, "address": self.address, "seed": self.seed, "temperature": 0}

    def ask(self, prompts: list[str]) -> list[str]:
        """The answers, requested one after the other. Raises JudgeFailed."""
        return [self._answer(prompt) for prompt in prompts]

    def _answer(self, prompt: str) -> str:
        body = json.dumps({"model": self.model, "messages": [{"role": "user", "content": prompt}], "temperature": 0,
                           "seed": self.seed, "max_tokens": NEW_TOKENS}).encode()
        for number in range(1, TRIES + 1):
            try:
                reply = self._post(body)
                if 200 <= reply.status < 300:
                    return self._content(reply.body)
                reason, asked = self._reason(reply), wait_asked_for(reply.retry_after)
                if reply.status != 429 and reply.status < 500:
                    raise JudgeFailed(reason)
            except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out; URLError is an OSError
                cause = self._shown(getattr(error, "reason", None) or error)
                reason, asked = f"{self.address} was not reached ({cause})", 0.0
            wait = max(asked, FIRST_WAIT * 2 ** (number - 1))
            if number == TRIES or asked > LONGEST_WAIT:
                later = f", and the server asks to wait {asked:.0f} s" if asked > LONGEST_WAIT else ""
                raise JudgeFailed(f"{reason}; number of tries: {number}{later}")
            time.sleep(wait)

    def _post(self, body: bytes) -> Reply:
        """Raises JudgeFailed for a reply over the bounds. Trying again would not help: a server that is only slow sends
        nothing, and is left after `timeout`."""
        headers = {"Content-Type": "application/json",
                   **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        request = urllib.request.Request(f"{self.address}/chat/completions", body, headers)
        try:
            reply = within(self.longest, lambda: exchange(request, self.timeout))
        except NotInTime:
            raise JudgeFailed(f"{self.address}/chat/completions has not ended its answer after {self.longest:g} s; "
                              "check OPENAI_BASE_URL") from None
        if len(reply.body) > LARGEST_ANSWER:
            raise JudgeFailed(f"{self.address}/chat/completions sent more than {LARGEST_ANSWER} bytes for one answer; "
                              "check OPENAI_BASE_URL")
        return reply

    def _content(self, body: bytes) -> str:
        """The message's text, or an empty one if the judge sent none: `read_scores` then finds it malformed."""
        try:
            content = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            sent = self._shown(body.decode(errors="replace"))
            raise JudgeFailed(f"{self.address}/chat/completions did not send a chat completion but '{sent}'; "
                              "check OPENAI_BASE_URL") from None
        return self._without_key(content) if isinstance(content, str) else ""

    def _reason(self, reply: Reply) -> str:
        url, said = f"{self.address}/chat/completions", self._shown(reply.body.decode(errors="replace"))
        reasons = {401: f"{url} refuses the key (401): set OPENAI_API_KEY to a valid one",
                   403: f"{url} does not allow this key (403): {said}",
                   404: f"{url} does not exist, or has no model {self.model!r} (404): check OPENAI_BASE_URL, which "
                        "usually ends in /v1, and --judge",
                   429: f"{url} takes no more requests now, or the account's quota is used up (429): {said}"}
        return reasons.get(reply.status, f"{url} answered with status {reply.status}: {said}")

    def _shown(self, text: object) -> str:
        """At most 300 characters of `text`, on one line and without the key. What a terminal would obey is escaped."""
        return escaped(" ".join(self._without_key(str(text)).split())[:300])[:300]

    def _without_key(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text


def exchange(request: urllib.request.Request, timeout: float) -> Reply:
    """`timeout`: seconds without a byte. Of the body, one byte over LARGEST_ANSWER is read at most."""
    try:
        with OPENER.open(request, timeout=timeout) as response:
            return Reply(response.status, None, response.read(LARGEST_ANSWER + 1))
    except urllib.error.HTTPError as error:
        return Reply(error.code, error.headers.get("Retry-After"), what_came(error))


def what_came(error: IO[bytes]) -> bytes:
    try:
        return error.read(LARGEST_ANSWER + 1)
    except (OSError, http.client.HTTPException):
        return b""


class NotInTime(Exception):
    pass


def within(seconds: float, work: Callable[[], Reply]) -> Reply:
    """What `work` returns or raises; NotInTime after so many seconds.

    A socket's timeout starts anew with each byte, so it does not bound a server that sends one byte a second. The
    thread is left behind then. It is a daemon: the program ends without it."""
    ended: queue.SimpleQueue[Reply | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            ended.put(work())
        except Exception as error:
            ended.put(error)
    threading.Thread(target=run, daemon=True).start()
    try:
        result = ended.get(timeout=seconds)
    except queue.Empty:
        raise NotInTime from None
    if isinstance(result, Exception):
        raise result
    return result


def escaped(text: str) -> str:
    """Control characters, escape sequences, directions of writing and half surrogate pairs as `\\x1b`, `\\u202e`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def wait_asked_for(header: str | None) -> float:
    """Seconds that Retry-After asks for, as a number or a date (RFC 9110, Sec. 10.2.3); 0 if absent or invalid."""
    if not header:
        return 0.0
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
