"""The server of the app: one per process, for requests under its own names only, with a folder for uploads."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress

import gradio as gr
from starlette.routing import Route

from clip_itm.retrieval.app_guard import Guard, Names
from clip_itm.retrieval.app_html import STYLE
from clip_itm.retrieval.app_uploads import Uploads, uploads_of_a_server

LARGEST_UPLOAD = "32mb"


def serve(
    app: gr.Blocks,
    host: str | None = None,
    port: int | None = None,
    share: bool = False,
    other_names: Sequence[str] = (),
    routes: Sequence[Route] = (),
) -> None:
    """Run the server until Ctrl-C, SIGTERM or the end of the terminal; then delete what was uploaded.

    Without `host` it is 127.0.0.1, or what a Space sets; without `port` the first free one from 7860. Requests for
    another host are refused, except for `other_names`, under which a proxy may show it. `routes` are answered besides
    the app. Raises ValueError if the port is not available, and for what is no name.
    """
    host = host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    names = None if os.environ.get("SPACE_ID") else Names.of(host, other_names)  # a Space is public
    with ended_like_ctrl_c(), suppress(KeyboardInterrupt), uploads_of_a_server() as uploads:
        try:
            launch(app, host, port, share, names, uploads, routes)
            print(f"open {app.share_url or app.local_url} (Ctrl-C ends it)", flush=True)
            threading.Event().wait()
        except OSError as error:
            raise ValueError(f"cannot serve on {host}:{port} ({error}); choose another --port or --host") from None
        finally:
            app.close(verbose=False)


def launch(
    app: gr.Blocks,
    host: str,
    port: int | None,
    share: bool,
    names: Names | None,
    uploads: Uploads,
    routes: Sequence[Route] = (),
) -> None:
    """Start the server and return when it answers."""

    @asynccontextmanager
    async def guarded(server):
        # middleware given to gradio would come after its own, which answers some requests by itself
        server.middleware_stack = Guard(server.middleware_stack, names, uploads)
        server.router.routes[:0] = routes  # before gradio's own, which take every path
        yield

    for block in app.blocks.values():
        block.GRADIO_CACHE = str(uploads.folder)  # blocks were made before it, and would copy into another
    fonts = [gr.themes.Font(name) for name in ("system-ui", "sans-serif")]
    app.launch(
        server_name=host,
        server_port=port,
        share=share,
        quiet=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        run_history=False,
        footer_links=["api", "settings"],
        max_file_size=LARGEST_UPLOAD,
        theme=gr.themes.Default(primary_hue="blue", font=fonts, font_mono=[gr.themes.Font("monospace")]),
        css=STYLE,
        app_kwargs={"lifespan": guarded},
    )
    if names is not None and app.share_url:
        names.add(app.share_url)


@contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt, too, unless they have a handler already."""
    known = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    own = threading.current_thread() is threading.main_thread()  # only that one may set handlers
    taken = [index for index in known if own and signal.getsignal(index) is signal.SIG_DFL]
    for index in taken:
        signal.signal(index, signal.default_int_handler)
    try:
        yield
    finally:
        for index in taken:
            signal.signal(index, signal.SIG_DFL)
