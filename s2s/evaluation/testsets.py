"""The test sets that sacreBLEU knows by name, as far as it has fetched them; nothing here opens a connection."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from s2s.errors import DataError, UsageError


class NamedSet(NamedTuple):
    """Files that sacreBLEU keeps; several references where the set has them."""

    source: Path
    references: list[Path]


def named_set(name: str, language_pair: str) -> NamedSet:
    """Where the files of a test set are. Raises UsageError for unknown names, DataError for one that is not fetched."""
    from sacrebleu.dataset import DATASETS

    if name not in DATASETS:
        raise UsageError("--testset", f"sacreBLEU knows no {name}", "sacrebleu --list shows the names")
    dataset: Any = DATASETS[name]
    if language_pair not in dataset.langpairs:
        pairs = ", ".join(sorted(dataset.langpairs))
        raise UsageError("--language-pair", f"{name} has no {language_pair}", f"it has {pairs}")
    fetch = f"sacrebleu --download {name} --language-pair {language_pair}"
    for archive in _archives(dataset):
        # Where an archive is missing, sacreBLEU fetches it unasked, so this must come before anything is asked of it.
        if not (archive.is_file() and archive.stat().st_size):
            raise DataError(f"{name} {language_pair}", f"{archive} is not there", f"fetch it: {fetch}")
    try:
        source = Path(dataset.get_source_file(language_pair))
        return NamedSet(source, [Path(path) for path in dataset.get_reference_files(language_pair)])
    except Exception as error:  # an archive that is cut short or not what it should be fails in many ways
        folder = _archives(dataset)[0].parent.parent
        what = f"what is in {folder} cannot be used: {error}"
        raise DataError(f"{name} {language_pair}", what, f"delete that folder, then {fetch}") from error


def _archives(dataset: Any) -> list[Path]:
    """Where sacreBLEU keeps what it has fetched of a test set."""
    return [Path(dataset._rawdir, dataset._get_tarball_filename(url)) for url in dataset.data]
