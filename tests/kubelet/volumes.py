"""A pod's volumes as folders of this machine, to be mounted into its containers.

An emptyDir is a tmpfs of its size, whatever its medium: what does not fit is refused, where a kubelet would evict the
pod. Files of ConfigMaps and Secrets are links into a folder that could be exchanged at once, as a kubelet makes them.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.kubelet.fields import Document, known, size
from tests.kubelet.network import run

FindObject = Callable[[str, str], Document]  # by kind and name
_DEFAULT_MODE = 0o644


class Volumes:
    """The volumes of one pod, until `close`.

    Args:
        spec: Of the pod.
        folder: Of this pod; made.
        find: Looks an object up.
        claims: Folders by claim.
    """

    def __init__(self, spec: Document, folder: Path, find: FindObject, claims: Mapping[str, Path]) -> None:
        self._folder, self._find, self._claims = folder, find, claims
        self._group = spec["securityContext"]["fsGroup"]
        self._mounted: list[Path] = []
        self._places = {volume["name"]: self._make(volume) for volume in spec["volumes"]}

    def mounts(self, container: Document) -> list[tuple[str, str, bool]]:
        """Folder, place in the container, and whether it is read-only there."""
        found = []
        for mount in container["volumeMounts"]:
            place, read_only = self._places[mount["name"]]
            found.append((str(place), mount["mountPath"], read_only or mount.get("readOnly", False)))
        return sorted(found, key=lambda mount: mount[1])

    def close(self) -> None:
        """Empties emptyDirs."""
        for place in self._mounted:
            run(f"umount --lazy {place}", check=False)

    def _make(self, volume: Document) -> tuple[Path, bool]:
        kind = (volume.keys() - {"name"}).pop()
        known(volume, "name", kind)
        source, place = volume[kind], self._folder / volume["name"]
        if kind == "persistentVolumeClaim":
            known(source, "claimName", "readOnly")
            assert source["claimName"] in self._claims, f"there is no claim {source['claimName']}"
            read_only = source.get("readOnly", False)
            if not read_only:
                self._own(self._claims[source["claimName"]])
            return self._claims[source["claimName"]], read_only
        place.mkdir(parents=True)
        if kind == "emptyDir":
            known(source, "medium", "sizeLimit")
            assert source.get("medium", "") in ("", "Memory")
            run(f"mount -t tmpfs -o mode=2777,gid={self._group},size={size(source['sizeLimit'])} kubelet {place}")
            self._mounted.append(place)
            return place, False
        assert kind in ("configMap", "secret"), kind
        self._write(place, self._files(kind, source), source.get("defaultMode", _DEFAULT_MODE))
        return place, True

    def _files(self, kind: str, source: Document) -> dict[str, bytes]:
        if kind == "configMap":
            known(source, "name", "defaultMode")
            return {name: text.encode() for name, text in self._find("ConfigMap", source["name"])["data"].items()}
        known(source, "secretName", "defaultMode")
        data = self._find("Secret", source["secretName"])["data"]
        return {name: base64.b64decode(text) for name, text in data.items()}

    def _write(self, place: Path, files: Mapping[str, bytes], mode: int) -> None:
        (place / "..1").mkdir()
        (place / "..data").symlink_to("..1")
        for name, content in files.items():
            path = place / "..1" / name
            path.write_bytes(content)
            os.chown(path, 0, self._group)
            path.chmod(mode | 0o440)  # what belongs to fsGroup it may read
            (place / name).symlink_to(f"..data/{name}")

    def _own(self, claim: Path) -> None:
        """The claim's files become fsGroup's, unless its root is already (OnRootMismatch)."""
        if claim.stat().st_gid == self._group:
            return
        for path in (*claim.rglob("*"), claim):
            os.chown(path, 0, self._group)
            path.chmod(path.stat().st_mode | (0o2770 if path.is_dir() else 0o660))
