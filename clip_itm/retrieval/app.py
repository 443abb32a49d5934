"""A page in the browser: search by text and by image, a heat map of images and captions, an audit to browse.

serve(build_app(pipe))          # of app_server.py

A browser cannot name a file or an address: what is typed is text, what is uploaded is read as an image, and the images
of the index and of the audit reach the page as small JPEGs inside it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import gradio as gr
from gradio.utils import get_upload_folder
from PIL import Image

from clip_itm.data.images import read_image, small_jpeg
from clip_itm.pages import render
from clip_itm.retrieval.app_audit import PAGE_SIZE, AuditTable
from clip_itm.retrieval.app_html import SMALL_SIDE, header, heat_map, message, pairs, results
from clip_itm.retrieval.app_server import serve as serve
from clip_itm.retrieval.pipeline import ImageTextRetrievalPipeline
from clip_itm.visible import counted

MOST_IMAGES, MOST_CAPTIONS = 8, 12  # of the heat map
MOST_RESULTS = 50
MOST_CHARACTERS = 1000  # of a sentence or a caption; models read a few dozen words
MOST_WAITING = 32  # requests; further ones are told that the queue is full
TOO_LONG = f"{{:,}} characters are too many; expected at most {MOST_CHARACTERS:,}."
NAMES = {"image": "photos", "text": "captions"}
ONE_AT_A_TIME = {"concurrency_id": "model", "concurrency_limit": 1}  # tokenizers are not made for threads


def build_app(pipe: ImageTextRetrievalPipeline, audit: Path | AuditTable | None = None) -> gr.Blocks:
    """The page for the indexes that `pipe` has now, and for an audit: its table, audit.parquet, or its run.

    If the table is given, the page links to its review (`review_routes.py`), which has to be served with it.
    """
    table = audit if audit is None or isinstance(audit, AuditTable) else AuditTable.load(audit)
    targets = {kind: search_target(pipe, kind) for kind in ("text", "image")}
    with gr.Blocks(analytics_enabled=False, title="Image-text search", delete_cache=(3600, 3600)) as app:
        gr.HTML(header(_title(pipe), _missing(pipe, targets)), apply_default_css=False)
        with gr.Tabs(overflow_behavior="wrap"):
            if targets["text"]:
                with gr.Tab("By text"):
                    _text_tab(pipe, targets["text"])
            if targets["image"]:
                with gr.Tab("By photo"):
                    _image_tab(pipe, targets["image"])
            with gr.Tab("Heat map"):
                _heat_map_tab(pipe)
            if table is not None:
                with gr.Tab("Audit"):
                    if isinstance(audit, AuditTable):
                        gr.HTML(render("app_review_link.html"), apply_default_css=False)
                    _audit_tab(table)
    return app.queue(max_size=MOST_WAITING, api_open=False)  # nothing gets past the queue


def search_target(pipe: ImageTextRetrievalPipeline, query: str) -> str | None:
    """The gallery for a query ("text" or "image"): the other kind, else its own if the head compares like with like.

    None: there is nothing to search.
    """
    other = "image" if query == "text" else "text"
    if other in pipe.galleries:
        return other
    return query if query in pipe.galleries and pipe.model.head.similarity.is_dot_product else None


def _title(pipe: ImageTextRetrievalPipeline) -> str:
    counts = [f"{len(index):,} {NAMES[kind]}" for kind, index in pipe.galleries.items()]
    return f"Search {' and '.join(counts)}" if counts else "Compare photos and captions"


def _missing(pipe: ImageTextRetrievalPipeline, targets: dict[str, str | None]) -> list[str]:
    """What to give for the tabs that are not there."""
    wanted = {"text": ("by text", "photos"), "image": ("by photo", "captions")}
    return [
        f"Search {way} needs an index of {items}: make one with clip-itm index, and give it with --index."
        for kind, (way, items) in wanted.items()
        if targets[kind] is None
    ]


def _text_tab(pipe: ImageTextRetrievalPipeline, target: str) -> None:
    with gr.Row(equal_height=True):
        text = gr.Textbox(
            label="sentence",
            placeholder="a dog runs over the grass",
            submit_btn="Search",
            autofocus=True,
            scale=3,
            min_width=320,
            max_length=MOST_CHARACTERS,
        )
        count = _count_slider()
    found = gr.HTML(message(f"Type a sentence to see {NAMES[target]}."), apply_default_css=False)
    find = told_on_page(partial(find_by_text, pipe, target))
    gr.on([text.submit, count.release], find, [text, count], found, api_name="search_by_text", **ONE_AT_A_TIME)


def _image_tab(pipe: ImageTextRetrievalPipeline, target: str) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            image = gr.Image(label="photo", sources=["upload", "clipboard"], type="filepath", height=260, buttons=[])
            image.preprocess = path_of_upload  # its own would open the file, and fail silently if it is no image
            count = _count_slider()
        with gr.Column(scale=2):
            found = gr.HTML(message(f"Drop or paste a photo to see {NAMES[target]}."), apply_default_css=False)
    find = told_on_page(partial(find_by_image, pipe, target))
    gr.on([image.change, count.release], find, [image, count], found, api_name="search_by_photo", **ONE_AT_A_TIME)


def _count_slider() -> gr.Slider:
    return gr.Slider(1, MOST_RESULTS, value=12, step=1, label="results", buttons=[], min_width=240)


def _heat_map_tab(pipe: ImageTextRetrievalPipeline) -> None:
    with gr.Row():
        images = gr.Gallery(
            label=f"photos (up to {MOST_IMAGES})",
            type="filepath",
            columns=4,
            height=310,
            object_fit="contain",
            interactive=True,
            sources=["upload", "clipboard"],
            buttons=[],
            elem_classes="itm-uploads",
        )
        captions = gr.Textbox(label=f"captions, one per line (up to {MOST_CAPTIONS})", lines=11, max_lines=12)
    button = gr.Button("Compare", variant="primary")
    shown = gr.HTML(message("Drop some photos and type some captions."), apply_default_css=False)
    compare = told_on_page(partial(compare_all, pipe))
    button.click(compare, [images, captions], shown, api_name="heat_map", **ONE_AT_A_TIME)


def _audit_tab(table: AuditTable) -> None:
    with gr.Row():
        words = gr.Textbox(
            label="words in the caption", submit_btn="Find", scale=2, min_width=320, max_length=MOST_CHARACTERS
        )
        low = gr.Slider(0, 1, value=0, step=0.01, label="probability at least", buttons=[], min_width=240)
        high = gr.Slider(0, 1, value=1, step=0.01, label="probability at most", buttons=[], min_width=240)
    with gr.Row():
        before = gr.Button("previous", min_width=90)
        page = gr.Number(value=1, precision=0, minimum=1, show_label=False, container=False, min_width=70)
        after = gr.Button("next", min_width=90)
    shown = gr.HTML(audit_page(table, 0, 1, "", 0, 1)[1], apply_default_css=False)
    inputs, outputs = [page, words, low, high], [page, shown]
    gr.on([words.submit, low.release, high.release], partial(audit_page, table, 0, 1), inputs[1:], outputs)
    before.click(partial(audit_page, table, -1), inputs, outputs)
    after.click(partial(audit_page, table, 1), inputs, outputs)
    page.submit(partial(audit_page, table, 0), inputs, outputs, api_name="audit")


def told_on_page(answer: Callable[..., str]) -> Callable[..., str]:
    """The same answer, but a user's mistake becomes a message on the page."""

    def answer_or_message(*inputs) -> str:
        try:
            return answer(*inputs)
        except ValueError as error:
            return message(str(error))

    return answer_or_message


def find_by_text(pipe: ImageTextRetrievalPipeline, target: str, text: str, count: float) -> str:
    if not text.strip():
        raise ValueError("Type a sentence, then press Enter.")
    require_short(text)
    hits = pipe.search([{"text": text}], num_results(count), target)[0]
    return results(f"{NAMES[target].capitalize()} for “{text.strip()}”", hits)


def find_by_image(pipe: ImageTextRetrievalPipeline, target: str, upload: str | None, count: float) -> str:
    if upload is None:
        raise ValueError(f"Drop or paste a photo to see {NAMES[target]}.")
    hits = pipe.search([read_upload(upload)], num_results(count), target)[0]
    return results(f"{NAMES[target].capitalize()} for {Path(upload).name}", hits)


def compare_all(pipe: ImageTextRetrievalPipeline, uploads: Sequence[tuple[str, str]] | None, lines: str) -> str:
    """The similarity of every image and every caption under the head's own rule."""
    captions = [line.strip() for line in lines.splitlines() if line.strip()]
    if not uploads or not captions:
        raise ValueError("Drop at least one photo and type at least one caption.")
    for found, most, name in ((uploads, MOST_IMAGES, "photos"), (captions, MOST_CAPTIONS, "captions")):
        if len(found) > most:
            raise ValueError(f"{len(found)} {name} are too many for one table; expected at most {most}.")
    require_short(*captions)
    images = [read_upload(upload) for upload, _ in uploads]
    similarity = pipe.similarity(pipe.embed(images), pipe.embed([{"text": caption} for caption in captions]))
    names = [Path(upload).name for upload, _ in uploads]
    small = [small_jpeg(image, SMALL_SIDE) for image in images]
    return heat_map(list(zip(names, small, strict=True)), captions, similarity)


def audit_page(table: AuditTable, step: int, page: float, words: str, low: float, high: float) -> tuple[int, str]:
    """The page `step` pages after `page`, or the nearest there is: its number, and its cards."""
    if len(words) > MOST_CHARACTERS:
        return 1, message(TOO_LONG.format(len(words)))
    found = table.matching(words, low, high)
    if not len(found):
        return 1, message(f"None of {len(table):,} pairs is like that; try fewer words or a wider range.")
    last = (len(found) - 1) // PAGE_SIZE + 1
    number = min(max(int(page or 1) + step, 1), last)
    rows = table.rows(found[(number - 1) * PAGE_SIZE : number * PAGE_SIZE])
    title = (
        f"{len(found):,} of {counted(len(table), 'pair, most', 'pairs, most')} suspicious first; page "
        f"{number:,} of {last:,}"
    )
    return number, pairs(title, rows, table.held)


def require_short(*texts: str) -> None:
    for text in texts:
        if len(text) > MOST_CHARACTERS:
            raise ValueError(TOO_LONG.format(len(text)))


def num_results(asked: float) -> int:
    """How many results to show, whatever a request asks for."""
    return int(max(1, min(asked, MOST_RESULTS)))


def path_of_upload(payload) -> str | None:
    """What `gr.Image` passes to the function."""
    return payload and payload.path


def read_upload(path: str) -> Image.Image:
    """The image, named as the user named it. Raises ValueError for a file that was not uploaded or is no image, and for
    a damaged or suspiciously large one.
    """
    file = Path(path).resolve()
    # gradio checks paths only in requests of the form that its own page sends
    if not (file.is_relative_to(Path(get_upload_folder()).resolve()) and file.is_file()):
        raise ValueError("This file was not uploaded, or was uploaded too long ago: drop the photo on the page.")
    return read_image({"path": file.name, "bytes": file.read_bytes()})
