"""The Hugging Face hub: names of repositories, its cache on this machine, and the transfer of single files.

Only `look`, `fetch` and `upload` use the network. huggingface_hub is imported when first needed; where it keeps the
cache, the login and the address of the hub are its own affair.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merfast.errors import ConfigError, UnavailableError

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_ID = re.compile(rf"({_PART}/{_PART})(?:@([\w./-]+))?", re.ASCII)
_LONGEST = 96  # characters of an id, as the hub has it
_NEVER = re.compile(r"--|\.\.|\.git$")  # in an id


@dataclass(frozen=True)
class Repository:
    """A model repository of the hub, and the revision that is meant.

    Attributes:
        name: "owner/name".
        revision: branch, tag or commit; None is the main branch.
    """

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.name + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Snapshot:
    """What a revision is at present: its commit, and the paths of its files."""

    commit: str
    files: tuple[str, ...]


def repository(text: str | Path, revision: str | None = None) -> Repository | None:
    """The repository that `owner/name` or `owner/name@revision` names, or None if it is no such name."""
    found = _ID.fullmatch(text) if isinstance(text, str) else None
    if found is None or len(found[1]) > _LONGEST or _NEVER.search(found[1]) or (found[2] and revision):
        return None
    return Repository(found[1], revision or found[2])


def named(text: str, revision: str | None = None) -> Repository:
    """As `repository`.

    Raises:
        ConfigError: it is no such name.
    """
    if (found := repository(text, revision)) is None:
        raise ConfigError(f"{text}: got no hub id, expected one like 'owner/name'")
    return found


def cached(repo: Repository) -> Path | None:
    """Folder of the files that the cache has of a revision, if `config.json` is among them; its name is the commit.

    Raises:
        UnavailableError: huggingface_hub is not installed.
    """
    file = library().try_to_load_from_cache(repo.name, "config.json", revision=repo.revision)
    return Path(file).parent if isinstance(file, str) else None


def look(repo: Repository, *, endpoint: str | None = None, token: str | None = None) -> Snapshot:
    """What the hub has of a revision now.

    Raises:
        UnavailableError: there is no such repository or revision, it may not be seen, or the hub cannot be reached.
    """
    with _failures(repo):
        info = library().HfApi(endpoint, token=token).model_info(repo.name, revision=repo.revision)
        return Snapshot(str(info.sha), tuple(f.rfilename for f in info.siblings or ()))


def fetch(repo: Repository, files: Collection[str], *, endpoint: str | None = None, token: str | None = None) -> Path:
    """Get those files that the repository has into the cache, where they are not there yet.

    Returns:
        Their folder in the cache; its name is the commit.

    Raises:
        UnavailableError: as `look`; but if only the hub cannot be reached, and the cache has them, that is no error.
    """
    with _failures(repo), _quiet():
        return Path(
            library().snapshot_download(
                repo.name, revision=repo.revision, allow_patterns=sorted(files), endpoint=endpoint, token=token
            )
        )


def upload(
    repo: Repository,
    files: Mapping[str, Path],
    *,
    private: bool = False,
    message: str,
    endpoint: str | None = None,
    token: str | None = None,
) -> str:
    """Put files into a repository as one commit; the repository, and the branch, are made if they are not there.

    Args:
        repo: where to; its revision is a branch.
        files: path in the repository -> file.
        private: whether only its owner may see it.
        message: of the commit.
        endpoint: address of the hub, if another one.
        token: to log in with, if not the saved one.

    Returns:
        The commit's address.

    Raises:
        ConfigError: the repository is there, and is public, although it is to be private.
        UnavailableError: it is not allowed, or the hub cannot be reached.
    """
    hub = library()
    api = hub.HfApi(endpoint, token=token)
    with _failures(repo), _quiet():
        api.create_repo(repo.name, private=private or None, exist_ok=True)
        public = private and api.model_info(repo.name).private is False
    if public:
        raise ConfigError(f"{repo.name}: got a public repository, expected a private one: change that on its page")
    with _failures(repo), _quiet():
        if repo.revision not in (None, "main") and not str(repo.revision).startswith("refs/"):
            api.create_branch(repo.name, branch=repo.revision, exist_ok=True)
        operations = [hub.CommitOperationAdd(name, str(file)) for name, file in sorted(files.items())]
        made = api.create_commit(repo.name, operations, commit_message=message, revision=repo.revision)
        return str(made.commit_url)


def library() -> Any:
    """huggingface_hub, imported when first needed.

    Raises:
        UnavailableError: it is not installed.
    """
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise UnavailableError("hub: needs huggingface_hub, pip install 'merfast[hub]'") from error


@contextmanager
def _failures(repo: Repository) -> Iterator[None]:
    """Whatever the hub's client raises as one line."""
    try:
        yield
    except Exception as error:  # of the client, of its HTTP client, of the system
        raise UnavailableError(f"{repo}: {_reason(error, repo)}") from error


def _reason(error: BaseException, repo: Repository) -> str:
    errors = library().errors
    while not isinstance(error, errors.HfHubHTTPError) and error.__cause__ is not None:
        error = error.__cause__  # of "an error happened while ..."
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return "gated on the hub: ask for access on its page, and log in with 'hf auth login'"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"no revision {repo.revision or 'main'!r} on the hub"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such repository on the hub, or none for this login ('hf auth login')"
    if status in (401, 403):
        return f"not allowed by the hub ({status}): log in with 'hf auth login', with a token that may do this"
    if isinstance(error, errors.HfHubHTTPError):
        said = getattr(error, "server_message", None) or ""
        return f"refused by the hub ({status}): {line(said or error)}"
    return f"cannot be had from the hub: {line(error)}"


def line(error: BaseException | str) -> str:
    """The first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """No advice from the client, and progress bars on a terminal alone."""
    utils = library().utils
    level, hide = utils.logging.get_verbosity(), not (sys.stderr.isatty() or utils.are_progress_bars_disabled())
    try:
        utils.logging.set_verbosity_error()
        if hide:
            utils.disable_progress_bars()
        yield
    finally:
        utils.logging.set_verbosity(level)
        if hide:
            utils.enable_progress_bars()
