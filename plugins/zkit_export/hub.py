"""The hub, as a place to put an export."""

from __future__ import annotations

from pathlib import Path

from zephyr_kit import ZkitError


def push(folder: Path, repository: str, *, public: bool) -> str:
    """Hand the folder over, as the account that `hf auth login` or HF_TOKEN names; the address of the repository."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub = HfApi()
    try:
        made = hub.create_repo(repository, private=not public, exist_ok=True)
        hub.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="An export of zephyr-kit")
    except (HfHubHTTPError, OSError) as error:
        raise ZkitError(f"{repository}: the hub does not take it ({str(error).splitlines()[0]}); the export is in {folder}") from error
    return str(made)
