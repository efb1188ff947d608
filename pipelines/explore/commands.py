"""`medalign explore`: its flags."""

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.evaluation.result import FOLDER
from shared.console import note, say
from shared.errors import UserError
from teacher_cache.options import TokenizerOption, WeightsOption

if TYPE_CHECKING:
    from pipelines.explore.explorer import Explorer
    from pipelines.explore.server import Server


def explore_command(
    run: Annotated[
        Path, typer.Option(help="A run that `medalign evaluate` has scored: any that it accepts.")
    ],
    store: Annotated[
        str | None, typer.Option(help="The teacher's targets; default: the recipe's targets.store.")
    ] = None,
    regions: Annotated[
        Path | None, typer.Option(help="Boxes, or a folder of masks, to outline.")
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="The folder of evaluate's --out. Default: RUN/evaluation.")
    ] = None,
    image_root: Annotated[
        Path | None,
        typer.Option("--image-root", help="Folder of the images; default: evaluate's."),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Which teacher of the store; default: the recipe's.")
    ] = None,
    grid: Annotated[
        str | None, typer.Option(help="Which grid of the store, such as 24x24.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Of a model that is asked for, such as cuda:1.")
    ] = None,
    query: Annotated[
        Path | None,
        typer.Option(help="A file of `cache query fit`: a question typed in has a map."),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="The query's sentence encoder; default: the packaged.")
    ] = None,
    weights: WeightsOption = None,
    tokenizer: TokenizerOption = None,
    answers: Annotated[
        bool, typer.Option("--answers", help="Load the run's model: it answers what is typed in.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 0,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page too.")] = False,
) -> None:
    """Look into a run in the browser: items, answers, attention, similarity of patches.

    The page is served to this machine alone (127.0.0.1), for as long as the command runs. It loads
    no model before a button of the page asks for it, or --answers does, and nothing from a network.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before a model library is imported
    from pipelines.explore.opening import open_explorer
    from shared.imaging.grid import Grid

    explorer = open_explorer(
        run,
        evaluation or run / FOLDER,
        store=store,
        teacher=teacher,
        grid=None if grid is None else Grid.parse(grid),
        regions=regions,
        image_root=image_root,
        device=device,
        query=query,
        encoder=encoder,
        answers=answers,
        weights=weights,
        tokenizer=tokenizer,
    )
    with closing(explorer), _listening(explorer, port) as server:
        say(f"open {server.address}")
        note(
            "images and answers may be patients': only this machine is served. From another one: "
            f"ssh -L {server.port}:127.0.0.1:{server.port} HOST. Ctrl-C ends it"
        )
        if browser:
            import webbrowser

            webbrowser.open(server.address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            note("stopped")


def _listening(explorer: "Explorer", port: int) -> "Server":
    from pipelines.explore.server import Server

    try:
        return Server(explorer, port)
    except OSError as error:
        raise UserError(
            f"cannot listen at port {port}: {error.strerror}; choose another --port, or 0"
        ) from None
