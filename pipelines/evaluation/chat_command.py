"""`medalign chat`: its flags, and the lines of the terminal."""

from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.evaluation.commands import (
    Base,
    ChosenDevice,
    Decode,
    MaxNewTokens,
    Override,
    Preset,
    Run,
    Seed,
    System,
    Weights,
)
from shared.console import note, say
from shared.errors import UserError

if TYPE_CHECKING:
    from pipelines.evaluation.chat import Conversation

HELP = "/image FILE shows an image with the next question, /new begins anew, /quit or Ctrl-D ends"


def chat_command(
    *,
    run: Run,
    image: Annotated[
        list[str] | None,
        typer.Option(help="Shown with the first question; again for a second image."),
    ] = None,
    system: System = "",
    decode: Decode = "greedy",
    preset: Preset = "published",
    override: Override = None,
    max_new_tokens: MaxNewTokens = 128,
    seed: Seed = 0,
    device: ChosenDevice = None,
    base: Base = None,
    dtype: Weights = "auto",
) -> None:
    """Talk to a run in the terminal: questions in turn, images shown in between.

    MEDALIGN answers where the run has both adapters. Lines come from standard input, a question
    each; answers go to standard output.
    """
    from pipelines.decoding.methods import decodings
    from pipelines.evaluation.arms import EVERYTHING, last_arm, preset_of
    from pipelines.evaluation.chat import Conversation
    from pipelines.evaluation.generate import picture_at
    from pipelines.evaluation.loading import load_student

    if decode == EVERYTHING:
        raise UserError("`chat` gives one answer to a question; name one decoding method")
    folder = last_arm(run)
    [chosen] = decodings([decode], preset_of(preset, {"": folder}), tuple(override or ()))
    for one in image or ():
        picture_at(one)  # before the model is loaded
    student = load_student(folder, device, base, dtype)
    conversation = Conversation(student, chosen, max_new_tokens, seed, system)
    for one in image or ():
        conversation.show(one)
    note(f"{folder}. Not for clinical use. {HELP}")
    while (line := _line()) is not None:
        try:
            if not _answered(conversation, line.strip()):
                return
        except UserError as error:
            note(f"error: {error}")


def _answered(conversation: "Conversation", line: str) -> bool:
    """Do what a line says; False where it ends the conversation."""
    command, _, rest = line.partition(" ")
    if command == "/quit":
        return False
    if command == "/image":
        conversation.show(rest.strip())
        note("shown with the next question")
    elif command == "/new":
        conversation.forget()
        note("begun anew")
    elif command.startswith("/"):
        note(HELP)
    elif line:
        say(conversation.ask(line) or "(nothing)")
    return True


def _line() -> str | None:
    """Read a line from the terminal or a file; None at its end or at Ctrl-C."""
    import sys

    try:
        if not sys.stdin.isatty():
            return sys.stdin.readline() or None
        import readline  # noqa: F401 - arrow keys in `input`

        return input("> ")
    except (EOFError, KeyboardInterrupt):
        note("")
        return None
