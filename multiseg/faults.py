"""What an error of the operating system means: what is missing, and what the user can do about it."""

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
"""What network and user-space file systems answer to a call that they do not have. (EBADF: NFS locks only what is open
for writing.) A disk that fails says EIO, which is not among them."""
OUT_OF_RESOURCE = NO_ROOM | NO_DESCRIPTOR | NOT_PERMITTED
DESCRIPTORS = 65_536
"""As many as are ever asked for: some programs that a process starts close each one that there may be."""


def remedy(error: BaseException, otherwise: str) -> str:
    """What a user can do about an error of the system, as a sentence; `otherwise` where the error does not say.

    >>> remedy(OSError(errno.ENOSPC, "no space"), "Check the disk.")
    'Make room.'
    """
    number = getattr(error, "errno", None)
    if number in NO_DESCRIPTOR:
        return f"{too_many_files(number)}."
    if number in NO_ROOM:
        return "Make room."
    if number == errno.EROFS:
        return "The place is read-only. Name another."
    if number in (errno.EACCES, errno.EPERM):
        return "Check its permissions."
    if number in NOT_SUPPORTED:
        return "Its file system does not support that. Name a place on another one."
    return otherwise


def too_many_files(number: int | None = errno.EMFILE) -> str:
    """The remedy where no file can be opened any more, which says nothing about the file or its disk."""
    if number == errno.ENFILE:
        return "Too many open files in the whole system: raise fs.file-max, or end other programs"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = "" if hard == soft else f", at most {'any number' if hard == resource.RLIM_INFINITY else hard}"
    return f"Too many open files (limit {soft}{most}): raise it with ulimit -n, or give fewer workers"


def check_machine(error: BaseException) -> None:
    """Around a file that cannot be opened: whether it is the machine that lacks something, and no file is to blame.

    Raises:
        ResourceError: too many files are open, or a disk is full.
    """
    if getattr(error, "errno", None) in NO_ROOM | NO_DESCRIPTOR:
        raise ResourceError(f"{error}. {remedy(error, '')}") from error


def raise_descriptor_limit() -> int:
    """Let this process, and those that it starts, open as many files as the system grants it; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):  # macOS grants less than it says
            return soft
        return wanted
    return soft
