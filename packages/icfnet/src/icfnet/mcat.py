"""Cohorts in the layout of MCAT: one table of slides with clinical and gene columns, signatures, splits, CLAM bags."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from icfnet.clinical_text import ClinicalFacts, clinical_inputs
from icfnet.cohort import Cohort

NEEDED = ("case_id", "slide_id", "is_female", "age", "survival_months", "censorship")
OPTIONAL = ("race", "pharmaceutical_treatment", "radiation_treatment")
MODALITIES = ("_mut", "_cnv", "_rnaseq")  # what a gene may contribute
_ANSWERS: Mapping[Any, bool | None] = {"yes": True, "no": False, "not reported": None, "unknown": None}


def load_mcat_cohort(
    table: str | Path,
    *,
    signatures: str | Path,
    bags: str | Path | None = None,
    splits: str | Path | None = None,
) -> Cohort:
    """Reads a cohort that lies in MCAT's files: one patient a `case_id`, all slides of a patient in one bag.

    Gene groups are the columns of the signatures file; each gene gives the columns NAME_mut, NAME_cnv and NAME_rnaseq
    that the table has. Time is `survival_months`, an event is `censorship` 0. The columns `race` (as the Genomic Data
    Commons writes it), `pharmaceutical_treatment` and `radiation_treatment` (yes, no, not reported) are read where
    they are there; MCAT's own tables have none of them.

    Args:
        table: csv, or a zip that holds one csv; read in place, nothing is extracted.
        signatures: csv, a column of gene names a group.
        bags: folder of CLAM features, `SLIDE.pt` with a tensor [N, D]; a patient none of whose slides is there has no
            bag. None: no patient has one.
        splits: folder of `splits_K.csv` with columns `train` and `val` of case ids; they become `folds`.

    Returns:
        The cohort, patients in the order of the table.

    Raises:
        ValueError: naming the file, column or case where something is missing, contradicts itself or is no number.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> head = "case_id,slide_id,is_female,age,survival_months,censorship,TP53_rnaseq"
    >>> _ = (folder / "table.csv").write_text(f"{head}\\nA,A-1.svs,1,60,12.5,0,0.3\\n")
    >>> _ = (folder / "signatures.csv").write_text("Tumor Suppressor Genes\\nTP53\\n")
    >>> load_mcat_cohort(folder / "table.csv", signatures=folder / "signatures.csv").text[0][0]
    'The patient is a 60-year-old woman.'
    """
    slides = _read_table(Path(table))
    patients = slides.drop_duplicates("case_id").set_index("case_id")
    _check_agreement(slides)
    _check_codes(patients)
    ids = tuple(map(str, patients.index))
    genes, present = _genes(patients, Path(signatures))
    facts = [_facts(str(case), row) for case, row in _clinical(patients).iterrows()]
    text, structured = clinical_inputs(facts)
    groups = {"sex": ["woman" if each.female else "man" for each in facts]}
    if "race" in patients:
        groups["race"] = [each.race or "not reported" for each in facts]
    return Cohort(
        ids=ids,
        time=patients["survival_months"].to_numpy(dtype=float),
        event=patients["censorship"].to_numpy() == 0,
        bags=None if bags is None else _bags(slides, ids, Path(bags)),
        genes=genes,
        genes_present=present,
        text=text,
        structured=structured,
        groups=pd.DataFrame(groups),
        folds=None if splits is None else _folds(ids, Path(splits)),
    )


def _read_table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise ValueError(f"table: there is no file {path}")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if not name.endswith("/")]
            if len(members) != 1:
                raise ValueError(f"table: {path.name} must hold one csv, not {len(members)} files")
            with archive.open(members[0]) as member:  # its name may lead outside (`../`): read, never extracted
                table = pd.read_csv(member, low_memory=False)
    else:
        table = pd.read_csv(path, low_memory=False)
    if missing := [name for name in NEEDED if name not in table]:
        raise ValueError(f"table: {path.name} lacks the column {', '.join(missing)}")
    if len(table) == 0:
        raise ValueError(f"table: {path.name} has no row")
    return table


def _check_agreement(slides: pd.DataFrame) -> None:
    """All slides of a patient say the same about the patient."""
    names = [name for name in slides if name in (*NEEDED, *OPTIONAL) and name != "slide_id"]
    differing = slides[names].groupby("case_id").nunique(dropna=False) > 1
    if differing.to_numpy().any():
        row, at = np.argwhere(differing.to_numpy())[0]
        case, column = differing.index[row], differing.columns[at]
        raise ValueError(f"table: the slides of {case} differ in {column}; a patient has one")


def _check_codes(patients: pd.DataFrame) -> None:
    for name in ("is_female", "censorship"):
        if (odd := ~patients[name].isin((0, 1))).any():
            raise ValueError(f"table: {name} of {_first(odd)} must be 0 or 1, not {patients[name][odd].iloc[0]}")
    for name in ("age", "survival_months"):
        numbers = pd.to_numeric(patients[name], errors="coerce")
        if (odd := ~(np.isfinite(numbers) & (numbers >= 0))).any():
            case = odd.idxmax()
            raise ValueError(
                f"table: {name} of {case} must be a number of at least 0, not {patients.loc[case, name]!r}"
            )


def _first(odd: pd.Series[bool]) -> str:
    return str(odd.index[odd][0])


def _clinical(patients: pd.DataFrame) -> pd.DataFrame:
    return patients[["is_female", "age", *(name for name in OPTIONAL if name in patients)]]


def _facts(case: str, row: pd.Series[Any]) -> ClinicalFacts:
    race = _said(row.get("race"))
    answers: dict[str, bool | None] = {}
    for name in OPTIONAL[1:]:
        said = _said(row.get(name)) or "not reported"
        if said not in _ANSWERS:
            raise ValueError(f"table: {name} of {case} must be yes, no or not reported, not {said!r}")
        answers[name] = _ANSWERS[said]
    try:
        return ClinicalFacts(
            age=float(row["age"]),
            female=bool(row["is_female"]),
            race=None if race in ("not reported", "unknown") else race,
            pharmaceutical=answers["pharmaceutical_treatment"],
            radiation=answers["radiation_treatment"],
        )
    except ValueError as error:
        raise ValueError(f"table: {case}: {error}") from None


def _said(value: Any) -> str | None:
    return None if value is None or pd.isna(value) else str(value).strip().lower()


def _genes(patients: pd.DataFrame, path: Path) -> tuple[dict[str, Tensor], NDArray[np.bool_]]:
    if not path.is_file():
        raise ValueError(f"signatures: there is no file {path}")
    columns = {group: _columns(names, patients) for group, names in pd.read_csv(path).items()}
    if empty := [group for group, found in columns.items() if not found]:
        raise ValueError(f"signatures: no gene of the group {empty[0]!r} is a column of the table")
    used = list(dict.fromkeys(name for found in columns.values() for name in found))
    numbers = patients[used].apply(pd.to_numeric, errors="coerce")
    absent = numbers.isna()
    present = ~absent.all(axis=1).to_numpy()
    torn = absent.to_numpy() & present[:, None]
    if torn.any():
        row, column = np.argwhere(torn)[0]
        raise ValueError(
            f"table: {used[column]} of {patients.index[row]} is no number; fill it in or leave out all of its genes"
        )
    numbers = numbers.fillna(0.0)
    return {
        str(group): torch.tensor(numbers[found].to_numpy(), dtype=torch.float32) for group, found in columns.items()
    }, present


def _columns(names: pd.Series[Any], patients: pd.DataFrame) -> list[str]:
    wanted = (f"{name}{kind}" for name in dict.fromkeys(names.dropna()) for kind in MODALITIES)
    return [column for column in wanted if column in patients]


@dataclass(frozen=True, kw_only=True, eq=False)
class SlideBag:
    """The patches of all slides of a patient, left in their files: a cohort of slides fills tens of GB.

    Args:
        files: one a slide.
        lengths: patches of each.
        features: of a patch.
        dtype: of the first slide; the others are given in it.
    """

    files: tuple[Path, ...]
    lengths: tuple[int, ...]
    features: int
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        """`[N, D]`."""
        return torch.Size((sum(self.lengths), self.features))

    @property
    def identity(self) -> list[tuple[str, int, int]]:
        """Name, size and time of each file."""
        stats = [(file.name, file.stat()) for file in self.files]
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]

    def __getitem__(self, rows: Any) -> Tensor:
        """The patches at `rows`, slides one after the other; only pages of the files that hold them are read."""
        if len(self.files) == 1:
            return _open(self.files[0])[rows].to(self.dtype)
        at = torch.arange(sum(self.lengths))[rows]
        found = torch.empty(len(at), self.features, dtype=self.dtype)
        start = 0
        for file, length in zip(self.files, self.lengths, strict=True):
            here = (at >= start) & (at < start + length)
            if here.any():
                found[here] = _open(file)[at[here] - start].to(self.dtype)
            start += length
        return found


def _bags(slides: pd.DataFrame, ids: tuple[str, ...], folder: Path) -> tuple[SlideBag | None, ...]:
    if not folder.is_dir():
        raise ValueError(f"bags: there is no folder {folder}")
    files = {case: [_bag_file(folder, slide) for slide in of] for case, of in slides.groupby("case_id")["slide_id"]}
    if not any(file.is_file() for of in files.values() for file in of):
        raise ValueError(f"bags: {folder} holds no file of the table's slides, such as {files[ids[0]][0].name}")
    return tuple(_bag(case, tuple(file for file in files[case] if file.is_file())) for case in ids)


def _bag(case: str, files: tuple[Path, ...]) -> SlideBag | None:
    if not files:
        return None
    slides = [_open(file) for file in files]
    widths = [slide.shape[1] for slide in slides]
    if len(set(widths)) > 1:
        raise ValueError(f"bags: the slides of {case} have {widths} features a patch; extract all with one encoder")
    lengths = tuple(len(slide) for slide in slides)
    return SlideBag(files=files, lengths=lengths, features=widths[0], dtype=slides[0].dtype)


def _bag_file(folder: Path, slide: str) -> Path:
    return folder / f"{slide.removesuffix('.svs')}.pt"


def _open(file: Path) -> Tensor:
    """The features of one slide, mapped: reading them is left to who looks at them."""
    patches = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    if not isinstance(patches, Tensor) or patches.ndim != 2 or 0 in patches.shape:
        raise ValueError(f"bags: {file.name} must hold a tensor [patches, features] with at least one patch")
    return patches


def _folds(ids: tuple[str, ...], folder: Path) -> dict[int, tuple[tuple[str, ...], tuple[str, ...]]]:
    files = sorted(folder.glob("splits_*.csv"))
    if not files:
        raise ValueError(f"splits: {folder} holds no splits_K.csv")
    known = set(ids)
    folds = {}
    for file in files:
        table = pd.read_csv(file)
        if missing := [name for name in ("train", "val") if name not in table]:
            raise ValueError(f"splits: {file.name} lacks the column {missing[0]}")
        train, val = (tuple(str(case) for case in table[name].dropna()) for name in ("train", "val"))
        if foreign := [case for case in (*train, *val) if case not in known]:
            raise ValueError(f"splits: {file.name} names {foreign[0]}, who is not in the table")
        if both := set(train) & set(val):
            raise ValueError(f"splits: {file.name} has {min(both)} in train and in val")
        folds[int(file.stem.removeprefix("splits_"))] = (train, val)
    return folds
