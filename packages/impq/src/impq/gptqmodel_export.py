"""A bit plan as the configuration of gptqmodel, which is no dependency: install it into an environment of its own."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

from impq.bit_plan import BitPlan


def gptqmodel_config(plan: BitPlan) -> dict[str, Any]:
    """The plan as keyword arguments of `gptqmodel.QuantizeConfig`: the high width, and a rule per module below it.

    Args:
        plan: any plan with groups along the input, or one group per row.

    Returns:
        `{"bits", "group_size", "dynamic": {regular expression of one module name: {"bits"}}}`.

    Raises:
        ValueError: if the plan has one group per tensor, which gptqmodel cannot express.
    """
    if plan.group_size == "row":
        group_size = -1  # gptqmodel's word for one group per row
    elif isinstance(plan.group_size, int):
        group_size = plan.group_size
    else:
        raise ValueError(f"group_size is {plan.group_size!r}; gptqmodel needs a number of weights or 'row'")
    high = plan.widths[0]
    rules = {f"^{re.escape(module)}$": {"bits": bits} for module, bits in plan.module_bits.items() if bits != high}
    return {"bits": high, "group_size": group_size, "dynamic": rules}


def quantize_config(plan: BitPlan) -> Any:
    """The plan as a `gptqmodel.QuantizeConfig`.

    Raises:
        ImportError: if gptqmodel is not installed.
        ValueError: see `gptqmodel_config`.
    """
    try:
        gptqmodel = import_module("gptqmodel")  # takes half a minute
    except ImportError:
        raise ImportError(
            "gptqmodel is not installed; `pip install gptqmodel` into an environment of its own"
        ) from None
    return gptqmodel.QuantizeConfig(**gptqmodel_config(plan))
