"""Small models: one thread each is faster than two, and leaves room for others."""

import torch

torch.set_num_threads(1)
