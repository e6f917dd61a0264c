"""What a package imports, read from its source: the adapter rule and undeclared dependencies."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

# framework -> prefixes of the files that may import it; a file may also import what its own framework is built on
ADAPTERS = {
    "accelerate": ("accelerate_", "hf_", "trl_", "peft_", "diffusers_"),
    "anomalib": ("anomalib_",),
    "art": ("art_",),
    "datasets": ("hf_", "trl_"),
    "diffusers": ("diffusers_",),
    "fairlearn": ("fairlearn_",),
    "flwr": ("flwr_",),
    "gguf": ("hf_",),
    "gptqmodel": ("gptqmodel_",),
    "hqq": ("hqq_",),
    "huggingface_hub": ("hf_",),
    "inspect_ai": ("inspect_",),
    "lm_eval": ("lm_eval_",),
    "open_clip": ("open_clip_",),
    "openai": ("openai_",),
    "optimum": ("quanto_",),
    "peft": ("peft_", "trl_"),
    "ray": ("ray_", "flwr_"),
    "sae_lens": ("sae_lens_",),
    "sksurv": ("sksurv_",),
    "timm": ("timm_",),
    "tokenizers": ("hf_", "trl_"),
    "torch_geometric": ("pyg_",),
    "torchattacks": ("torchattacks_",),
    "torchvision": ("torchvision_", "timm_"),
    "transformers": ("hf_", "trl_", "peft_", "diffusers_"),
    "trl": ("trl_",),
    "vllm": ("vllm_",),
}
PASSED_IN = (
    "gptqmodel",
    "vllm",
)  # no lock holds them beside the rest: the user brings the object, its adapter imports late
EXEMPT = ("study.py", "cli.py", "__init__.py")


def imported(path: Path) -> Iterator[tuple[str, int, bool]]:
    """(top-level name, line, whether at module level) of every absolute import in a file, typing-only ones left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    inside = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = [node.module]
        else:
            continue
        for name in names:
            yield name.partition(".")[0], node.lineno, id(node) not in inside


def misplaced_imports(package: Path) -> list[str]:
    """Imports that break the adapter rule: a framework outside the files named after it, matplotlib at module level."""
    found = []
    for path in sorted(package.rglob("*.py")):
        if path.name in EXEMPT:
            continue
        for name, line, at_module_level in imported(path):
            where = f"{path.relative_to(package)}:{line}"
            if name in ADAPTERS and not path.name.startswith(ADAPTERS[name]):
                found.append(f"{where} imports {name}; move it to a file {ADAPTERS[name][0]}*.py")
            if name == "matplotlib" and at_module_level:
                found.append(f"{where} imports matplotlib at module level; import it in the plotting function")
    return found


def undeclared_imports(package: Path, distribution: str) -> list[str]:
    """Imports of what the distribution does not itself require, extras included."""
    required = {_normal(distribution)}
    for requirement in metadata.requires(distribution) or []:
        required |= {_normal(name) for name in re.findall(r"^[A-Za-z0-9._-]+", requirement)}
    owners = metadata.packages_distributions()
    found = []
    for path in sorted(package.rglob("*.py")):
        for name, line, _ in imported(path):
            if name in (package.name, *PASSED_IN) or name in sys.stdlib_module_names:
                continue
            # an editable install lists no modules, so the house's own naming stands in for its record
            if not required & {_normal(owner) for owner in [*owners.get(name, []), name, f"aisec-{name}"]}:
                found.append(
                    f"{path.relative_to(package)}:{line} imports {name}, which {distribution} does not require"
                )
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
