"""Safety samples (flagged prompt, refusal) mixed into the training data."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, concatenate_datasets


def mixed(train_dataset: Any, safety_dataset: Any, *, seed: int) -> Dataset:
    """Both data sets in one, shuffled, so that packing mixes them too.

    Neither may overlap the prompts that directions are measured or refusals are tested with.

    Args:
        train_dataset: the data of the task.
        safety_dataset: 1,000 samples, about 6 % of the whole, in the paper; with the same columns.
        seed: of the order.

    Raises:
        ValueError: for other columns or column types.
        TypeError: for streamed data or anything else that is no `datasets.Dataset`.

    >>> mixed(Dataset.from_dict({"text": ["a", "b"]}), Dataset.from_dict({"text": ["c"]}), seed=0).num_rows
    3

    Source: arXiv 2509.06795, section 4 (ProCon_s^safe, ProCon_wu^safe).
    """
    for name, given in (("train_dataset", train_dataset), ("safety_dataset", safety_dataset)):
        if not isinstance(given, Dataset):
            raise TypeError(f"{name} must be a datasets.Dataset to be mixed, got {type(given).__name__}")
    if set(train_dataset.column_names) != set(safety_dataset.column_names):
        raise ValueError(
            f"safety_dataset must have the columns of train_dataset, {', '.join(sorted(train_dataset.column_names))}, "
            f"got {', '.join(sorted(safety_dataset.column_names))}"
        )
    try:
        both = concatenate_datasets([train_dataset, safety_dataset])
    except ValueError as error:
        raise ValueError(f"safety_dataset does not fit train_dataset: {' '.join(str(error).split())}") from None
    return both.shuffle(seed=seed)
