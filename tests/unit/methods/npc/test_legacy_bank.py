"""Published memory banks: found, read without running anything, refused where they belong to other data."""

import io
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from clip_itm.backbones.build import build_processor
from clip_itm.backbones.configuration import OpenClipBackbone
from clip_itm.data.batches import PairDataset
from clip_itm.data.configuration import Cc120kData, CocoData, FlickrData
from clip_itm.data.load import load_splits
from clip_itm.data.noise import CaptionNoise
from clip_itm.data.rows import Pairs
from clip_itm.methods.npc.legacy_bank import find_legacy_bank, read_legacy_bank, read_legacy_file
from support.data_folders import golden_folder, make_pairs, photo


def scan_pairs(image_ids, captions) -> Pairs:
    per_photo = len(captions) // len(image_ids)
    return Pairs(
        image=np.repeat(np.arange(len(image_ids)), per_photo),
        captions=pa.array(list(captions), pa.string()),
        caption_ids=pa.array([f"train_caps.txt:{line + 1}" for line in range(len(captions))], pa.string()),
        image_ids=pa.array([str(image_id) for image_id in image_ids], pa.string()),
    )


def write_published(folder: Path, ratio: str, image_bytes: bytes, text_bytes: bytes) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / f"{ratio}_mbank_img_idx.npy", folder / f"{ratio}_mbank_txt_idx.npy"
    for file, content in zip(files, (image_bytes, text_bytes), strict=True):
        file.write_bytes(content)
    return files


def saved(content, dtype=object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(content, dtype=dtype), allow_pickle=True)
    return file.getvalue()


def with_header_of_an_array(pickled: bytes) -> bytes:
    """A .npy file of one object whose pickle is `pickled`."""
    whole = saved({"0": 0})
    return whole[: whole.index(b"\n") + 1] + pickled


@pytest.mark.parametrize("name", ["coco", "f30k", "cc"])
def test_published_files(golden, tmp_path, name):
    arrays = {key.removeprefix(f"{name}_"): value for key, value in golden("npc_dataset_layout").items()}
    pairs = scan_pairs(arrays["ids_lines"], arrays["caps_lines"])
    noise = CaptionNoise.draw(pairs, 0.4, "caption", 99)
    content = [arrays[f"bank_{kind}_npy"].tobytes() for kind in ("img", "txt")]
    files = write_published(tmp_path, "0.4", *content)
    bank = read_legacy_bank(*find_legacy_bank(tmp_path, 0.4), pairs, noise)
    np.testing.assert_array_equal(bank.image_entry, arrays["bank_img"])
    np.testing.assert_array_equal(bank.caption_entry, arrays["bank_txt"])
    bank.check(noise, pairs)
    assert (bank.rho, bank.losses, bank.clean) == (None, None, None)
    photos = [str(int(image_id)) for image_id in arrays["ids_lines"]]
    for file, keys, entries in (
        (files[0], photos, bank.image_entry),
        (files[1], map(str, range(len(pairs))), bank.caption_entry),
    ):  # as NumPy 1 writes them
        content = {key: np.array([[entry]]) for key, entry in zip(keys, entries, strict=True)}
        pickled = pickle.dumps(np.array(content, dtype=object), protocol=3)
        file.write_bytes(with_header_of_an_array(pickled.replace(b"numpy._core", b"numpy.core")))
    assert b"numpy.core" in files[0].read_bytes()
    assert read_legacy_bank(*files, pairs, noise).sha256 == bank.sha256


@pytest.mark.parametrize(("name", "section"), [("coco", CocoData), ("f30k", FlickrData), ("cc", Cc120kData)])
def test_golden_entries_come_along_with_a_batch(golden, tmp_path, name, section):
    """Photo and caption of every pair and of both of its entries, from the published files to the batch."""
    arrays = golden("npc_dataset_layout")
    golden_folder(tmp_path, arrays, name)
    for number, path in enumerate(np.unique(arrays[f"{name}_dev_paths"])):
        photo(tmp_path / path, 30 * number)
    split = load_splits(section(root=str(tmp_path), cache_dir=str(tmp_path / "cache")), verify=False)["train"]
    noise = CaptionNoise.clean(split.pairs)
    content = [arrays[f"{name}_bank_{kind}_npy"].tobytes() for kind in ("img", "txt")]
    bank = read_legacy_bank(*write_published(tmp_path, "0", *content), split.pairs, noise)
    processor = build_processor(OpenClipBackbone(model="ViT-B-32-quickgelu"), None)
    dataset = PairDataset(split, noise, processor)
    dataset.memory = bank.image_entry, bank.caption_entry

    count, paths = len(split.pairs), arrays[f"{name}_train_paths"]
    pixels = {path: processor(images=[Image.open(tmp_path / path)])["pixel_values"][0] for path in np.unique(paths)}
    for pairs in ([0, count - 1, 2], list(range(count))):
        batch = dataset.__getitems__(pairs)
        photos = torch.cat([batch["pixel_values"], batch["memory_pixel_values"]])
        captions = torch.cat([batch["input_ids"], batch["memory_input_ids"]])
        captions = F.pad(captions, (0, 77 - captions.shape[1]))
        # of the pair itself, of the entry of its photo, of the entry of its caption
        photo_rows = torch.stack([batch["image_index"], *batch["memory_image_index"].chunk(2)], dim=1)
        caption_rows = torch.stack([torch.arange(len(pairs)), *batch["memory_caption"].chunk(2)], dim=1)
        np.testing.assert_array_equal(captions[caption_rows], arrays[f"{name}_train_tokens"][pairs])
        expected = torch.stack([pixels[path] for path in paths[pairs].flat])
        assert torch.equal(photos[photo_rows.flatten()], expected)


@pytest.mark.parametrize("protocol", [3, 4])
def test_every_spelling_of_a_whole_number_is_read(tmp_path, protocol):
    values = {
        "0": 3,
        "1": np.array([4]),
        "002": np.array([[5]], dtype=np.int32),
        "3": np.array(6, dtype=">u2"),
        "4": np.int64(2**40),
        "5": np.array([[7]], dtype=np.uint8, order="F"),
    }
    path = tmp_path / "bank.npy"
    path.write_bytes(with_header_of_an_array(pickle.dumps(np.array(values, dtype=object), protocol=protocol)))
    assert read_legacy_file(path) == {0: 3, 1: 4, 2: 5, 3: 6, 4: 2**40, 5: 7}


@pytest.mark.parametrize("ratio", ["0", "0.0"])
@pytest.mark.parametrize("place", ["", "memory_bank", "annotations/query_bank", "annotations/frozen_memory_bank"])
def test_the_places_and_names_of_published_files(tmp_path, ratio, place):
    files = write_published(tmp_path / place, ratio, b"", b"")
    assert find_legacy_bank(tmp_path, 0.0) == files
    with pytest.raises(ValueError, match=rf"no 0\.2_mbank_img_idx\.npy and .*found .*{ratio}_mbank_img_idx\.npy"):
        find_legacy_bank(tmp_path, 0.2)
    write_published(tmp_path / "query_bank", "0", b"", b"")
    with pytest.raises(ValueError, match=r"has 2 memory banks of ratio 0: .*query_bank"):
        find_legacy_bank(tmp_path, 0.0)


class Trap:
    """Whoever unpickles this makes a file."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize(
    "make",
    [
        lambda file: Trap(Path.touch, file),
        lambda file: {"0": Trap(open, str(file), "w")},
        lambda file: np.array({"0": Trap(exec, f"open({str(file)!r}, 'w')")}, dtype=object),
        lambda file: np.array({"0": np.array([[Trap(open, str(file), "w")]], dtype=object)}, dtype=object),
        lambda file: np.array({"0": Trap(np.savetxt, str(file), [1])}, dtype=object),
    ],
)
def test_nothing_in_a_published_file_runs(tmp_path, make):
    made, path = tmp_path / "made", tmp_path / "bank.npy"
    pickled = pickle.dumps(make(made))
    path.write_bytes(with_header_of_an_array(pickled))
    with pytest.raises(ValueError, match=r"bank\.npy is not a published memory bank.* asks for"):
        read_legacy_file(path)
    assert not made.exists()
    pickle.loads(pickled)
    assert made.exists(), "the trap has to work where it is not guarded against"


def test_constructors_of_numpy_do_not_run_either(tmp_path):
    path = tmp_path / "bank.npy"
    path.write_bytes(saved({"0": Trap(np.ndarray, (2**50,))}))
    with pytest.raises(ValueError, match=r"bank\.npy is not a published .* a value is a NumPy ndarray"):
        read_legacy_file(path)
    with pytest.raises(MemoryError):
        np.load(path, allow_pickle=True)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        saved({"0": 0})[:-5],
        with_header_of_an_array(b"\x80\x04."),
        with_header_of_an_array(pickle.dumps([1, 2])),
        with_header_of_an_array(pickle.dumps({"0": 0})),
        saved([1, 2], dtype=np.int64),
        saved([{"0": 0}, {"1": 1}]),
        saved({"a": 0}),
        saved({0: 0}),
        saved({"0": 1.5}),
        saved({"0": True}),
        saved({"0": -1}),
        saved({"0": 2**63}),
        saved({"0": np.array([1, 2])}),
        saved({"0": np.array([1.0])}),
        saved({"0": np.array(["1"])}),
        saved({"0": np.dtype("i8")}),
        saved({"0": None}),
    ],
    ids=range(19),
)
def test_anything_else_is_no_published_file(tmp_path, content):
    path = tmp_path / "bank.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bank\.npy is not a published memory bank"):
        read_legacy_file(path)


def test_files_of_other_data_are_refused(tmp_path):
    pairs = scan_pairs(["007", "12"], ["a", "b", "c", "d"])
    noise = CaptionNoise.clean(pairs)
    photos, captions = {"7": 0, "12": 2}, {str(number): 1 for number in range(4)}

    def read(photos, captions, pairs=pairs):
        return read_legacy_bank(*write_published(tmp_path, "0", saved(photos), saved(captions)), pairs, noise)

    np.testing.assert_array_equal(read(photos, captions).image_entry, [0, 2])
    with pytest.raises(ValueError, match=r"0_mbank_img_idx\.npy: no entry for 1 photo, first photo 12;"):
        read({"7": 0}, captions)
    with pytest.raises(ValueError, match=r"0_mbank_txt_idx\.npy: no entry for 3 pairs, first pair 1;"):
        read(photos, {"0": 1})
    with pytest.raises(ValueError, match=r"txt_idx\.npy: not in the training split: 1 pair, first pair 4;"):
        read(photos, captions | {"4": 1})
    with pytest.raises(ValueError, match="is pair 4, but training pairs are numbered 0 to 3"):
        read(photos | {"12": 4}, captions)
    with pytest.raises(ValueError, match=r"1 of 2 photo ids of this training split are not, such as '12\.jpg'"):
        read(photos, captions, scan_pairs(["007", "12.jpg"], ["a", "b", "c", "d"]))
    others = make_pairs([2, 2], ["a", "b", "c", "d"])
    with pytest.raises(ValueError, match=r"pair 0 of this training split is '0' and not 'train_caps\.txt:1'"):
        read(photos, captions, others)
