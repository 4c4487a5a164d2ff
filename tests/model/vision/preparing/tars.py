"""Tar files in memory."""

from __future__ import annotations

import io
import tarfile


def tar_of(contents: dict[str, bytes], mode: str = "w") -> bytes:
    """A tar file of these files, behind the entry of a folder, as `tar` writes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        folder = tarfile.TarInfo("n01")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
