"""Loads files from Hugging Face with its own client, the package ``huggingface_hub``.

Law: optional. Tokens, proxies and other endpoints are the package's business (HF_TOKEN, HF_ENDPOINT): llmaas keeps none
of them. Files go into the folder of models, not into the package's cache.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from llmaas.errors import ConfigError
from llmaas.model_files.download import DownloadFailed
from llmaas.model_files.source import HubFile, parts_of_name


def require_hub() -> None:
    """Raises ConfigError if the package is not installed."""
    if find_spec("huggingface_hub") is None:
        raise ConfigError(
            "hf: needs the package huggingface_hub, which is not installed",
            hint="pip install 'llmaas[hub]'; or give the file's https:// address.",
        )


def load_from_hub(source: HubFile, folder: Path) -> Path:
    """Load a file, and the others of its model if it is the first of several, into ``folder``; the package shows its
    own progress. An interrupted one goes on. Returns the path of the first. Raises ConfigError, DownloadFailed."""
    require_hub()
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    head, _, name = source.path.rpartition("/")
    loaded = []
    for part in parts_of_name(name):
        try:
            found = hf_hub_download(
                repo_id=source.repo,
                filename=f"{head}/{part}" if head else part,
                revision=source.revision or None,
                local_dir=folder,
            )
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise DownloadFailed(f"{source.repo}: {part} cannot be loaded: {lines[0]}") from error
        loaded.append(Path(found))
    return loaded[0]
