"""`serve`: a model for other programs, over HTTP. What it does is `serving`'s."""

from __future__ import annotations

from typing import Any

import click

from .help import command
from .options import (
    ChatOptions,
    ModelOptions,
    Size,
    ToolOptions,
    UserPath,
    model_argument,
    pass_chat_options,
    pass_model_options,
    pass_page_tool_options,
)

FILE = UserPath(exists=True, dir_okay=False)


@command(epilog="Example: gptoss-mlx serve gpt-oss-20b --port 8080")
@model_argument(required=False)
@click.option(
    "--host",
    metavar="ADDRESS",
    default="127.0.0.1",
    show_default=True,
    help="The address to listen at; 0.0.0.0 is the network, which needs a key.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="N",
    default=8080,
    show_default=True,
    help="The port; 0 for a free one.",
)
@click.option(
    "--parallel",
    type=click.IntRange(1, 256),
    metavar="N",
    default=4,
    show_default=True,
    help="Answers that are written at a time, in turns; others wait.",
)
@pass_chat_options
@pass_page_tool_options
@pass_model_options
@click.option("--no-kv", is_flag=True, help="Don't save KV caches; the page's chats are read again.")
@click.option("--kv-limit", type=Size(), default="4GB", show_default=True, help="Disk limit for saved KV caches.")
@click.option(
    "--allow-origin",
    multiple=True,
    metavar="ORIGIN",
    help="Let the web pages of this origin use the server, such as https://example.org.",
)
@click.option("--key-file", type=FILE, metavar="FILE", help="Demand the key in this file, also on this machine.")
@click.option("--tls-cert", type=FILE, metavar="FILE", help="Serve HTTPS with this certificate, in PEM.")
@click.option("--tls-key", type=FILE, metavar="FILE", help="Its private key, where the certificate's file has none.")
def serve(
    model: str | None, chat_options: ChatOptions, tool_options: ToolOptions, model_options: ModelOptions, **given: Any
) -> None:
    """Serve MODEL to other programs, and on a page to chat at.

    MODEL is a folder, gpt-oss-20b, gpt-oss-120b, or a Hugging Face id; without it, the default or the one used last.
    Programs use OpenAI's APIs or Anthropic's. Options of sampling hold where a request does not say otherwise; those of
    answers and tools are for the page, whose conversations are the sessions of the chat. On another host than this
    machine, requests need the key that is shown.
    """
    from .serving import ServeOptions, serve_model

    serve_model(model, ServeOptions(**given), chat_options, tool_options, model_options)
