"""TFRecord files of encoded images and their labels: writing, and reading that survives damage.

Framing of one record: length (uint64, little endian), masked CRC-32C of those 8 bytes, the data, masked CRC-32C of
the data. TensorFlow's reader stops at the first damaged byte; this one skips damaged records, reports them, and
continues with the next. Needs no TensorFlow.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import google_crc32c
import numpy as np

from downpour import files

IMAGE_KEY, LABELS_KEY, NAME_KEY = "image/encoded", "image/labels", "image/name"

_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_HEADER_BYTES = _LENGTH.size + _CRC.size
_SEARCH_BYTES = 1 << 22
_OPEN_FILES = 32

_MAX_BAD_FRACTION = 0.01
_ENOUGH_TO_JUDGE = 1000
_MAX_EXAMPLES = 5


class TooManyBadRecords(ValueError):
    """More than 1 % of the records read are damaged, so the data set is refused."""


@dataclass
class RecordCounts:
    """Records read and skipped so far; a record that is read again in a later epoch counts again.

    The thread that iterates over the batches writes it; others may read it.

    Attributes:
        read: Records read, good or bad.
        skipped: Records left out, among those.
        examples: "file, record number (name of the picture): reason" of the first few different ones left out.
        judge_after: Number of records from which on `bad` calls `judge`. For random order, where a thousand records
            represent all. None for a pass in order, whose few bad records may come first.
    """

    read: int = 0
    skipped: int = 0
    examples: list[str] = field(default_factory=list)
    judge_after: int | None = _ENOUGH_TO_JUDGE

    def good(self) -> None:
        """Counts a record that was used."""
        self.read += 1

    def bad(self, path: Path | str, number: int, reason: str, name: str = "") -> None:
        """Counts record `number` (from 0) of a file as left out; `name` is the picture's own, if it is known.

        Raises:
            TooManyBadRecords: At least `judge_after` records were read and more than 1 % of them were bad.
        """
        self.read += 1
        self.skipped += 1
        example = f"{path}, record {number}{f' ({name})' if name else ''}: {reason}"
        if len(self.examples) < _MAX_EXAMPLES and example not in self.examples:
            self.examples.append(example)
        if self.judge_after is not None and self.read >= self.judge_after:
            self.judge()

    def judge(self) -> None:
        """Checks the fraction of bad records; called after each full pass, so that small sets are checked, too.

        Raises:
            TooManyBadRecords: More than 1 % of the records read were bad.
        """
        if self.skipped > _MAX_BAD_FRACTION * self.read:
            raise TooManyBadRecords(
                f"{self.skipped} of {self.read} records cannot be read, and more than "
                f"{_MAX_BAD_FRACTION:.0%} is refused; replace these files or prepare the data again. "
                f"For example: {'; '.join(self.examples)}"
            )


class Record(NamedTuple):
    """One record of a file: its content, or the reason why there is none."""

    path: Path
    number: int
    data: bytes | None
    reason: str = ""


def read_records(path: Path) -> Iterator[Record]:
    """All records of a TFRecord file in order, the damaged ones with `data` None.

    After a damaged length the reader searches for the next offset where a length and its CRC agree; the bytes between
    count as one record, and so does a truncated tail.

    Raises:
        OSError: The file cannot be opened or read.
    """
    with open(path, "rb", buffering=1 << 20) as file:
        size = os.fstat(file.fileno()).st_size
        number = 0
        while file.tell() < size:
            data, reason = _read_one(file, size)
            yield Record(path, number, data, reason)
            number += 1


class RecordIndex:
    """The records of some files by number: those of the first file in order, then those of the next.

    Reads only the lengths of records, so damaged data are detected when a record is read. Takes eight bytes a record.

    Args:
        files: TFRecord files.

    Raises:
        OSError: A file cannot be opened or read.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = list(files)
        self._offsets = [_offsets(path) for path in self._files]
        self._ends = np.cumsum([len(offsets) for offsets in self._offsets])

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._files else 0

    def read(self, numbers: Iterable[int]) -> Iterator[Record]:
        """Yields the records of these numbers, as `read_records` does. Holds a few files open until it is closed.

        Raises:
            OSError: A file cannot be opened or read.
        """
        opened: dict[int, BinaryIO] = {}
        try:
            for number in numbers:
                which = int(np.searchsorted(self._ends, number, side="right"))
                # Least recently used first: that file is closed when too many are open.
                file = opened.pop(which) if which in opened else open(self._files[which], "rb")
                opened[which] = file
                if len(opened) > _OPEN_FILES:
                    opened.pop(next(iter(opened))).close()
                in_file = number - int(self._ends[which]) + len(self._offsets[which])
                yield self._read(file, which, in_file)
        finally:
            for file in opened.values():
                file.close()

    def _read(self, file: BinaryIO, which: int, in_file: int) -> Record:
        file.seek(self._offsets[which][in_file])
        data, reason = _read_one(file, os.fstat(file.fileno()).st_size)
        return Record(self._files[which], in_file, data, reason)


def _offsets(path: Path) -> array[int]:
    """Offset of each record of a file, damaged ones included, as `read_records` counts them."""
    found = array("q")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        while file.tell() < size:
            found.append(file.tell())
            length, _ = _read_length(file, size)
            if length is not None:
                file.seek(length + _CRC.size, os.SEEK_CUR)
    return found


def _read_one(file: BinaryIO, size: int) -> tuple[bytes | None, str]:
    start = file.tell()
    length, reason = _read_length(file, size)
    if length is None:
        return None, reason
    data = file.read(length)
    if not _agrees(data, file.read(_CRC.size)):
        return None, f"checksum does not match the data at byte {start}"
    return data, ""


def _read_length(file: BinaryIO, size: int) -> tuple[int | None, str]:
    """Returns the data's length, with the file at the data; or None and why, with the file at the next record."""
    start = file.tell()
    header = file.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES:
        return None, f"file cut off at byte {size}, inside a record's length"
    if not _agrees(header[: _LENGTH.size], header[_LENGTH.size :]):
        file.seek(_next_header(file, start + 1, size))
        return None, f"damaged length at byte {start}; {file.tell() - start} bytes skipped"
    length: int = _LENGTH.unpack(header[: _LENGTH.size])[0]
    if length + _CRC.size > size - file.tell():
        file.seek(size)
        return None, f"file cut off at byte {size}, inside a record of {length} bytes that starts at byte {start}"
    return length, ""


def _next_header(file: BinaryIO, start: int, size: int) -> int:
    """The first offset from `start` on where a plausible length and its CRC agree; `size` when there is none."""
    while start + _HEADER_BYTES <= size:
        file.seek(start)
        window = file.read(_SEARCH_BYTES + _HEADER_BYTES)
        # Only a record over 4 GB has anything in the upper half of its length; so this excludes nearly all offsets.
        found = window.find(b"\0\0\0\0", 4)
        while 0 <= found <= len(window) - 8:
            at = found - 4
            if _agrees(window[at : at + 8], window[at + 8 : at + 12]):
                return start + at
            found = window.find(b"\0\0\0\0", found + 1)
        start += len(window) - _HEADER_BYTES + 1
    return size


def _agrees(data: bytes, masked_crc: bytes) -> bool:
    return masked_crc == _masked_crc(data)


def _masked_crc(data: bytes) -> bytes:
    """CRC-32C with TFRecord's mask, which is for data that contain CRCs themselves."""
    crc = google_crc32c.value(data)
    return _CRC.pack((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


class LabelledImage(NamedTuple):
    """What one record holds: an encoded image (PNG, JPEG, GIF or BMP), its labels and its name."""

    encoded: bytes
    labels: tuple[int, ...]
    name: str


def write_records(path: Path, images: Iterable[LabelledImage]) -> int:
    """Writes a TFRecord file, which appears under its name when it is complete.

    Returns:
        Number of records written.
    """
    count = 0
    with files.replacing(path) as temporary, open(temporary, "wb") as file:
        for image in images:
            file.write(frame(to_example(image)))
            count += 1
    return count


def frame(data: bytes) -> bytes:
    """Returns one record as stored in a file."""
    length = _LENGTH.pack(len(data))
    return length + _masked_crc(length) + data + _masked_crc(data)


def to_example(image: LabelledImage) -> bytes:
    """A serialised `tf.train.Example` with keys `image/encoded`, `image/labels` and `image/name`.

    Encoded by hand, which takes ten lines, so that preparing data does not need TensorFlow: an Example holds Features
    (1), a map (1) from key (1) to Feature (2), which is a list of bytes (1) or of packed integers (3).
    """
    features = {
        IMAGE_KEY: _message(1, _message(1, image.encoded)),
        LABELS_KEY: _message(3, _message(1, b"".join(map(_varint, image.labels)))),
        NAME_KEY: _message(1, _message(1, image.name.encode())),
    }
    entries = (_message(1, _message(1, key.encode()) + _message(2, value)) for key, value in features.items())
    return _message(1, b"".join(entries))


def from_example(data: bytes) -> LabelledImage:
    """Reads what `to_example` wrote, or any Example with those keys and packed labels; needs no TensorFlow.

    Raises:
        ValueError: It is not such an Example.
    """
    found: dict[str, bytes] = {}
    for features in _contents(data, 1):
        for entry in _contents(features, 1):
            for key, feature in zip(_contents(entry, 1), _contents(entry, 2), strict=True):
                # Bytes (1) or integers (3): each a list, whose only element, or packed elements, are its field 1.
                lists = [*_contents(feature, 1), *_contents(feature, 3)]
                found[key.decode()] = b"".join(value for each in lists for value in _contents(each, 1))
    if IMAGE_KEY not in found:
        raise ValueError(f"the record has no {IMAGE_KEY}; it has {', '.join(found) or 'nothing'}")
    labels, at, packed = list[int](), 0, found.get(LABELS_KEY, b"")
    while at < len(packed):
        label, at = _read_varint(packed, at)
        labels.append(label)
    return LabelledImage(found[IMAGE_KEY], tuple(labels), found.get(NAME_KEY, b"").decode())


def _contents(data: bytes, field_number: int) -> Iterator[bytes]:
    """The contents of all protobuf fields of that number in a message of length-delimited fields."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        length, at = _read_varint(data, at)
        if tag & 7 != 2 or at + length > len(data):
            raise ValueError(f"the record is no tf.train.Example as expected: field {tag >> 3} at byte {at}")
        if tag >> 3 == field_number:
            yield data[at : at + length]
        at += length


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """A number and the place after it."""
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            break
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError(f"the record is no tf.train.Example: no number ends at byte {at}")


def _message(field_number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return _varint(field_number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    head = []
    while value > 0x7F:
        head.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*head, value])
