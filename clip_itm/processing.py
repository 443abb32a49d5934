"""`ItmProcessor`: images to pixel values, captions to token ids, saved next to the model."""

import html
import string
from pathlib import Path
from typing import Literal

import ftfy
from transformers import BatchFeature, CLIPImageProcessor, PreTrainedConfig, ProcessorMixin

from clip_itm.checksums import check_files, recording
from clip_itm.image_processing import OpenClipImageProcessor, image_inputs
from clip_itm.loading import loading

# what any tokenizer may read: its vocabulary, merges, templates
OF_PROCESSOR = ("*processor*.json", "*token*.json", "vocab*", "words*", "merges.txt", "*.model", "*.jinja")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def clean_text(text: str, how: str) -> str:
    """Text as a model saw it in its pre-training, before its tokenizer.

    `how`: "none"; "whitespace" (broken Unicode and HTML entities repaired, white space collapsed); "lower" (also
    lower-case, as OpenAI's tokenizer does); "canonicalize" (also without punctuation, as SigLIP's does).
    """
    if how == "none":
        return text
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    if how == "canonicalize":
        text = text.replace("_", " ").translate(PUNCTUATION)
    text = " ".join(text.split())
    return text if how == "whitespace" else text.lower()


class ItmProcessor(ProcessorMixin):
    """An image processor and a tokenizer of transformers, with the text tower's own cleaning and padding.

    `text_cleaning`: see `clean_text`. `max_length`: context of the text tower in tokens; longer captions are cut and
    keep their end token. `pad_token_id`: default the tokenizer's. `pad_to_max_length`: for towers that were trained on
    captions of one length (SigLIP); other batches are as wide as their longest caption. `images_as`: whose pixels a
    CLIPImageProcessor gives, those of "open_clip" (which are torchvision's and OpenAI's) or its own ("transformers");
    they are one pixel apart in a quarter of all images. Other image processors always give their own.
    """

    def __init__(
        self,
        image_processor,
        tokenizer,
        text_cleaning: str = "none",
        max_length: int = 77,
        pad_token_id: int | None = None,
        pad_to_max_length: bool = False,
        images_as: Literal["open_clip", "transformers"] = "open_clip",
    ):
        if text_cleaning not in ("none", "whitespace", "lower", "canonicalize"):
            raise ValueError(
                f"text_cleaning: expected none, whitespace, lower or canonicalize, found {text_cleaning!r}"
            )
        if images_as not in ("open_clip", "transformers"):
            raise ValueError(f"images_as: expected open_clip or transformers, found {images_as!r}")
        if images_as == "open_clip" and type(image_processor) is CLIPImageProcessor:
            image_processor = OpenClipImageProcessor.of(image_processor)
        super().__init__(image_processor, tokenizer)
        self.images_as = images_as
        self.text_cleaning = text_cleaning
        self.max_length = max_length
        self.pad_token_id = tokenizer.pad_token_id if pad_token_id is None else pad_token_id
        self.pad_to_max_length = pad_to_max_length
        if self.pad_token_id is None:
            raise ValueError(
                f"{tokenizer.name_or_path or type(tokenizer).__name__}: the tokenizer has no padding token"
            )

    def __call__(self, images=None, text=None, return_tensors: str | None = "pt") -> BatchFeature:
        """PIL images to `pixel_values` [P, 3, H, W] (or see `image_inputs`), captions to token ids and their mask.

        `input_ids` and `attention_mask` are int64 [B, T].
        """
        data = {}
        if images is not None:
            batch = list(images) if isinstance(images, list | tuple) else [images]
            data.update(image_inputs(self.image_processor, batch))
        if text is not None:
            data.update(self.pad(self.tokenize([text] if isinstance(text, str) else text)))
        return BatchFeature(data, tensor_type=return_tensors)

    def tokenize(self, captions: list[str]) -> list[list[int]]:
        """Token ids of every caption, cut to the length that the text tower reads; not padded."""
        encoded = self.tokenizer(
            [clean_text(caption, self.text_cleaning) for caption in captions],
            truncation=True,
            max_length=self.max_length,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        # a word tokenizer makes nothing of an empty caption; every caption has a token
        return [ids or [self.tokenizer.unk_token_id] for ids in encoded["input_ids"]]

    def pad(self, rows: list[list[int]]) -> dict[str, list[list[int]]]:
        """`input_ids` and `attention_mask` of one width."""
        # by length, not by id: OpenAI's padding id 0 is also the token "!"
        width = self.max_length if self.pad_to_max_length else max(map(len, rows), default=0)
        return {
            "input_ids": [ids + [self.pad_token_id] * (width - len(ids)) for ids in rows],
            "attention_mask": [[1] * len(ids) + [0] * (width - len(ids)) for ids in rows],
        }

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs) -> "ItmProcessor":
        """See `ProcessorMixin.from_pretrained`. The files of a local folder are compared with its checksums."""
        check_files(pretrained_model_name_or_path, OF_PROCESSOR)
        with loading(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """See `ProcessorMixin.save_pretrained`; `checksums.json` records what was written."""
        with recording(save_directory):
            return super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        """See `ProcessorMixin`. `images_as` was once `photos_as`; if neither was saved, the model's kind decides."""
        options, rest = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if "photos_as" in options:
            options["images_as"] = options.pop("photos_as")
        elif "images_as" not in options:
            try:
                model, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **kwargs)
            except OSError:
                model = {}
            if (model.get("backbone") or {}).get("kind") in ("transformers", "bert-vit"):
                options["images_as"] = "transformers"
        return options, rest

    def to_json_file(self, json_file_path) -> None:
        """See `ProcessorMixin`. Next to processor_config.json it writes code that loads it without this package."""
        if self._auto_class is None:  # else transformers copies the code that it loaded
            from clip_itm.checkpoint_code import PROCESSOR_AUTO_MAP, write_processor_code

            write_processor_code(Path(json_file_path).parent)
            self.auto_map = dict(PROCESSOR_AUTO_MAP)
        super().to_json_file(json_file_path)

    @property
    def special_token_ids(self) -> list[int]:
        """Start and end tokens, which are no words."""
        tokenizer = self.tokenizer
        ids = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id}
        return sorted(ids - {None})

    @property
    def hidden_word_id(self) -> int:
        """The token that replaces a hidden word: the unknown token, else padding; never a start or end token.

        OpenAI's tokenizer uses its end token for both, and the text tower pools there: its hidden words become 0.
        """
        candidates = (self.tokenizer.unk_token_id, self.pad_token_id)
        return next((i for i in candidates if i is not None and i not in self.special_token_ids), 0)
