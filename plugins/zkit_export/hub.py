"""The hub, as a place to put an export."""

from __future__ import annotations

from pathlib import Path

from zephyr_kit import ZkitError


def check_hub(repository: str, *, public: bool) -> None:
    """Raise ZkitError where the name is none, nobody is logged in, or the repository is public and ought not to be."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, RepositoryNotFoundError

    hub = HfApi()
    try:
        hub.whoami()
        known = hub.repo_info(repository)
    except RepositoryNotFoundError:
        return
    except HFValidationError as error:
        raise ZkitError(f"--push {repository}: is no name of a repository: {str(error).splitlines()[0]}") from error
    except LocalTokenNotFoundError as error:
        raise ZkitError(f"--push {repository}: nobody is logged in to the hub: hf auth login, or set HF_TOKEN") from error
    except (HfHubHTTPError, OSError) as error:
        raise ZkitError(f"--push {repository}: the hub does not answer as it should: {str(error).splitlines()[0]}") from error
    if not known.private and not public:
        raise ZkitError(f"--push {repository}: is there already and public; add --public if everybody may see it, or name another")


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
