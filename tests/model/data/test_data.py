from __future__ import annotations

import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from downpour.model.data import Batches, GeneratedImages, ImageRecords
from downpour.model.data.batches import ALIGNMENT, check_same_labels, multi_hot, new_images
from downpour.model.data.order import Lease, Order, forever
from downpour.model.data.pixels import Pixels
from downpour.model.vision.labels import LABELS_FILE, LabelTree
from downpour.model.vision.records import LabelledImage, TooManyBadRecords, read_records, write_records
from downpour.worker.chief.leases import LeaseTable, lease_records

TREE = LabelTree(names=("fruit", "apple", "pear", "tool", "hammer"), parents=(-1, 0, 0, -1, 3))


def png(pixels: np.ndarray) -> bytes:
    """Encodes [H, W, 3] uint8 as PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def numbered_image(i: int, side: int = 12) -> LabelledImage:
    """A picture in one colour that tells its number, labelled by one leaf."""
    pixels = np.full((side, side, 3), (i % 256, i // 256, 128), np.uint8)
    return LabelledImage(png(pixels), (1, 2, 4)[i % 3 : i % 3 + 1], f"picture {i}")


def number_of(image: np.ndarray) -> int:
    """The number that `numbered_image` painted, from an [S, S, 3] image in [-1, 1]."""
    red, green, _ = np.rint((image[0, 0] + 1) * 127.5).astype(int)
    return int(red + 256 * green)


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a data folder of numbered training images in some files and 7 held-out images."""

    def make(num_images: int = 50, num_files: int = 3) -> Path:
        folder = tmp_path / "images"
        folder.mkdir()
        images = [numbered_image(i) for i in range(num_images)]
        for i in range(num_files):
            write_records(folder / f"train-{i:05d}.tfrecord", images[i::num_files])
        write_records(folder / "heldout-00000.tfrecord", [numbered_image(1000 + i) for i in range(7)])
        TREE.save(folder / LABELS_FILE)
        return folder

    return make


IN_MEMORY, STREAMED = 1 << 28, 0
both_ways = pytest.mark.parametrize("memory_bytes", [IN_MEMORY, STREAMED])


def image_records(folder, **more) -> ImageRecords:
    """Of a folder with the labels above."""
    return ImageRecords(folder, num_labels=len(TREE), **more)


def training(data, *, batch_size: int, seed: int = 0, leases=None) -> Batches:
    """Batches of a data set that one worker has for itself, in leases that fit nothing."""
    return data.training(batch_size=batch_size, seed=seed, leases=leases or forever(data.num_records, 7))


def numbers(batches, count: int) -> list[int]:
    return [number_of(image) for _, (images, _) in zip(range(count), batches, strict=False) for image in images]


@both_ways
def test_training_batches_have_one_shape_and_run_across_epochs(make_folder, memory_bytes):
    data = image_records(make_folder(num_images=50), resize=12, crop=8, memory_bytes=memory_bytes)
    with training(data, batch_size=16, seed=1) as batches:
        seen = []
        for _, (images, labels) in zip(range(25), batches, strict=False):
            assert images.shape == (16, 8, 8, 3)
            assert images.dtype == labels.dtype == np.float32
            assert labels.shape == (16, 5)
            seen += [number_of(image) for image in images]
    epochs = np.reshape(seen, (8, 50))
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 8


@both_ways
def test_the_seed_decides_the_order(make_folder, memory_bytes):
    data = image_records(make_folder(), resize=12, crop=8, memory_bytes=memory_bytes)
    orders = [numbers(training(data, batch_size=10, seed=seed), 5) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[2]) == list(range(50))


@both_ways
def test_labels_come_with_their_ancestors(make_folder, memory_bytes):
    data = image_records(make_folder(), resize=12, crop=12, memory_bytes=memory_bytes)
    rows = {0: [1, 1, 0, 0, 0], 1: [1, 0, 1, 0, 0], 2: [0, 0, 0, 1, 1]}
    with training(data, batch_size=50, seed=0) as batches:
        images, labels = next(batches)
    for image, row in zip(images, labels, strict=True):
        assert row.tolist() == rows[number_of(image) % 3]


@both_ways
def test_workers_meet_what_their_leases_name(make_folder, memory_bytes):
    """However leases are cut and shared out: the same records, in the same windows, mirrored alike."""
    data = image_records(make_folder(num_images=200, num_files=3), resize=12, crop=8, memory_bytes=memory_bytes)
    with training(data, batch_size=200, seed=5) as batches:
        whole = [image.tobytes() for image in next(batches)[0]]
    shared = {}
    for mine in ([Lease(0, 0, 30), Lease(0, 90, 150)], [Lease(0, 30, 90), Lease(0, 150, 200)]):
        positions = [position for lease in mine for position in range(lease.start, lease.stop)]
        with data.training(batch_size=5, seed=5, leases=iter(mine)) as batches:
            images = [image.tobytes() for images, _ in batches for image in images]
        shared |= dict(zip(positions, images, strict=True))
    assert [shared[position] for position in range(200)] == whole


@both_ways
def test_records_are_those_of_the_order(make_folder, memory_bytes):
    data = image_records(make_folder(num_images=60, num_files=1), resize=12, crop=8, memory_bytes=memory_bytes)
    order = Order(60, 3, 1 if memory_bytes else 64)
    leases = [Lease(7, 10, 25), Lease(9, 0, 15)]
    with data.training(batch_size=30, seed=3, leases=iter(leases)) as batches:
        assert numbers(batches, 1) == [place.record for place in order.places(leases)]


@both_ways
def test_batches_end_with_the_leases_and_leave_out_a_short_one(make_folder, memory_bytes):
    data = image_records(make_folder(), resize=12, crop=8, memory_bytes=memory_bytes)
    generated = GeneratedImages(image_size=4, num_labels=3, num_records=50)
    for each in (data, generated):
        with training(each, batch_size=8, leases=iter([Lease(0, 0, 9), Lease(1, 20, 33)])) as batches:
            found = [(len(images), batches.position) for images, _ in batches]
        assert found == [(8, 8), (8, 16)]


@both_ways
def test_the_position_counts_bad_records_too(make_folder, memory_bytes):
    folder = with_bad_records(make_folder(num_images=1, num_files=1), [NOT_AN_IMAGE], num_good=120)
    data = image_records(folder, resize=12, crop=8, memory_bytes=memory_bytes)
    bad = Order(121, 0, 1 if memory_bytes else 64).records(Lease(0, 0, 121)).tolist().index(0)
    with training(data, batch_size=10) as batches:
        for number in range(1, 10):
            next(batches)
            assert batches.position == 10 * number + (bad < 10 * number)


@both_ways
def test_a_lease_of_other_data_is_refused(make_folder, memory_bytes):
    data = image_records(make_folder(), resize=12, crop=8, memory_bytes=memory_bytes)
    with pytest.raises(ValueError, match=r"positions 40 to 60 .* epoch of 50 records"):
        next(training(data, batch_size=1, leases=iter([Lease(0, 40, 60)])))


def test_heldout_is_one_ordered_pass_with_a_short_end(make_folder):
    data = image_records(make_folder(), resize=12, crop=8)
    for _ in range(2):
        batches = list(data.heldout(batch_size=3))
        assert [len(images) for images, _ in batches] == [3, 3, 1]
        assert [number_of(image) for images, _ in batches for image in images] == list(range(1000, 1007))


def gradient_folder(folder, side: int = 20):
    """One picture whose red says the column and whose green says the row."""
    rows, columns = np.mgrid[:side, :side]
    pixels = np.stack([columns * 10, rows * 10, columns * 0], axis=-1).astype(np.uint8)
    folder.mkdir()
    for split in ("train", "heldout"):
        write_records(folder / f"{split}-0.tfrecord", [LabelledImage(png(pixels), (4,), "gradient")])
    TREE.save(folder / "labels.json")
    return folder


def corners(images: np.ndarray) -> list[tuple[int, int, int]]:
    """Top, left and direction of each window, read off the gradient picture."""
    tens = np.rint((images + 1) * 12.75).astype(int)
    assert (tens[:, 1:, :, 1] - tens[:, :-1, :, 1] == 1).all()
    return [(int(t[0, 0, 1]), int(t[0, :, 0].min()), int(t[0, 1, 0] - t[0, 0, 0])) for t in tens]


def test_crops_reach_every_corner_and_half_are_mirrored(tmp_path):
    data = image_records(gradient_folder(tmp_path / "g"), resize=20, crop=16)
    with training(data, batch_size=1000, seed=3) as batches:
        images, _ = next(batches)
    images = np.asarray(images)
    assert images.min() >= -1
    assert images.max() <= 1
    windows = corners(images)
    assert {window[0] for window in windows} == {window[1] for window in windows} == set(range(5))
    assert 400 < sum(step == -1 for *_, step in windows) < 600
    assert len(set(windows)) == 5 * 5 * 2


def test_mirror_can_be_turned_off(tmp_path):
    data = image_records(gradient_folder(tmp_path / "g"), resize=20, crop=16, mirror=False)
    with training(data, batch_size=200, seed=3) as batches:
        assert {step for *_, step in corners(np.asarray(next(batches)[0]))} == {1}


def test_heldout_takes_the_centre_unmirrored(tmp_path):
    data = image_records(gradient_folder(tmp_path / "g"), resize=20, crop=16)
    ((images, labels),) = data.heldout(batch_size=8)
    assert corners(np.asarray(images)) == [(2, 2, 1)]
    assert labels.tolist() == [[0, 0, 0, 1, 1]]


def test_values_span_minus_one_to_one(tmp_path):
    folder = gradient_folder(tmp_path / "g")
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:, 2:] = 255
    write_records(folder / "heldout-0.tfrecord", [LabelledImage(png(pixels), (), "")])
    ((images, _),) = image_records(folder, resize=4, crop=4).heldout(batch_size=1)
    assert images[0, 0, :, 0].tolist() == [-1, -1, 1, 1]


def with_bad_records(folder, bad: list[LabelledImage], num_good: int):
    write_records(folder / "train-00000.tfrecord", [*bad, *(numbered_image(i) for i in range(num_good))])
    return folder


NOT_AN_IMAGE = LabelledImage(b"not an image", (1,), "text")
TORN_IMAGE = LabelledImage(numbered_image(0).encoded[:40], (1,), "torn")
UNKNOWN_LABEL = LabelledImage(numbered_image(0).encoded, (5,), "unknown label")


@both_ways
@pytest.mark.parametrize(
    ("bad", "reason"),
    [(NOT_AN_IMAGE, "Unknown image file format"), (TORN_IMAGE, "Invalid PNG"), (UNKNOWN_LABEL, "label 5 is not")],
)
def test_undecodable_record_is_skipped_counted_and_named(make_folder, memory_bytes, bad, reason):
    folder = with_bad_records(make_folder(num_images=1, num_files=1), [bad], num_good=120)
    data = image_records(folder, resize=12, crop=8, memory_bytes=memory_bytes)
    with training(data, batch_size=120, seed=0) as batches:
        seen = numbers(batches, 2)
    assert sorted(seen) == sorted([*range(120)] * 2)
    assert batches.counts.skipped in ([1] if memory_bytes else [1, 2])  # once kept; once an epoch streamed
    (example,) = batches.counts.examples
    assert example.startswith(f"{folder / 'train-00000.tfrecord'}, record 0 ({bad.name}): ")
    assert reason in example


@both_ways
def test_truncated_file_is_counted_and_the_next_file_is_read(make_folder, memory_bytes):
    folder = make_folder(num_images=300, num_files=2)
    torn = folder / "train-00000.tfrecord"
    torn.write_bytes(torn.read_bytes()[:-5])
    data = image_records(folder, resize=12, crop=8, memory_bytes=memory_bytes)
    with training(data, batch_size=300, seed=0) as batches:
        seen = numbers(batches, 1)
    assert set(seen) >= set(range(300)) - {298}
    assert 298 not in seen
    assert "train-00000.tfrecord, record 149: file cut off" in batches.counts.examples[0]


@both_ways
def test_more_than_one_percent_bad_fails_clearly(make_folder, memory_bytes):
    folder = with_bad_records(make_folder(num_images=1, num_files=1), [NOT_AN_IMAGE] * 2, num_good=120)
    data = image_records(folder, resize=12, crop=8, memory_bytes=memory_bytes)
    with pytest.raises(TooManyBadRecords, match=r"2 of 122 records .* record 0 \(text\): .*Unknown image"):
        numbers(training(data, batch_size=60, seed=0), 10)


@both_ways
def test_a_set_of_which_nothing_decodes_fails_too(make_folder, memory_bytes):
    folder = with_bad_records(make_folder(num_images=1, num_files=1), [NOT_AN_IMAGE] * 1500, num_good=0)
    data = image_records(folder, resize=12, crop=8, memory_bytes=memory_bytes)
    with pytest.raises(TooManyBadRecords, match=r"(1000 of 1000|1500 of 1500) records"):
        next(training(data, batch_size=1, seed=0))


def test_a_few_records_of_a_large_streamed_set_are_no_reason_to_fail(make_folder):
    """A worker of many sees a small part of each epoch; one bad record among its first says little."""
    folder = with_bad_records(make_folder(num_images=1, num_files=1), [NOT_AN_IMAGE], num_good=300)
    data = image_records(folder, resize=12, crop=8, memory_bytes=STREAMED)
    bad = Order(301, 0, 64).records(Lease(0, 0, 301)).tolist().index(0)
    start = max(bad - 5, 0)
    leases = [Lease(0, start, start + 20), Lease(1, 0, 1)]
    with training(data, batch_size=20, leases=iter(leases)) as batches:
        assert len(numbers(batches, 1)) == 20
    assert (batches.counts.read, batches.counts.skipped) == (21, 1)


def test_a_few_bad_records_at_the_start_of_a_pass_in_order_are_no_reason_to_fail(make_folder):
    folder = with_bad_records(make_folder(num_images=1, num_files=1), [NOT_AN_IMAGE] * 15, num_good=1600)
    with training(image_records(folder, resize=12, crop=8), batch_size=1600) as batches:
        assert len(set(numbers(batches, 1))) == 1600
    assert (batches.counts.read, batches.counts.skipped) == (1615, 15)


def test_bad_heldout_records_fail_at_the_end_of_the_pass(make_folder):
    folder = make_folder()
    write_records(folder / "heldout-00000.tfrecord", [numbered_image(0), NOT_AN_IMAGE])
    batches = image_records(folder, resize=12, crop=8).heldout(batch_size=1)
    assert number_of(next(batches)[0][0]) == 0
    with pytest.raises(TooManyBadRecords, match="1 of 2 records"):
        next(batches)


def test_a_sound_set_passes_its_check(make_folder):
    image_records(make_folder()).check()


def test_exclusive_classes_are_one_hot_without_ancestors_and_one_label_each(make_folder, tmp_path):
    folder = make_folder()
    records = ImageRecords(folder, num_labels=5, resize=12, crop=8, exclusive=True)
    (_, labels), *_ = list(records.heldout(batch_size=7))
    assert labels.sum(axis=1).tolist() == [1] * 7 and not labels[:, [0, 3]].any()
    write_records(folder / "heldout-00000.tfrecord", [numbered_image(0)._replace(labels=(1, 2))])
    with pytest.raises(ValueError, match=r"an image has 2 labels \(apple, pear\), and the classes .* are exclusive"):
        list(ImageRecords(folder, num_labels=5, resize=12, crop=8, exclusive=True).heldout(batch_size=7))


def test_a_mistake_in_the_class_weights_is_found_by_the_check(make_folder, tmp_path):
    weights = tmp_path / "weights.json"
    weights.write_text('{"hamer": 1}')
    with pytest.raises(ValueError, match=r"weights.json names 'hamer' \(did you mean 'hammer'\?\)"):
        ImageRecords(make_folder(), num_labels=5, class_weights=weights).check()


def test_a_further_set_of_other_labels_is_refused_with_the_first_that_differs(make_folder, tmp_path):
    ours = image_records(make_folder())
    (tmp_path / "other").mkdir()
    LabelTree(("fruit", "plum", "pear", "tool", "hammer"), (-1, 0, 0, -1, 3)).save(tmp_path / "other" / LABELS_FILE)
    theirs = image_records(tmp_path / "other")
    check_same_labels("same", ours, ours)
    with pytest.raises(ValueError, match=r"\['x'\] has other labels than data: label 1 is 'plum' there and 'apple'"):
        check_same_labels("x", theirs, ours)


def test_missing_or_empty_folders_say_what_prepares_them(make_folder, tmp_path):
    missing = image_records(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"nowhere is missing.*downpour prepare openmoji --out=.*nowhere"):
        missing.check()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no records in .*empty/heldout-\*.*downpour prepare"):
        image_records(tmp_path / "empty").check()
    folder = make_folder()
    (folder / "heldout-00000.tfrecord").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no records in .*heldout-\*"):
        image_records(folder).check()


def test_a_folder_without_labels_says_so(make_folder):
    folder = make_folder()
    (folder / "labels.json").unlink()
    with pytest.raises(ValueError, match=r"labels\.json is missing.*downpour prepare"):
        image_records(folder).check()


def test_the_number_of_labels_is_known_without_the_data_and_another_one_is_refused_with_both(make_folder):
    assert ImageRecords("nowhere", num_labels=4).num_labels == 4
    data = ImageRecords(make_folder(), num_labels=4, resize=12, crop=8)
    message = r"images/labels\.json has 5 labels, but the recipe's data\.num_labels is 4;.*--set=data\.num_labels=5"
    for use in (data.check, lambda: training(data, batch_size=2), lambda: data.heldout(batch_size=2)):
        with pytest.raises(ValueError, match=message):
            use()
    with pytest.raises(ValueError, match="num_labels is 0; give a whole number of at least 1"):
        ImageRecords("nowhere", num_labels=0)


@pytest.mark.parametrize(("resize", "crop"), [(32, 33), (32, 0), (0, 0)])
def test_impossible_crops_are_refused(resize, crop):
    with pytest.raises(ValueError, match=f"crop is {crop} and resize {resize}"):
        image_records("anywhere", resize=resize, crop=crop)


def test_impossible_batches_are_refused(make_folder):
    for data in (image_records(make_folder()), GeneratedImages(image_size=8, num_labels=4)):
        for start in (lambda d=data: training(d, batch_size=0), lambda d=data: d.heldout(batch_size=0)):
            with pytest.raises(ValueError, match="batch_size is 0"):
                start()


@both_ways
def test_closing_ends_the_threads(make_folder, memory_bytes):
    before = set(threading.enumerate())
    batches = training(image_records(make_folder(), resize=12, crop=8, memory_bytes=memory_bytes), batch_size=4)
    next(batches)
    batches.close()
    batches.close()
    assert {thread for thread in set(threading.enumerate()) - before if thread.name.startswith("decode")} == set()
    with pytest.raises(StopIteration):
        next(batches)


def test_generated_images_repeat_by_seed_and_differ_between_seeds():
    data = GeneratedImages(image_size=20, num_labels=50)
    first, again, other = (next(training(data, batch_size=4, seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])
    images, labels = first
    assert images.shape == (4, 20, 20, 3)
    assert labels.shape == (4, 50)
    assert images.dtype == labels.dtype == np.float32
    assert np.abs(images).max() <= 1


def test_a_generated_image_depends_on_its_number_alone():
    data = GeneratedImages(image_size=8, num_labels=5, num_records=40)

    def by_record(epoch: int, batch_size: int) -> dict[int, bytes]:
        lease = Lease(epoch, 0, 40)
        batches = data.training(batch_size=batch_size, seed=2, leases=iter([lease]))
        images = [image.tobytes() for images, _ in batches for image in images]
        return dict(zip(Order(40, 2).records(lease).tolist(), images, strict=True))

    first = by_record(0, 8)
    assert len(set(first.values())) == 40
    assert by_record(1, 20) == first


def test_generated_labels_hold_their_ancestors():
    data = GeneratedImages(image_size=4, num_labels=1000)
    _, labels = next(training(data, batch_size=64, seed=0))
    for row in labels:
        names = np.nonzero(row)[0].tolist()
        assert tuple(names) == data.labels.with_ancestors(names)


def test_generated_images_show_their_labels():
    """A linear map fitted on some images tells the labels of others: there is something to learn."""
    data = GeneratedImages(image_size=8, num_labels=20, labels_per_image=1, num_heldout=100)
    images, labels = next(training(data, batch_size=2000, seed=0))
    weights, *_ = np.linalg.lstsq(images.reshape(2000, -1), labels, rcond=None)
    heldout, truth = next(data.heldout(batch_size=100))
    assert ((heldout.reshape(100, -1) @ weights > 0.5) == truth).mean() > 0.97


def test_generated_heldout_is_the_same_each_time():
    data = GeneratedImages(image_size=4, num_labels=5, num_heldout=10)
    first, second = ([images for images, _ in data.heldout(batch_size=4)] for _ in range(2))
    assert [len(images) for images in first] == [4, 4, 2]
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_paper_sized_labels_need_no_square_matrix():
    data = GeneratedImages(image_size=4)
    assert data.num_labels == len(data.labels) == 18291
    assert multi_hot(data.labels, [[18290], []]).sum(axis=1).tolist() == [len(data.labels.lineages[18290]), 0]


def test_recipes_can_name_data_and_networks_without_tensorflow():
    code = (
        "import sys; from downpour.model import data;"
        "from downpour.model.vision import labels, losses, metrics, openmoji, records, resnet;"
        "data.ImageRecords('x', 5); data.GeneratedImages(); resnet.ResNet();"
        "sys.exit(bool({'tensorflow', 'keras', 'numba'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_reader_and_writer_agree_on_the_folder(make_folder):
    folder = make_folder(num_images=9, num_files=2)
    assert sum(1 for path in folder.glob("train-*") for _ in read_records(path)) == 9


def test_generated_images_are_written_where_a_step_can_read_them():
    with training(GeneratedImages(image_size=7, num_labels=5), batch_size=5) as batches:
        images, _ = next(batches)
    for given in (images, new_images(3, 7, 7, 3)):
        assert given.ctypes.data % ALIGNMENT == 0 and given.flags.c_contiguous and given.flags.writeable


def test_images_of_records_are_bytes_until_they_are_computed_with(make_folder):
    data = image_records(make_folder(), resize=12, crop=7)
    for batches in (training(data, batch_size=5), data.heldout(batch_size=5)):
        images, _ = next(batches)
        assert isinstance(images, Pixels) and images.bytes.nbytes == 5 * 7 * 7 * 3


def test_a_window_is_the_same_whether_pictures_are_kept_or_streamed(tmp_path):
    """It is cut out of the resized picture, or it alone is computed. With one record, both have one order."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 47, 3), np.uint8)
    folder = gradient_folder(tmp_path / "noise")
    write_records(folder / "train-0.tfrecord", [LabelledImage(png(noise), (1,), "noise")])
    found = []
    for memory_bytes in (IN_MEMORY, STREAMED):
        data = image_records(folder, resize=36, crop=32, memory_bytes=memory_bytes)
        with training(data, batch_size=20, seed=4, leases=(Lease(epoch, 0, 1) for epoch in range(20))) as batches:
            found.append(next(batches)[0].bytes)
    assert np.array_equal(*found)
    assert len({image.tobytes() for image in found[0]}) > 10


def test_more_workers_than_files_and_than_records_share_an_epoch(make_folder):
    """Leases are of positions, not of files; whoever finds the epoch granted goes on with the next."""
    data = image_records(make_folder(num_images=20, num_files=1), resize=12, crop=8, memory_bytes=STREAMED)
    num_workers = 25
    table = LeaseTable(data.num_records, lease_records(data.num_records, 1, num_workers))
    seen = {0: [], 1: []}
    for worker in range(num_workers):
        lease = table.grant(worker, incarnation=1, number=0)
        with training(data, batch_size=1, leases=iter([lease])) as batches:
            seen[lease.epoch] += numbers(batches, 1)
    assert sorted(seen[0]) == list(range(20))
    assert len(set(seen[1])) == 5
