import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import torch
from hypothesis import settings

torch.manual_seed(0)
# derandomize: the same examples on every machine and in every run. No deadline: CI machines are noisy.
settings.register_profile("project", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("project")
