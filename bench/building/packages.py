"""Read files out of source packages (Debian `.deb`, npm `.tgz`) after checking their SHA-256."""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

AR_MAGIC = b"!<arch>\n"
AR_HEADER_BYTES = 60


def read_checked(path: Path, sha256: str) -> bytes:
    """Return the bytes of `path`; refuse a file whose SHA-256 is not `sha256`."""
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(f"{path.name}: expected sha256 {sha256}, found {found}")
    return content


def read_deb(path: Path, sha256: str, members: list[str]) -> list[bytes]:
    """Return the named files of a Debian binary package.

    A `.deb` is an `ar` archive whose member `data.tar.*` holds the installed files (man 5 deb).
    """
    for name, content in _ar_members(read_checked(path, sha256)):
        if name.startswith("data.tar"):
            return _tar_files(content, [f"./{member}" for member in members])
    raise ValueError(f"{path.name}: no data.tar in this package")


def read_npm(path: Path, sha256: str, members: list[str]) -> list[bytes]:
    """Return the named files of an npm package, relative to its root folder `package/`."""
    return _tar_files(read_checked(path, sha256), [f"package/{member}" for member in members])


def _tar_files(archive: bytes, members: list[str]) -> list[bytes]:
    """Return the contents of `members` of a (compressed) tar archive, in the order asked for."""
    contents = []
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in members:
            file = tar.extractfile(member)
            if file is None:
                raise ValueError(f"{member} is not a regular file")
            contents.append(file.read())
    return contents


def _ar_members(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of every member of an `ar` archive (man 5 ar: 60-byte headers, even offsets)."""
    if not archive.startswith(AR_MAGIC):
        raise ValueError("not an ar archive")
    offset = len(AR_MAGIC)
    while offset < len(archive):
        header = archive[offset : offset + AR_HEADER_BYTES]
        start, size = offset + AR_HEADER_BYTES, int(header[48:58])
        yield header[:16].decode().strip().rstrip("/"), archive[start : start + size]
        offset = start + size + size % 2
