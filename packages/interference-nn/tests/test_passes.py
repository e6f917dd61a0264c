import torch
from torch import nn

from interference_nn.passes import counted


def test_counts_what_runs_and_goes_back():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    x = torch.rand(5, 1, 2, 2)
    with counted(model) as passes:
        with torch.no_grad():
            model(x)
        assert (passes.forward, passes.backward) == (5, 0)
        model(x).sum().backward()
        assert (passes.forward, passes.backward) == (10, 5)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        torch.autograd.grad(model(image := x.clone().requires_grad_()).sum(), image)
        assert (passes.forward, passes.backward) == (15, 10)
        model(x)
    model(x)
    assert (passes.forward, passes.backward) == (20, 10)
