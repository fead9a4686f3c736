"""A build folder is replaced as a whole: whatever happens in between, it holds the old build or the new one, and never a mixture."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

from qn_deploy.errors import InputError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of linux/fcntl.h and linux/fs.h
_CANNOT = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # the file system or the kernel swaps no names


@contextmanager
def replacing(
    folder: Path, own: Callable[[Path], set[str]], progress: Callable[[str], None] = lambda stage: None
) -> Iterator[Callable[[Mapping[str, bytes]], Path]]:
    """Gives a function that writes files into a new folder beside `folder`; when the block ends well, the new one takes its place.

    The new folder is synced before, and the names are swapped in one step (renameat2), so a kill, a crash or a full disk at any moment
    leaves the old build whole or the new one whole. A second export into the same folder waits for the first. What a killed one left
    behind is swept by the next.

    Files of the user that lie in `folder` are carried over, folders and links too: they are hard-linked into the new folder before the
    swap, so that there is no moment without them; where the file system has no hard links, they are copied.

    Args:
        folder: the build folder; made if it is missing. A link to a folder stays one.
        own: the names of the files in the folder that an earlier export wrote, and that go away with it.
        progress: told if another export has to be waited for.

    Raises:
        InputError: the folder can't be made or replaced, or holds a folder in place of a file that is to be written.
    """
    with _named(folder):
        place = check_place(folder)
        new, aside = (place.with_name(f".{place.name}.qn-deploy-{what}") for what in ("new", "old"))
        if not place.parent.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
        lock = _claim(new, folder, progress)
    try:
        with _named(folder):
            _sweep(place, new, aside)

        def write(files: Mapping[str, bytes]) -> Path:
            with _named(folder):
                for name, data in files.items():
                    _write(new / name, data)
            return new

        yield write
        with _named(folder):
            _swap(place, new, aside, own(place) if place.is_dir() else set())
            _sync(place.parent)
    finally:
        if _is(lock, new):  # not swapped: what was written so far goes
            shutil.rmtree(new, ignore_errors=True)
        os.close(lock)


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{folder} can't be made: {reason}; choose another folder with --out") from error


def check_place(folder: Path) -> Path:
    """Where a build folder really is, if it can be replaced as a whole.

    Raises:
        InputError: a file stands there or above it, or it is a mount point, or this process runs in it.
    """
    with _named(folder):
        place = Path(os.path.realpath(folder))
        if place.exists() and not place.is_dir():
            raise InputError(f"{folder} can't be made: a file stands in its place; choose another folder with --out")
        above = next(parent for parent in place.parents if parent.exists())
        if not above.is_dir():
            raise InputError(f"{folder} can't be made: {above.name} is a file; choose another folder with --out")
        if os.path.ismount(place):
            raise InputError(f"{folder} is the root of a file system, which can't be swapped; give a folder in it")
        here = Path(os.path.realpath(os.getcwd()))
        if place == here or place in here.parents:
            raise InputError(f"{folder} is the working folder, or holds it, and a build is swapped as a whole; give --out build")
        return place


def _claim(new: Path, folder: Path, progress: Callable[[str], None]) -> int:
    """A locked descriptor of the folder `new`, made if it is missing. The lock ends with the process, however that ends."""
    while True:
        with suppress(FileExistsError):
            new.mkdir()
        try:
            descriptor = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue  # another export has just ended
        try:
            if os.fstat(descriptor).st_uid != os.geteuid():
                raise InputError(f"{new} is of another user; remove it, or choose another folder with --out")
            try:
                flock(descriptor, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                progress(f"waiting for another export into {folder}")
                flock(descriptor, LOCK_EX)
            if _is(descriptor, new):  # else the other export has swapped it
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is(descriptor: int, path: Path) -> bool:
    """True if the path still leads to what the descriptor holds."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _sweep(place: Path, new: Path, aside: Path) -> None:
    """Removes what a killed export left; where it was killed between two renames, the old build gets its name back."""
    if aside.is_dir() and not place.exists():
        aside.rename(place)
    shutil.rmtree(aside, ignore_errors=True)
    for entry in os.scandir(new):
        _remove(Path(entry.path))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _swap(place: Path, new: Path, aside: Path, before: set[str]) -> None:
    """Gives the new folder its name, and removes the old build, if there was one."""
    if not place.exists():
        _sync(new)
        new.rename(place)
        return
    old = os.open(place, os.O_RDONLY | os.O_DIRECTORY)  # once it is called `new`, another export must not take it for one of its own
    try:
        flock(old, LOCK_EX)
        _carry_over(place, new, before)
        new.chmod(place.stat().st_mode & 0o7777)
        _sync(new)
        _exchange(place, new, aside)
        _carry_over(new, place, before)  # what came while the others were carried over
        shutil.rmtree(new, ignore_errors=True)  # what can't be removed now is swept by the next export
    finally:
        os.close(old)


def _carry_over(old: Path, new: Path, before: set[str]) -> None:
    for entry in os.scandir(old):
        target = new / entry.name
        is_folder = entry.is_dir(follow_symlinks=False)
        if os.path.lexists(target):
            if is_folder and not target.is_dir():
                raise InputError(f"{old / entry.name} is a folder, in place of a file of the build; move it, or choose another --out")
        elif entry.name in before:
            continue
        elif is_folder:
            shutil.copytree(entry.path, target, symlinks=True, copy_function=_link)
        else:
            _link(entry.path, str(target))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _exchange(place: Path, new: Path, aside: Path) -> None:
    """Swaps two names in one step; with three renames where the file system can't, of which `_sweep` mends what a kill left."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.renameat2(_AT_FDCWD, os.fsencode(place), _AT_FDCWD, os.fsencode(new), _RENAME_EXCHANGE):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    except (OSError, AttributeError) as error:  # AttributeError: a C library without the call
        if isinstance(error, OSError) and error.errno not in _CANNOT:
            raise
        place.rename(aside)
        try:
            new.rename(place)
        except OSError:
            aside.rename(place)
            raise
        aside.rename(new)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
