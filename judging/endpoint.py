"""A judge behind an address: any server with OpenAI's /chat/completions, by the standard library alone.

The address and the key come from OPENAI_BASE_URL and OPENAI_API_KEY. The key goes into one header of requests to that address, and nowhere
else: redirections are not followed, and what the server says is shown without it.
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
FIRST_WAIT = 1.0         # seconds; doubled from try to try
LONGEST_WAIT = 120.0     # seconds; a server that asks for more is one to come back to
TIMEOUT = 120.0          # seconds without a byte
NEW_TOKENS = 64          # two numbers take a few


class JudgeFailed(ValueError):
    """One line: why there is no answer, and what to do."""


class NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None  # urllib would take the key along to another address; as it is, a 3xx is an error


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
        """Raises ValueError for an address or a key that cannot be one."""
        key, address = os.environ.get("OPENAI_API_KEY", "").strip(), os.environ.get("OPENAI_BASE_URL", "").strip()
        if not (key or address):
            raise ValueError("no judge to ask: set OPENAI_BASE_URL to the address of an OpenAI-compatible server (and OPENAI_API_KEY, where it "
                             "wants a key), or give --judge-model DIR; --dry-run prints the prompts without either")
        if not key.isascii() or not key.isprintable():
            raise ValueError("OPENAI_API_KEY holds characters that no key has")  # without the key
        parts = urllib.parse.urlsplit(address or OPENAI)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError("OPENAI_BASE_URL is not of the form http(s)://host[:port][/path], such as http://localhost:8000/v1; a key goes into "
                             "OPENAI_API_KEY")
        return cls((address or OPENAI).rstrip("/"), model, key or None, seed)

    @property
    def name(self) -> str:
        return self.model

    def identity(self) -> dict:
        """What an answer depends on beside the prompt."""
        return {"judge": self.model, "address": self.address, "seed": self.seed, "temperature": 0}

    def ask(self, prompts: list[str]) -> list[str]:
        """Its answers, one after the other. Raises JudgeFailed."""
        return [self._answer(prompt) for prompt in prompts]

    def _answer(self, prompt: str) -> str:
        body = json.dumps({"model": self.model, "messages": [{"role": "user", "content": prompt}], "temperature": 0, "seed": self.seed,
                           "max_tokens": NEW_TOKENS}).encode()
        for number in range(1, TRIES + 1):
            try:
                return self._content(self._post(body))
            except urllib.error.HTTPError as error:
                reason, asked = self._reason(error), wait_asked_for(error.headers.get("Retry-After"))
                if error.code != 429 and error.code < 500:
                    raise JudgeFailed(reason) from None
            except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out, broken off; URLError is an OSError
                reason, asked = f"{self.address} was not reached ({self._shown(getattr(error, 'reason', None) or error)})", 0.0
            wait = max(asked, FIRST_WAIT * 2 ** (number - 1))
            if number == TRIES or asked > LONGEST_WAIT:
                raise JudgeFailed(f"{reason}; {number} tries" + (f", and it asks to come back in {asked:.0f} s" if asked > LONGEST_WAIT else ""))
            time.sleep(wait)

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        request = urllib.request.Request(f"{self.address}/chat/completions", body, headers)
        with OPENER.open(request, timeout=self.timeout) as response:
            return response.read()

    def _content(self, body: bytes) -> str:
        """The message's text; an empty one where the judge sent none, which is for the reader of scores to refuse."""
        try:
            content = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            raise JudgeFailed(f"{self.address}/chat/completions sent no chat completion but {self._shown(body.decode(errors='replace'))!r}") from None
        return self._without_key(content) if isinstance(content, str) else ""

    def _reason(self, error: urllib.error.HTTPError) -> str:
        url = f"{self.address}/chat/completions"
        try:
            said = self._shown(error.read().decode(errors="replace"))
        except (OSError, http.client.HTTPException):
            said = ""
        reasons = {401: f"{url} refuses the key (401): set OPENAI_API_KEY to one that it takes",
                   403: f"{url} does not let this key in (403): {said}",
                   404: f"{url} is not there, or has no model {self.model!r} (404): check OPENAI_BASE_URL, which mostly ends in /v1, and --judge",
                   429: f"{url} takes no more requests now, or the account is used up (429): {said}"}
        return reasons.get(error.code, f"{url} answered with status {error.code}: {said}")

    def _shown(self, text: object) -> str:
        """One short line."""
        return self._without_key(" ".join(str(text).split()))[:300]

    def _without_key(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text


def wait_asked_for(header: str | None) -> float:
    """Seconds that Retry-After asks for, as a number or a date (RFC 9110, Sec. 10.2.3); 0 where there is none, or none that can be read."""
    if not header:
        return 0.0
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0
