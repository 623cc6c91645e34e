"""Explain errors of the operating system: what is missing, and what the user can do."""

from __future__ import annotations

import errno
import resource

from multiseg.errors import ResourceError

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE})
NOT_PERMITTED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
NOT_SUPPORTED = frozenset(
    {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EBADF, errno.ENOTTY}
)
"""Errors of network and user-space file systems for calls that they do not support. (EBADF: NFS locks only files open
for writing.) A failing disk reports EIO, which is not one of them."""
OUT_OF_RESOURCE = NO_ROOM | NO_DESCRIPTOR | NOT_PERMITTED
DESCRIPTORS = 65_536
"""The most that are requested: some programs close every possible descriptor when they start."""


def remedy(error: BaseException, otherwise: str) -> str:
    """A sentence on what the user can do about an error of the system; `otherwise` if the error does not say.

    >>> remedy(OSError(errno.ENOSPC, "no space"), "Check the disk.")
    'Free some disk space.'
    """
    number = getattr(error, "errno", None)
    if number in NO_DESCRIPTOR:
        return f"{too_many_files(number)}."
    if number in NO_ROOM:
        return "Free some disk space."
    if number == errno.EROFS:
        return "It is read-only. Choose another place."
    if number in (errno.EACCES, errno.EPERM):
        return "Check its permissions."
    if number in NOT_SUPPORTED:
        return "Its file system does not support this. Choose a place on another one."
    return otherwise


def too_many_files(number: int | None = errno.EMFILE) -> str:
    """What to do if no more files can be opened, which is not the fault of any file or disk."""
    if number == errno.ENFILE:
        return "Too many open files in the whole system: raise fs.file-max, or close other programs"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    maximum = "" if hard == soft else f", at most {'any number' if hard == resource.RLIM_INFINITY else hard}"
    return f"Too many open files (limit {soft}{maximum}): raise it with ulimit -n, or use fewer workers"


def check_machine(error: BaseException) -> None:
    """Raise an error if a file could not be opened because of the machine, not because of the file.

    Raises:
        ResourceError: too many files are open, or a disk is full.
    """
    if getattr(error, "errno", None) in NO_ROOM | NO_DESCRIPTOR:
        raise ResourceError(f"{error}. {remedy(error, '')}") from error


def raise_descriptor_limit() -> int:
    """Let this process and its children open as many files as the system allows; returns that number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):  # macOS allows fewer than it reports
            return soft
        return wanted
    return soft
