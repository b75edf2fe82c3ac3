"""Call the `datasets` library, for the Hub and for local files, and explain what it raises."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hmdc_hub.errors import NetworkError, SourceError

LOGIN = "If it exists and is private or gated, accept its terms on its page and log in with  hf auth login"


def load_builder(
    source: str,
    path: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    data_files: Mapping[str, str] | None = None,
) -> Any:
    """Call `datasets.load_dataset_builder` and explain what it raises.

    Args:
        source: Id as the user wrote it, for errors.
        path: What `datasets` is given.
        config: Configuration; None: the default or only one.
        revision: Commit of a Hub dataset.
        data_files: For the parquet builder.

    Raises:
        SourceError: The dataset, its configuration or its files are not as they must be.
        NetworkError: The Hub failed.
    """
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    if path == source and source in _packaged_builders():
        raise not_found(source)
    try:
        return datasets.load_dataset_builder(
            path, name=config, revision=revision, data_files=dict(data_files) if data_files else None
        )
    except DatasetNotFoundError as error:
        raise SourceError(f"source.id: {error}", hint=LOGIN) from error
    except Exception as error:
        raise _explained(source, error, config) from error


def prepared_splits(source: str, builder: Any) -> Mapping[str, Any]:
    """Download and prepare all splits of a builder's configuration.

    Returns:
        Split name to `datasets.Dataset`, memory-mapped from the cache of `datasets`.

    Raises:
        SourceError: The files are damaged or contradict one another.
        NetworkError: A download failed.
    """
    try:
        builder.download_and_prepare()
        return dict(builder.as_dataset())
    except Exception as error:
        raise _explained(source, error) from error


def card_facts(readme: Path | None) -> tuple[str | None, bool]:
    """Read licence and gating from a dataset card; no card, or none that can be read, means no licence.

    Whether a dataset is gated is a setting of the Hub and not in the card; the texts of its consent form are.
    """
    from huggingface_hub import DatasetCard

    if readme is None or not readme.is_file():
        return None, False
    try:
        data = DatasetCard.load(readme).data.to_dict()
    except ValueError:
        return None, False
    return license_text(data.get("license")), any(str(key).startswith("extra_gated") for key in data)


def license_text(value: object) -> str | None:
    """Turn the licence of a card, one id or a list of them, into text."""
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or None
    return str(value) if value else None


def not_found(source: str) -> SourceError:
    """Say that neither this machine nor the Hub has a dataset."""
    return SourceError(
        f"source.id: there is no folder or file {source!r} here, and no dataset of that name on the Hub that this "
        "account can see",
        hint=f"Check the spelling. {LOGIN}",
    )


def several_configs(source: str, names: list[str]) -> SourceError:
    """Say that a configuration must be chosen."""
    return SourceError(
        f"source.config: {source} has several configurations and no default: {', '.join(names)}",
        hint=f"Choose one, for example  config: {names[0]}",
    )


def _explained(source: str, error: Exception, config: str | None = None) -> SourceError | NetworkError:
    """Turn what `datasets` raised into one of our errors."""
    from datasets.exceptions import SplitsVerificationError
    from huggingface_hub.errors import GatedRepoError

    chain = list(_chain(error))
    text = str(chain[-1]) or str(error)
    if isinstance(error, ValueError) and ("Config name is missing" in str(error) or "BuilderConfig" in str(error)):
        return _wrong_config(source, config, str(error))
    if "Dataset scripts are no longer supported" in text:
        return SourceError(
            f"source.id: {source} is a program (a dataset script), and no code of a dataset is ever run",
            hint="Many such datasets have a converted copy:  revision: refs/convert/parquet",
        )
    if any(isinstance(one, GatedRepoError) for one in chain):
        return SourceError(f"source.id: {source} is gated, and this account has no access", hint=LOGIN)
    if any(_is_network(one) for one in chain):
        return NetworkError(f"{source} could not be downloaded: {text}", hint="Run the command again.")
    if isinstance(error, SplitsVerificationError):
        return SourceError(
            f"source.id: the sizes in the README of {source} are not those of its files: {text}",
            hint="Correct dataset_info in the README, or remove it.",
        )
    if "BatchSize must be greater than 0" in text:
        return SourceError(
            f"source.id: a parquet file of {source} has no rows; a split needs one image at least",
            hint="Remove the empty file, or fill it.",
        )
    if isinstance(error, FileNotFoundError):
        return SourceError(
            f"source.id: {source} holds no files that can be read: {text}",
            hint="It needs train/<class>/<image> folders, parquet files, or a README that says where they are.",
        )
    return SourceError(
        f"source.id: {source} cannot be read: {text}", hint="Check its files with  datasets.load_dataset"
    )


def _is_network(error: BaseException) -> bool:
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: imported there, not exported
        EntryNotFoundError,
        HTTPError,
        LocalEntryNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError):
        return True  # not in the cache, and it could not be fetched
    # A file that the Hub does not have is no failure: datasets asks for optional ones and goes on.
    return isinstance(error, HTTPError | ConnectionError | TimeoutError) and not isinstance(error, EntryNotFoundError)


def _wrong_config(source: str, config: str | None, text: str) -> SourceError:
    # datasets lists the configurations in its message: asking for them again would take six requests more.
    bracket = re.search(r"\[(.*?)\]", text, re.DOTALL)
    names = re.findall(r"'([^']+)'", bracket[1]) if bracket else []
    if not names:
        return SourceError(f"source.config: {text}", hint="Choose one, for example  config: default")
    if config is None:
        return several_configs(source, names)
    return SourceError(
        f"source.config: {source} has no configuration {config!r}; it has {', '.join(names)}",
        hint=f"Write for example  config: {names[0]}",
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Walk from an error to what caused it."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _packaged_builders() -> frozenset[str]:
    """Names that `datasets` takes for file formats before it asks the Hub."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    return frozenset(_PACKAGED_DATASETS_MODULES)
