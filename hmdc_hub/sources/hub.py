"""Open a dataset of the Hugging Face Hub at one commit.

No code of a dataset is ever run, and tokens are huggingface_hub's business alone (`hf auth login`, HF_TOKEN).
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from hmdc_hub.errors import NetworkError, SourceError
from hmdc_hub.sources.loading import (
    LOGIN,
    card_facts,
    license_text,
    load_builder,
    not_found,
    prepared_splits,
    several_configs,
)
from hmdc_hub.sources.reader import Facts
from hmdc_hub.sources.table import TableReader

_COMMIT = re.compile(r"[0-9a-f]{40}")


def open_hub(source: str, revision: str | None, config: str | None) -> TableReader:
    """Open a Hub dataset; downloads what is not in the cache.

    Without a network (HF_HUB_OFFLINE=1, or the Hub cannot be reached) a revision that is a full commit is read from the
    cache of an earlier run, and only that very commit is.

    Args:
        source: `<owner>/<name>` or `<name>`.
        revision: Branch, tag or commit; None: main.
        config: Configuration; None: the default or only one.

    Raises:
        SourceError: No such dataset, revision or configuration, no access, or it consists of code.
        NetworkError: The Hub cannot be reached and the cache does not have it.
    """
    from huggingface_hub import constants

    pinned = revision is not None and _COMMIT.fullmatch(revision) is not None
    if constants.HF_HUB_OFFLINE:
        if not pinned:
            raise NetworkError(
                f"source.revision: HF_HUB_OFFLINE is set, and offline {source} can only be read from the cache at a "
                f"full commit, not {revision or 'main'!r}",
                hint="Unset HF_HUB_OFFLINE, or copy  revision: <40 hex digits>  from an earlier run's recipe.yaml.",
            )
        return _from_cache(source, str(revision), config, "HF_HUB_OFFLINE is set")
    try:
        facts = hub_facts(source, revision)
    except NetworkError as error:
        if not pinned:
            raise
        return _from_cache(source, str(revision), config, error.message)
    builder = load_builder(source, source, config=config, revision=facts.revision)
    if builder.hash != facts.revision:
        # When a download fails, datasets falls back to whatever commit it prepared last, with a warning only.
        raise NetworkError(
            f"{source} could not be read at commit {facts.revision}: the download failed, and the cache holds "
            f"{str(builder.hash)[:12]} instead",
            hint="Check the network and run the command again.",
        )
    return TableReader(replace(facts, config=builder.config.name), prepared_splits(source, builder))


def hub_facts(source: str, revision: str | None) -> Facts:
    """Ask the Hub which commit a revision is, and for licence and gating.

    Raises:
        SourceError: No such dataset or revision, or no access.
        NetworkError: The Hub did not answer.
    """
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: imported there, not exported
        GatedRepoError,
        HFValidationError,
        HTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = dataset_info(source, revision)
    except GatedRepoError as error:
        raise SourceError(f"source.id: {source} is gated, and this account has no access", hint=LOGIN) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise not_found(source) from error
    except RevisionNotFoundError as error:
        raise SourceError(
            f"source.revision: {source} has no branch, tag or commit {revision!r}",
            hint="Leave revision out to take the newest commit, which the run then records.",
        ) from error
    except (HTTPError, OSError) as error:
        raise NetworkError(
            f"The Hub could not be asked about {source}: {error}",
            hint="Check the network and run the command again; or work from the cache with HF_HUB_OFFLINE=1 and a full "
            "commit as revision.",
        ) from error
    return Facts(
        source,
        "hub",
        revision=info.sha,
        license=license_text(getattr(info.card_data, "license", None)),
        gated=bool(info.gated),
        private=bool(info.private),
    )


def dataset_info(source: str, revision: str | None) -> Any:
    """Call the Hub; a function of its own so that tests can put another in its place."""
    from huggingface_hub import HfApi

    import hmdc_hub

    api = HfApi(library_name="hmdc-hub", library_version=hmdc_hub.__version__)
    return api.dataset_info(source, revision=revision, timeout=30)


def _from_cache(source: str, commit: str, config: str | None, why: str) -> TableReader:
    """Read what `datasets` prepared of one commit; its own fallback would take the commit it prepared last."""
    import datasets
    from datasets.naming import camelcase_to_snakecase
    from datasets.packaged_modules.cache.cache import Cache
    from huggingface_hub import try_to_load_from_cache

    owner, _, name = source.rpartition("/")
    folder = f"{owner}___{camelcase_to_snakecase(name)}" if owner else camelcase_to_snakecase(name)
    root = Path(datasets.config.HF_DATASETS_CACHE).expanduser() / folder
    found = {path.parts[-4]: path.parent for path in root.glob(f"*/*/{commit}/dataset_info.json")}
    if config is None and len(found) > 1:
        raise several_configs(source, sorted(found))
    chosen = config or next(iter(found), "")
    if chosen not in found:
        raise NetworkError(
            f"{source} at commit {commit}{f' ({config})' if config else ''} is not in the cache, and {why}",
            hint="Run the command once with a network; the cache is kept in HF_HOME.",
        )
    builder = Cache(dataset_name=name, repo_id=source, config_name=chosen, version=found[chosen].parts[-2], hash=commit)
    card = try_to_load_from_cache(source, "README.md", revision=commit, repo_type="dataset")
    license_id, gated = card_facts(Path(card) if isinstance(card, str) else None)
    facts = Facts(source, "hub", revision=commit, config=chosen, license=license_id, gated=gated)
    return TableReader(facts, prepared_splits(source, builder))
