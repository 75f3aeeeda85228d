"""A judge behind an address: any server with OpenAI's /chat/completions. It needs only the standard library.

The address and the key come from OPENAI_BASE_URL and OPENAI_API_KEY. The key is sent in one header of the requests to
that address, and nowhere else. Redirections are not followed, and the key is removed from the server's texts before
they are shown or stored.
"""
import email.utils
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field

OPENAI = "https://api.openai.com/v1"
TRIES = 6                # for one answer
FIRST_WAIT = 1.0         # seconds; doubled after each try
LONGEST_WAIT = 120.0     # seconds; if the server asks for a longer wait, judging stops
TIMEOUT = 120.0          # seconds without a byte
NEW_TOKENS = 64          # two numbers need a few


class JudgeFailed(ValueError):
    """The message is one line: why there is no answer, and the remedy."""


class NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None  # urllib would send the key to the other address; now status 3xx is an error


OPENER = urllib.request.build_opener(NoRedirection)


@dataclass(frozen=True)
class Endpoint:
    address: str
    model: str
    key: str | None = field(default=None, repr=False)
    seed: int = 0
    timeout: float = TIMEOUT

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
                return self._content(self._post(body))
            except urllib.error.HTTPError as error:
                reason, asked = self._reason(error), wait_asked_for(error.headers.get("Retry-After"))
                if error.code != 429 and error.code < 500:
                    raise JudgeFailed(reason) from None
            except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out; URLError is an OSError
                cause = self._shown(getattr(error, "reason", None) or error)
                reason, asked = f"{self.address} was not reached ({cause})", 0.0
            wait = max(asked, FIRST_WAIT * 2 ** (number - 1))
            if number == TRIES or asked > LONGEST_WAIT:
                later = f", and the server asks to wait {asked:.0f} s" if asked > LONGEST_WAIT else ""
                raise JudgeFailed(f"{reason}; number of tries: {number}{later}")
            time.sleep(wait)

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json",
                   **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        request = urllib.request.Request(f"{self.address}/chat/completions", body, headers)
        with OPENER.open(request, timeout=self.timeout) as response:
            return response.read()

    def _content(self, body: bytes) -> str:
        """The message's text, or an empty one if the judge sent none: `read_scores` then finds it malformed."""
        try:
            content = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            sent = self._shown(body.decode(errors="replace"))
            raise JudgeFailed(f"{self.address}/chat/completions did not send a chat completion but {sent!r}; "
                              "check OPENAI_BASE_URL") from None
        return self._without_key(content) if isinstance(content, str) else ""

    def _reason(self, error: urllib.error.HTTPError) -> str:
        url = f"{self.address}/chat/completions"
        try:
            said = self._shown(error.read().decode(errors="replace"))
        except (OSError, http.client.HTTPException):
            said = ""
        reasons = {401: f"{url} refuses the key (401): set OPENAI_API_KEY to a valid one",
                   403: f"{url} does not allow this key (403): {said}",
                   404: f"{url} does not exist, or has no model {self.model!r} (404): check OPENAI_BASE_URL, which "
                        "usually ends in /v1, and --judge",
                   429: f"{url} takes no more requests now, or the account's quota is used up (429): {said}"}
        return reasons.get(error.code, f"{url} answered with status {error.code}: {said}")

    def _shown(self, text: object) -> str:
        """At most 300 characters of `text`, on one line and without the key."""
        return self._without_key(" ".join(str(text).split()))[:300]

    def _without_key(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text


def wait_asked_for(header: str | None) -> float:
    """Seconds that Retry-After asks for, as a number or a date (RFC 9110, Sec. 10.2.3); 0 if absent or invalid."""
    if not header:
        return 0.0
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0
