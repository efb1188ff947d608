"""`medalign serve`: its flags."""

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from pipelines.evaluation.commands import (
    Base,
    ChosenDevice,
    Decode,
    MaxNewTokens,
    Override,
    Preset,
    Run,
    Weights,
)
from shared.console import note, say
from shared.errors import UserError


def serve_command(
    *,
    run: Run,
    host: Annotated[
        str, typer.Option(help="Where it listens; another than loopback needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="A file with the token that clients must bring.")
    ] = None,
    decode: Decode = "greedy",
    preset: Preset = "published",
    override: Override = None,
    max_new_tokens: MaxNewTokens = 512,
    batch: Annotated[int, typer.Option(min=1, help="Requests answered together at most.")] = 8,
    queue: Annotated[int, typer.Option(min=1, help="Requests that wait at most.")] = 64,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a request.")] = 64_000_000,
    max_pixels: Annotated[int, typer.Option(min=1, help="Pixels of an image.")] = 50_000_000,
    device: ChosenDevice = None,
    base: Base = None,
    dtype: Weights = "auto",
) -> None:
    """Serve a run under the OpenAI chat endpoint, W respected.

    POST /v1/chat/completions, GET /v1/models and /health. MEDALIGN answers where the run has both
    adapters. Nothing is fetched from a network. Ctrl-C finishes the answers in flight.
    """
    from pipelines.decoding.methods import decodings
    from pipelines.evaluation.arms import EVERYTHING, last_arm, preset_of
    from pipelines.evaluation.loading import load_student
    from pipelines.serve.batches import Batches
    from pipelines.serve.server import LOOPBACK, Bounds, Server

    token = _token(token_file)
    if token is None and host not in LOOPBACK:
        raise UserError(f"--host {host} is open to others; give --token-file, or leave it out")
    if decode == EVERYTHING:
        raise UserError("`serve` gives one answer to a request; name one decoding method")
    folder = last_arm(run)
    [chosen] = decodings([decode], preset_of(preset, {"": folder}), tuple(override or ()))
    student = load_student(folder, device, base, dtype, named=False)
    batches = Batches(student, batch, queue, chosen)
    bounds = Bounds(max_body, max_pixels, max_new_tokens, batch, queue)
    try:
        server = Server(batches, run.resolve().name, bounds, host, port, token)
    except OSError as error:
        batches.close()
        raise UserError(
            f"cannot listen at {host}:{port}: {error.strerror}; choose another --port, or 0"
        ) from None

    def stop(*_: object) -> None:
        threading.Thread(target=server.shutdown).start()  # not from the thread that serves

    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, stop)
    say(f"model {server.model} at http://{host}:{server.port}/v1")
    note(f"{folder}. Not for clinical use. Images and questions may be patients': none is kept")
    server.serve_forever(poll_interval=0.1)
    note("finishing the answers in flight")
    server.server_close()


def _token(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        token = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError) as error:
        raise UserError(f"--token-file {file} cannot be read: {error}") from None
    if not token:
        raise UserError(f"--token-file {file} is empty; write a token into it")
    return token
