"""The rows of `benchmarks/train.py`: epochs of each program on the same photos and captions, and their clock."""

import argparse
import csv
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from unittest.mock import MagicMock

import torch

SIZE, LENGTH = 224, 77
ARCHITECTURE = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": SIZE, "layers": 6, "width": 192, "patch_size": 32, "head_width": 64},
    "text_cfg": {"context_length": LENGTH, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 4},
}
RATE = 1e-4


class Clock:
    """Seconds of epochs, processor and wall, and the share of the latter in `next` of any DataLoader."""

    def __init__(self):
        self.epochs: list[dict[str, float]] = []
        self.waited = 0.0
        iterate = torch.utils.data.DataLoader.__iter__

        def timed(loader):
            batches = iterate(loader)
            while True:
                begun = time.perf_counter()
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                finally:
                    self.waited += time.perf_counter() - begun
                yield batch

        torch.utils.data.DataLoader.__iter__ = timed

    def begin(self) -> None:
        self.waited, self.started = 0.0, (processor_seconds(), time.perf_counter())

    def end(self) -> None:
        wall = time.perf_counter() - self.started[1]
        self.epochs.append(
            {"processor": processor_seconds() - self.started[0], "wall": wall, "waiting": self.waited / wall}
        )


def processor_seconds() -> float:
    """Those of this process with its threads, and of its children, loader processes included (Linux: /proc)."""
    own, ticks = os.times(), os.sysconf("SC_CLK_TCK")
    living = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[1]) == os.getpid():
            living += sum(int(fields[place]) for place in (11, 12, 13, 14))
    return own.user + own.system + own.children_user + own.children_system + living / ticks


def peak_megabytes() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


class Data:
    """The folder of COCO, and its pairs as tables for every program."""

    def __init__(self, coco: Path, work: Path):
        self.coco, self.work = coco, work
        content = json.loads((coco / "annotations" / "captions_val2017.json").read_text(encoding="utf-8"))
        names = {image["id"]: image["file_name"] for image in content["images"]}
        captions: dict[str, list[str]] = {}
        for annotation in sorted(content["annotations"], key=lambda one: one["id"]):
            captions.setdefault(names[annotation["image_id"]], []).append(annotation["caption"].strip())
        self.captions = {str(coco / "val2017" / name): texts[:5] for name, texts in captions.items()}
        self.pairs = [(path, text) for path, texts in self.captions.items() for text in texts]

    def write_jsonl(self) -> Path:
        """Training photos, and four others as val: nothing is measured there."""
        rows = [{"image": path, "captions": texts, "split": "train"} for path, texts in self.captions.items()]
        small = sorted((self.coco / "train2017").glob("*.jpg"))[:4]
        rows += [{"image": str(path), "captions": [f"photo {k}"], "split": "val"} for k, path in enumerate(small)]
        path = self.work / "captions.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    def write_csv(self) -> Path:
        path = self.work / "pairs.tsv"
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, delimiter="\t")
            table.writerows([("filepath", "title"), *self.pairs])
        return path

    def write_architecture(self) -> Path:
        path = self.work / "benchmark-vit.json"
        path.write_text(json.dumps(ARCHITECTURE), encoding="utf-8")
        return path


def bare(data: Data, clock: Clock, args: argparse.Namespace, layout: torch.memory_format) -> None:
    """What nobody can do without: towers, loss, AdamW."""
    import open_clip

    open_clip.add_model_config(data.write_architecture())
    model, _, transform = open_clip.create_model_and_transforms("benchmark-vit")
    from PIL import Image

    tokens = open_clip.get_tokenizer("ViT-B-32")([text for _, text in data.pairs])
    row = {path: number for number, path in enumerate(data.captions)}
    pixels = torch.stack([transform(Image.open(path).convert("RGB")) for path in data.captions])
    model, pixels = model.to(memory_format=layout), pixels.to(memory_format=layout)
    image = torch.tensor([row[path] for path, _ in data.pairs])
    optimizer, loss = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True), open_clip.ClipLoss()
    for _ in range(args.epochs):
        batches = torch.randperm(len(tokens))[: len(tokens) // args.batch * args.batch].split(args.batch)
        ready = [(pixels[image[pairs]], tokens[pairs]) for pairs in batches]
        clock.begin()
        for images, texts in ready:
            optimizer.zero_grad()
            loss(*model(images, texts)).backward()
            optimizer.step()
        clock.end()


def bare_with_our_batches(data: Data, clock: Clock, args: argparse.Namespace) -> None:
    from clip_itm.backbones.build import build_processor
    from clip_itm.backbones.configuration import OpenClipBackbone
    from clip_itm.data.batches import PairDataset
    from clip_itm.data.configuration import FolderData
    from clip_itm.data.load import load_splits
    from clip_itm.data.noise import CaptionNoise
    from clip_itm.data.sampler import PairBatchSampler
    from clip_itm.model import ItmModel

    section = OpenClipBackbone(model=str(data.write_architecture()))
    model, processor = ItmModel.from_backbone(section).train(), build_processor(section, None)
    train = load_splits(FolderData(root="/", captions=str(data.write_jsonl())))["train"]
    dataset = PairDataset(train, CaptionNoise.clean(train.pairs), processor)
    sampler = PairBatchSampler(train.pairs.image, "random", args.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        batches = [dataset.__getitems__(pairs) for pairs in sampler]
        clock.begin()
        for batch in batches:
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
        clock.end()


def ours(data: Data, clock: Clock, args: argparse.Namespace, cached: bool = False, compiled: bool = False) -> None:
    from transformers import TrainerCallback

    from clip_itm import ItmTrainer

    class Epochs(TrainerCallback):
        def on_epoch_begin(self, *_, **__):
            clock.begin()

        def on_epoch_end(self, *_, **__):
            clock.end()

    section = {"source": "folder", "root": "/", "captions": str(data.write_jsonl()), "num_workers": args.workers}
    section |= {"cache_dir": str(data.work / "cache"), "cache_images": 256 if cached else None}
    trainer = ItmTrainer(
        {"kind": "open_clip", "model": str(data.write_architecture())},
        section,
        output_dir=data.work / "run",
        callbacks=[Epochs()],
        report_to="none",
        evaluation={"bootstrap": 0},
        epochs=args.epochs,
        batch_size=args.batch,
        learning_rate=RATE,
        compile=compiled,
    )
    trainer.train()


def open_clip_train(data: Data, clock: Clock, args: argparse.Namespace) -> None:
    import open_clip

    of_shards = "webdataset", "webdataset.filters", "webdataset.tariterators", "braceexpand"
    missing = [name for name in of_shards if importlib.util.find_spec(name.partition(".")[0]) is None]
    sys.modules.update((name, MagicMock()) for name in missing)
    from open_clip_train import main

    open_clip.add_model_config(data.write_architecture())
    train_one_epoch = main.train_one_epoch

    def timed(*arguments, **keys):
        clock.begin()
        train_one_epoch(*arguments, **keys)
        clock.end()

    main.train_one_epoch = timed
    words = {
        "--model": "benchmark-vit",
        "--train-data": data.write_csv(),
        "--dataset-type": "csv",
        "--batch-size": args.batch,
        "--workers": args.workers,
        "--epochs": args.epochs,
        "--lr": RATE,
        "--save-frequency": 0,
        "--logs": data.work / "logs",
        "--name": "run",
        "--device": "cpu",
        "--precision": "fp32",
    }
    main.main([str(word) for option in words.items() for word in option])


def sentence_transformers(data: Data, clock: Clock, args: argparse.Namespace) -> None:
    from datasets import Dataset, Image
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, TrainerCallback

    from clip_itm.backbones.build import build_processor
    from clip_itm.backbones.configuration import OpenClipBackbone

    class Epochs(TrainerCallback):
        def on_epoch_begin(self, *_, **__):
            clock.begin()

        def on_epoch_end(self, *_, **__):
            clock.end()

    vision, text = ARCHITECTURE["vision_cfg"], ARCHITECTURE["text_cfg"]
    sizes = CLIPConfig(
        projection_dim=ARCHITECTURE["embed_dim"],
        vision_config={
            "hidden_size": vision["width"],
            "intermediate_size": 4 * vision["width"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision["head_width"],
            "image_size": SIZE,
            "patch_size": vision["patch_size"],
        },
        text_config={
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
        },
    )
    tokenizer = build_processor(OpenClipBackbone(model=str(data.write_architecture())), None).tokenizer
    CLIPModel(sizes).save_pretrained(data.work / "clip")
    CLIPProcessor(CLIPImageProcessor(), tokenizer).save_pretrained(data.work / "clip")
    model = SentenceTransformer(str(data.work / "clip"))
    columns = {"image": [path for path, _ in data.pairs], "caption": [text for _, text in data.pairs]}
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(data.work / "run"),
        num_train_epochs=args.epochs,
        per_device_train_batch_size=args.batch,
        learning_rate=RATE,
        dataloader_num_workers=args.workers,
        dataloader_drop_last=True,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(columns).cast_column("image", Image()),
        loss=MultipleNegativesRankingLoss(model),
        callbacks=[Epochs()],
    ).train()
