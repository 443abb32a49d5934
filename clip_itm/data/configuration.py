"""`data:` section of a recipe: which images and captions, from where, and how they are read."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from clip_itm.section import Section, Seed

SplitNames = dict[Literal["train", "val", "test"], str]
Fraction = Annotated[float, Field(ge=0, le=1)]
LAYOUT = "of the annotation files; auto: the first that is found in root"
DrawnImages = Annotated[int, Field(gt=0, le=1_000_000)]


class DataSection(Section):
    """What every source shares, and what the rest of the package asks about a source (it never asks for its name)."""

    reads_images: ClassVar[bool] = True  # a user's, which may be missing or broken; drawn ones are always sound
    gives_regions: ClassVar[bool] = False  # instead of images; `global_vectors` says whether vectors come along
    missing_split_advice: ClassVar[str] = ""  # the end of the error if there is no train or val

    skip_missing: bool = Field(False, description="leave out photos that are missing, and say how many")
    skip_broken: bool = Field(False, description="leave out photos that cannot be read and captions that are empty")
    max_images: PositiveInt | None = Field(None, description="keep only the first photos of every split (a quick look)")
    marks: str | None = Field(
        None, description="what people said about training pairs (JSONL): wrong ones weigh 0, fixed texts are used"
    )
    cache_images: PositiveInt | None = Field(None, description="short side, in pixels, of a cache of resized photos")
    cache_dir: str | None = Field(None, description="folder of all caches (default: ~/.cache/clip_itm)")
    num_workers: Annotated[int, Field(ge=0, le=1024)] | Literal["auto"] = Field(
        "auto",
        description="loader processes per training process; auto: by cores on a GPU, 0 on a CPU or for few photos",
    )
    random_crop: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="smallest area share of a random training crop; 1 means none"
    )

    @property
    def cache_folder(self) -> Path:
        """The folder of all caches: `cache_dir`, or else ~/.cache/clip_itm."""
        return Path(self.cache_dir or "~/.cache/clip_itm").expanduser().absolute()

    @property
    def hub_dataset(self) -> str | None:
        """The name on the Hub, or the folder, of a data set of `datasets`; None for other sources."""
        return None


class CocoData(DataSection):
    """MS COCO captions in the official, Karpathy's or the scan_split layout."""

    source: Literal["coco"] = "coco"
    root: str = Field(
        min_length=1, description="folder with train2014/val2014, train2017/val2017 or images/, and annotations/"
    )
    layout: Literal["auto", "official", "karpathy", "scan_split"] = Field("auto", description=LAYOUT)
    karpathy: str | None = Field(None, description="dataset_coco.json (default: looked for in root and annotations/)")
    captions_per_image: PositiveInt = Field(5, description="scan_split layout only")


class FlickrData(DataSection):
    """Flickr8k or Flickr30K with a token file, Karpathy's JSON or the scan_split layout."""

    source: Literal["flickr"] = "flickr"
    root: str = Field(min_length=1, description="folder of the annotation files")
    images: str | None = Field(None, description="photo folder (default: the first of the usual names found in root)")
    layout: Literal["auto", "token", "karpathy", "scan_split"] = Field("auto", description=LAYOUT)
    annotations: str | None = Field(None, description="token file or Karpathy JSON (default: looked for in root)")
    split_seed: Seed = Field(0, description="seed of the hash split if no split files exist")
    captions_per_image: PositiveInt = Field(5, description="scan_split layout only")


class Cc120kData(DataSection):
    """CC120K and other parts of Conceptual Captions: one caption per image."""

    source: Literal["cc120k"] = "cc120k"
    root: str = Field(min_length=1, description="scan_split layout, or the folder of train.tsv / dev.tsv / test.tsv")
    images: str | None = Field(None, description="photo folder (default: root/images)")
    layout: Literal["auto", "scan_split", "tsv"] = Field("auto", description=LAYOUT)


class HashedSplit(DataSection):
    """Sources that may come without splits; a seeded hash of the image's id then decides."""

    val_fraction: Fraction = Field(0.1, description="share of photos in val if the split is by hash")
    test_fraction: Fraction = Field(0.1, description="share of photos in test if the split is by hash")
    split_seed: Seed = Field(0, description="seed of the hash split")

    @model_validator(mode="after")
    def _leaves_something_to_train(self) -> Self:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction must stay below 1, or nothing is left to train on")
        return self


class FolderData(HashedSplit):
    """A folder of images and a table of their captions."""

    source: Literal["folder"] = "folder"
    root: str = Field(min_length=1, description="photo folder; relative image paths start here")
    captions: str | None = Field(None, description="CSV, TSV, JSONL; default: metadata.jsonl/.csv, captions.* in root")
    image_column: str | None = Field(None, description="default: image, file_name, path, ... whichever exists")
    caption_columns: list[str] | None = Field(None, description="one or several; default: caption, captions, text, ...")
    split_column: str | None = Field(
        None, description="column with train / val / test; default: split, if there is one"
    )
    split_files: SplitNames | None = Field(
        None, description="{train: FILE, val: FILE, test: FILE}: lists of photo names, or caption tables"
    )


class HubData(HashedSplit):
    """A data set of the Hugging Face Hub, or a folder written by `save_to_disk`."""

    missing_split_advice: ClassVar[str] = "; name one, such as --data.splits '{train: train, val: test}'"

    source: Literal["hub"] = "hub"
    path: str = Field(min_length=1, description="name on the Hub, or a folder written by save_to_disk")
    name: str | None = Field(None, description="configuration of the Hub dataset")
    revision: str | None = Field(None, description="branch, tag or commit on the Hub; default: its main branch")
    image_column: str = Field("image", description="column of images, or of their URLs")
    caption_column: str = Field("caption", description="a string or a list of strings per row")
    image_id_column: str | None = Field(None, description="column of photo ids; default: image_id, or the image")
    split_column: str | None = Field(None, description="column with train / val / test (some sets come as one split)")
    splits: SplitNames | None = Field(None, description="{train: NAME, val: NAME, ...}; default: the usual names")

    @property
    def hub_dataset(self) -> str:
        """The `path` of the recipe."""
        return self.path


class WebDatasetData(HashedSplit):
    """Tars of WebDataset and img2dataset, read where they are: photos, captions in .txt or .json."""

    missing_split_advice: ClassVar[str] = "; name them, such as --data.splits '{train: train-*, val: val-*}'"

    source: Literal["webdataset"] = "webdataset"
    root: str = Field(
        min_length=1,
        description="a folder of .tar files, one of them, a glob, or a pattern such as data/{00000..00012}.tar; also "
        "below s3://, hf:// and whatever else fsspec reads",
    )
    splits: SplitNames | None = Field(
        None,
        description="{train: PATTERN, val: PATTERN, ...} of tars or folders in root; default: by names that begin with "
        "train, val, test, else by a seeded hash",
    )
    caption_key: str | None = Field(
        None, description="txt, or a key of .json (default: .txt, else caption, captions, text, ...)"
    )
    id_key: str | None = Field(None, description="key of .json that is a photo's id (default: uid, image_id, its name)")
    check_photos: bool | None = Field(
        None, description="decode every photo before training (default: if the tars are on this machine)"
    )
    remote_cache_gb: Annotated[float, Field(gt=0)] = Field(
        50.0, description="remote tars: gigabytes of photos to keep in cache_dir at most; those read longest ago go"
    )

    @property
    def reads_images(self) -> bool:  # type: ignore[override]
        """Whether photos are decoded before training."""
        return "://" not in self.root if self.check_photos is None else self.check_photos


class ParquetData(HashedSplit):
    """Parquet files of photos, or of their paths, and captions."""

    missing_split_advice: ClassVar[str] = "; name them, such as --data.splits '{train: train-*, val: val-*}'"

    source: Literal["parquet"] = "parquet"
    root: str = Field(
        min_length=1,
        description="a folder of .parquet files, one of them, a glob, or a pattern such as data/{00000..00012}.parquet",
    )
    splits: SplitNames | None = Field(
        None,
        description="{train: PATTERN, val: PATTERN, ...} of files or folders in root; default: by names that begin "
        "with train, val, test, else by a seeded hash",
    )
    image_column: str | None = Field(
        None, description="photos as bytes or {bytes, path}, or their paths; default: image, jpg, path, ..."
    )
    caption_column: str | None = Field(None, description="a text or a list of them (default: caption, text, ...)")
    id_column: str | None = Field(None, description="default: uid, image_id or key, else a hash of the photo")
    split_column: str | None = Field(None, description="column with train / val / test")


class TextFilesData(HashedSplit):
    """Photos, each with a text file of the same name next to it, a caption per line."""

    source: Literal["text_files"] = "text_files"
    root: str = Field(min_length=1, description="folder of dog.jpg and dog.txt, and of more folders of them")


class RegionsData(DataSection):
    """Precomputed region features instead of images, in the layout of SCAN."""

    reads_images: ClassVar[bool] = False
    gives_regions: ClassVar[bool] = True

    source: Literal["regions"] = "regions"
    root: str = Field(min_length=1, description="folder of train_ims.npy, train_caps.txt or .tsv, dev_..., test_...")
    test: Literal["test", "testall"] = Field("test", description="which test split (COCO: testall has 5,000 photos)")
    captions_per_image: PositiveInt = Field(5, description="captions of a photo, on neighbouring lines (CC152K: 1)")
    whole_val: bool = Field(False, description="all of val; published programs read its first 5,000 captions")
    global_vectors: bool = Field(
        False,
        description="read another model's vectors (..._clip_ims.npy, ..._clip_caps.npy) for backbone.global_dim",
    )
    images: str | None = Field(None, description="photo folder, if photos are to be shown; needs id_mapping")
    id_mapping: str | None = Field(None, description="JSON from the ids of ..._ids.txt to names of photos in images")

    @model_validator(mode="after")
    def _there_are_no_images(self) -> Self:
        if self.cache_images is not None or self.random_crop < 1:
            raise ValueError("cache_images and random_crop do nothing for precomputed regions: leave them out")
        if (self.images is None) != (self.id_mapping is None):
            raise ValueError("images and id_mapping belong together: set both, or neither")
        return self


class SampleData(DataSection):
    """Drawn scenes of coloured shapes with five captions each: data for a first look and for tests, no download."""

    reads_images: ClassVar[bool] = False

    source: Literal["sample"] = "sample"
    train_images: DrawnImages = Field(2000, description="scenes to draw for train")
    val_images: DrawnImages = Field(500, description="scenes to draw for val")
    test_images: DrawnImages = Field(500, description="scenes to draw for test")
    image_size: Annotated[int, Field(gt=0, le=1024)] = Field(64, description="width and height of a scene, in pixels")
    seed: Seed = Field(0, description="seed of the scenes")


AnySource = (
    CocoData
    | FlickrData
    | Cc120kData
    | FolderData
    | TextFilesData
    | HubData
    | ParquetData
    | WebDatasetData
    | RegionsData
    | SampleData
)
DataConfig = Annotated[AnySource, Field(discriminator="source")]


class NoiseSection(Section):
    """`noise:` section: which caption each training pair gets. Val and test never have noise."""

    ratio: Fraction = Field(0.0, description="share of training captions that are exchanged")
    level: Literal["caption", "image", "neighbour", "noun"] = Field(
        "caption",
        description="captions are shuffled individually, or all of a photo together; or pairs get the caption of a "
        "photo that looks alike, or a caption that shares a noun (English)",
    )
    neighbours: PositiveInt = Field(50, description="level neighbour: captions come from this many nearest photos")
    model: str | None = Field(
        None,
        min_length=1,
        description="level neighbour: a run, folder, name on the Hub or MODEL:TAG of open_clip, by whose embeddings "
        "photos are near; default: the features of the recipe's own image tower before training",
    )
    seed: Seed = Field(99, description="seed of the draw (99 reproduces the published files)")
    file: str | None = Field(None, description="a saved or published noise file instead of a draw")
    sha256: str | None = Field(None, description="expected hash; another one is an error")

    @property
    def needs_neighbours(self) -> bool:
        """Whether the draw needs a model, or regions, to find the photos nearest to each."""
        return self.level == "neighbour" and self.ratio > 0 and self.file is None
