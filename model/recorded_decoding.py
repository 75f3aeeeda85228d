"""Generation on a GPU with the decoder recorded: one launch a token, for all sequences of a batch.

The recording has the shape of its batch: keys and values of all tokens that there may be, whose places are masked until
they are filled. A sequence that has ended stays in the batch, and nobody reads its logits.
"""
import sys

import torch
from torch import Tensor

from model.llama import Allowed, KVCache, Llama
from model.recorded import Recorded, warm_up

RECORDED_FROM = 16  # new tokens: recording takes as long as about four of them
WIDTH = 64          # places for tokens are a multiple of this, so that a recording serves several batches


class RecordedToken:
    """Logits (B, vocab_size) of the token after `tokens` (B, 1), which are added to the cache at `place`."""

    def __init__(self, model: Llama, batch: int, capacity: int):
        self.model, device = model, model.device
        self.cache = model.new_cache(batch, capacity)
        self.mask = torch.zeros(batch, capacity, dtype=torch.bool, device=device)
        self.tokens = torch.zeros(batch, 1, dtype=torch.long, device=device)
        self.place = torch.zeros(1, dtype=torch.long, device=device)
        warm_up(self._logits, device)
        self.logits = Recorded(self._logits, device)

    def begin(self, mask: Tensor) -> None:
        """After the prompts, (B, T), have been read into `cache`."""
        self.mask.zero_()
        self.mask[:, :mask.shape[1]] = mask
        self.place.fill_(mask.shape[1])

    def _logits(self) -> Tensor:
        self.mask.index_fill_(1, self.place, True)
        position = (self.mask.cumsum(-1) - 1).clamp(min=0)  # of every key
        query = self.mask.sum(-1, keepdim=True) - 1         # the newest token's own
        angles = self.model.angles(query, length=0)         # no longrope here: `records`
        x = self.model.vectors(self.tokens)
        allowed = self._allowed(query - position)
        for layer in self.model.model.layers:
            x = layer(x, angles, allowed, self)
        self.place += 1
        return self.model.logits(x[:, -1])

    def _allowed(self, distance: Tensor) -> Allowed:
        config = self.model.config
        windows = {config.window(layer) for layer in range(config.num_hidden_layers)}
        return {window: (self.mask if window is None else self.mask & (distance < window))[:, None, None]
                for window in windows}

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """As `KVCache.extend`, but at a place that the GPU knows; returns all places."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        return keys.index_copy_(2, self.place, k), values.index_copy_(2, self.place, v)


class RecordedCache:
    """A batch on a recording. `logits` reads the prompts first, then one token for each sequence that goes on."""

    def __init__(self, recorded: RecordedToken):
        self.recorded, self.begun = recorded, False
        self.rows: Tensor | None = None  # of the recording that go on; None: all
        recorded.cache.length = 0

    def logits(self, tokens: Tensor, mask: Tensor) -> Tensor:
        recorded = self.recorded
        if not self.begun:
            self.begun = True
            recorded.begin(mask)
            return recorded.model.logits(recorded.model.hidden(tokens, mask, recorded.cache)[:, -1])
        if self.rows is None:
            recorded.tokens.copy_(tokens)
            return recorded.logits()
        recorded.tokens.index_copy_(0, self.rows, tokens)
        return recorded.logits()[self.rows]

    def keep_rows(self, rows: Tensor) -> None:
        self.rows = rows if self.rows is None else self.rows[rows]


class Caches:
    """The caches of one generation. The model's layers must stay what they are while it lasts. One recording is kept:
    batches come sorted by length."""

    def __init__(self, model: Llama, new_tokens: int):
        self.model, self.records = model, records(model, new_tokens)
        self.recorded: RecordedToken | None = None

    def new(self, batch: int, capacity: int) -> "KVCache | RecordedCache":
        shape = batch, -(-capacity // WIDTH) * WIDTH
        try:
            if self.records and (self.recorded is None or self.recorded.mask.shape != shape):
                self.recorded = None  # its memory first
                self.recorded = RecordedToken(self.model, *shape)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            self.records = False
            print(f"generation is not recorded, and launches every kernel: {str(error).splitlines()[0]}",
                  file=sys.stderr)
        return RecordedCache(self.recorded) if self.recorded else self.model.new_cache(batch, capacity)


def records(model: Llama, new_tokens: int) -> bool:
    """longrope changes its angles with the length of the text, which a recording does not know."""
    if (model.config.rope_scaling or {}).get("rope_type") == "longrope":
        return False
    return model.device.type == "cuda" and new_tokens >= RECORDED_FROM


def next_logits(model: Llama, tokens: Tensor, mask: Tensor, cache: KVCache | RecordedCache) -> Tensor:
    """Of the token after `tokens` (B, T), (B, vocab_size). Adds the tokens to the cache. mask: (B, cached + T).

    On a CPU, one token after rows without padding goes without a mask: the same bits, and 2 % of its time less. On a
    GPU, looking at the mask would be a wait for each token."""
    if isinstance(cache, RecordedCache):
        return cache.logits(tokens, mask)
    needed = None if tokens.is_cpu and tokens.shape[1] == 1 and mask.all() else mask
    return model.logits(model.hidden(tokens, needed, cache)[:, -1])
