"""Checkpoints of the Hugging Face hub, in the hub library's own cache.

Only safetensors, JSON, tokenizer and template files are ever downloaded, and the small ones first: a checkpoint that
would run code is refused before its weights are fetched.
"""

from functools import partial
from pathlib import Path

from core.errors import MissingInput
from harness.safety import refuse_code, safe_checkpoint
from train.foreign import is_adapter

_SMALL = ["*.json", "*.jinja", "tokenizer.model", "vocab.txt", "merges.txt"]
_WEIGHTS = ["*.safetensors"]
_NOT = ["*/*"]
"""Subfolders hold other formats of the same weights."""


def download_model(hub_id: str, revision: str | None) -> Path:
    """The folder of a hub checkpoint at a commit, tag or branch (None: the head of main).

    That of an adapter is returned as it is. Raises MissingInput with what to do when the hub does not give it,
    UnsafeCheckpoint when it could run code.
    """
    folder = _snapshot(hub_id, revision, _SMALL)
    refuse_code(folder)
    # The commit that the first call resolved: main may move between the two.
    whole = _snapshot(hub_id, folder.name, _SMALL + _WEIGHTS)
    return whole if is_adapter(whole) else safe_checkpoint(whole)


def _snapshot(hub_id: str, revision: str | None, patterns: list[str]) -> Path:
    try:
        import httpx
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise MissingInput(f"{hub_id} is on the hub, which needs huggingface_hub: run `pip install -e '.[train]'`.") from error
    fetch = partial(snapshot_download, hub_id, revision=revision, allow_patterns=patterns, ignore_patterns=_NOT)
    try:
        return Path(fetch())
    except errors.GatedRepoError as error:
        raise MissingInput(
            f"{hub_id} is gated: accept its licence on its page, then `hf auth login` or export HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise MissingInput(f"{hub_id} has no revision {revision}; give a commit, tag or branch of its page.") from error
    except errors.RepositoryNotFoundError as error:
        raise MissingInput(
            f"The hub has no {hub_id}, or it is private: correct the name, export HF_TOKEN, or give a local directory."
        ) from error
    except (OSError, ValueError, httpx.HTTPError) as error:  # offline, unreachable, or a name that the hub cannot have
        try:
            return Path(fetch(local_files_only=True))
        except (OSError, ValueError):
            at = f" at {revision}" if revision else ""
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise MissingInput(
                f"{hub_id}{at} is not in this machine's hub cache and could not be downloaded ({reason}): check the network and "
                "unset HF_HUB_OFFLINE, or give a local directory."
            ) from error
