"""What the tests of export.py share: runs on a very small model, made without training."""
import json
from pathlib import Path

import torch

from adapters.adapted import adapted_layers
from finetune.models import load_trained, save_adapter
from finetune.run import Run
from finetune.table import float32_logits  # noqa: F401
