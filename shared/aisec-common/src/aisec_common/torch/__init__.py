"""PyTorch parts (devices, activation hooks, tiny models of the real classes); import the submodules."""
