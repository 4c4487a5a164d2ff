from __future__ import annotations

import pytest

from downpour.model.vision.records import (
    LabelledImage,
    RecordCounts,
    RecordIndex,
    TooManyBadRecords,
    frame,
    from_example,
    read_records,
    to_example,
    write_records,
)

DATA = [b"first" * 10, b"", b"third" * 300, b"\0" * 40, b"fifth"]
FRAMED = [frame(data) for data in DATA]
STARTS = [sum(map(len, FRAMED[:i])) for i in range(len(FRAMED) + 1)]


def read(tmp_path, content: bytes):
    path = tmp_path / "x.tfrecord"
    path.write_bytes(content)
    return list(read_records(path))


def flipped(content: bytes, at: int, bit: int = 0) -> bytes:
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


def test_intact_file_is_read_in_order(tmp_path):
    records = read(tmp_path, b"".join(FRAMED))
    assert [record.data for record in records] == DATA
    assert [record.number for record in records] == [0, 1, 2, 3, 4]


def test_tensorflow_reads_what_is_written_and_the_other_way_round(tmp_path):
    import tensorflow as tf

    images = [LabelledImage(b"\x00\xffpixels", (0, 127, 128, 18290), "größe"), LabelledImage(b"", (), "")]
    assert write_records(tmp_path / "ours.tfrecord", images) == 2
    dataset = tf.data.TFRecordDataset(str(tmp_path / "ours.tfrecord"))
    for raw, image in zip(dataset, images, strict=True):
        example = tf.train.Example.FromString(raw.numpy())
        feature = example.features.feature
        assert feature["image/encoded"].bytes_list.value == [image.encoded]
        assert tuple(feature["image/labels"].int64_list.value) == image.labels
        assert feature["image/name"].bytes_list.value == [image.name.encode()]
        feature["other"].float_list.value.append(0.5)
        assert from_example(example.SerializeToString()) == image

    with tf.io.TFRecordWriter(str(tmp_path / "theirs.tfrecord")) as writer:
        for data in DATA:
            writer.write(data)
    assert (tmp_path / "theirs.tfrecord").read_bytes() == b"".join(FRAMED)


def test_what_was_written_is_read_without_tensorflow():
    image = LabelledImage(b"\x00\xffpixels" * 100, (0, 127, 128, 18290), "größe")
    assert from_example(to_example(image)) == image


@pytest.mark.parametrize(
    "data", [b"", b"\x0a", b"\x08\x01", b"\x0a\x05abc", b"\xff" * 20, to_example(LabelledImage(b"a", (1,), "a"))[:-1]]
)
def test_what_is_no_such_example_is_refused(data):
    with pytest.raises(ValueError, match="the record"):
        from_example(data)


@pytest.mark.parametrize("cut", [1, 7, 8, 11, 12, 13, 1500, len(FRAMED[2]) - 4, len(FRAMED[2]) - 1])
def test_truncated_tail_is_one_bad_record(tmp_path, cut):
    *good, bad = read(tmp_path, b"".join(FRAMED[:2]) + FRAMED[2][:cut])
    assert [record.data for record in good] == DATA[:2]
    assert bad.data is None
    assert bad.number == 2
    assert f"cut off at byte {STARTS[2] + cut}" in bad.reason


def test_any_flipped_bit_costs_one_record_and_reading_goes_on(tmp_path):
    for byte in range(len(FRAMED[2])):
        records = read(tmp_path, flipped(b"".join(FRAMED), STARTS[2] + byte, bit=byte % 8))
        assert [record.data for record in records] == [*DATA[:2], None, *DATA[3:]], byte
        assert f"byte {STARTS[2]}" in records[2].reason


@pytest.mark.parametrize(
    ("byte", "reason"),
    [(0, "damaged length"), (7, "damaged length"), (8, "damaged length"), (12, "checksum"), (-1, "checksum")],
)
def test_flipped_bit_is_explained(tmp_path, byte, reason):
    (record,) = read(tmp_path, flipped(FRAMED[0], byte % len(FRAMED[0])))
    assert record.data is None
    assert reason in record.reason


def test_search_for_the_next_record_crosses_its_window(tmp_path, monkeypatch):
    monkeypatch.setattr("downpour.model.vision.records._SEARCH_BYTES", 16)
    for size in range(40, 80):
        records = read(tmp_path, flipped(frame(b"x" * size), 0) + FRAMED[0])
        assert [record.data for record in records] == [None, DATA[0]], size


@pytest.mark.parametrize("order", ["forwards", "backwards"])
def test_reading_by_number_agrees_with_reading_in_order(tmp_path, order):
    contents = [b"".join(FRAMED), b"", b"GIF89a" * 1000, b"".join(FRAMED[:2]) + FRAMED[2][:50], FRAMED[0]]
    contents += [flipped(b"".join(FRAMED), STARTS[2] + byte) for byte in (0, 9, 12, 100, len(FRAMED[2]) - 1)]
    files = [tmp_path / f"{i}.tfrecord" for i in range(len(contents))]
    for path, content in zip(files, contents, strict=True):
        path.write_bytes(content)
    expected = [record for path in files for record in read_records(path)]
    index = RecordIndex(files)
    assert len(index) == len(expected)
    numbers = list(range(len(expected)))[:: 1 if order == "forwards" else -1]
    assert list(index.read(numbers)) == [expected[number] for number in numbers]


def test_reading_by_number_holds_few_files_open(tmp_path, monkeypatch):
    monkeypatch.setattr("downpour.model.vision.records._OPEN_FILES", 2)
    files = [tmp_path / f"{i}.tfrecord" for i in range(5)]
    for i, path in enumerate(files):
        path.write_bytes(frame(b"%d first" % i) + frame(b"%d second" % i))
    opened, closed = [], []

    def watched(*arguments):
        file = open(*arguments)
        opened.append(file)
        return file

    monkeypatch.setattr("downpour.model.vision.records.open", watched, raising=False)
    index = RecordIndex(files)
    opened.clear()
    reading = index.read([0, 2, 0, 4, 1, 9, 3])
    seen = []
    for record in reading:
        seen.append(record.data)
        closed.append(sum(file.closed for file in opened))
    assert seen == [b"0 first", b"1 first", b"0 first", b"2 first", b"0 second", b"4 second", b"1 second"]
    assert len(opened) == 5, "the file used last stays open"
    assert len(opened) - closed[-1] == 2
    assert all(file.closed for file in opened)


def test_a_file_of_other_bytes_is_one_bad_record(tmp_path):
    records = read(tmp_path, b"GIF89a" * 1000)
    assert [record.data for record in records] == [None]
    assert read(tmp_path, b"") == []


def test_failed_writing_leaves_nothing(tmp_path):
    def images():
        yield LabelledImage(b"x", (), "x")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_records(tmp_path / "train.tfrecord", images())
    assert list(tmp_path.iterdir()) == []


def test_more_than_one_percent_bad_of_a_thousand_fails_at_once():
    counts = RecordCounts()
    for _ in range(989):
        counts.good()
    for number in range(10):
        counts.bad("a.tfrecord", number, "torn")
    counts.good()
    assert (counts.read, counts.skipped) == (1000, 10)
    counts.judge()
    with pytest.raises(TooManyBadRecords, match=r"11 of 1001 records.*1%.*a\.tfrecord, record 0: torn"):
        counts.bad("a.tfrecord", 10, "torn")


def test_a_pass_in_order_is_judged_only_at_its_end():
    counts = RecordCounts(judge_after=None)
    for number in range(2000):
        counts.bad("a.tfrecord", number, "torn")
    with pytest.raises(TooManyBadRecords, match="2000 of 2000"):
        counts.judge()


def test_few_records_are_judged_only_when_all_were_seen():
    counts = RecordCounts()
    counts.bad("a.tfrecord", 0, "torn")
    for _ in range(98):
        counts.good()
    with pytest.raises(TooManyBadRecords, match="1 of 99 records"):
        counts.judge()
    counts.good()
    counts.judge()


def test_examples_are_few_and_different():
    counts = RecordCounts()
    for number in [0, 0, 0, *range(20)]:
        counts.bad("a.tfrecord", number, "torn")
    assert counts.examples == [f"a.tfrecord, record {number}: torn" for number in range(5)]
    assert counts.skipped == 23


def test_examples_have_the_documented_keys():
    assert b"image/labels" in to_example(LabelledImage(b"", (), ""))
