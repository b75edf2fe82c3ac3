"""What worker processes need beside the modules that are loaded here: they are forked from a server that imported this.

A first optimiser makes torch import its compiler, which takes seconds.
"""

import torch

torch.optim.SGD([torch.zeros(1)])
