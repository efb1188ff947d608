"""`cache text`: embeddings of prompts by a teacher's text tower."""

from pathlib import Path
from typing import Annotated

import typer

from shared.console import JsonOption, report
from teacher_cache.options import (
    InterpolationOption,
    MeanOption,
    QuickGeluOption,
    StdOption,
    StoreOption,
    TeacherOption,
    TokenizerOption,
    WeightsOption,
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("text")(text_command)


def text_command(
    teacher: TeacherOption,
    store: StoreOption,
    data: Annotated[
        Path | None, typer.Option("--data", help="Data set file, whose questions are embedded.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="A prompt more; may be given often.")
    ] = None,
    weights: WeightsOption = None,
    tokenizer: TokenizerOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    interpolation: InterpolationOption = None,
    quick_gelu: QuickGeluOption = None,
    json: JsonOption = False,
) -> None:
    """Embed questions by the teacher's own text tower, each once.

    They lie in the store under the sha256 of their normal form: lower case, single blanks. What is
    there already stays.
    """
    from teacher_cache.teachers.trained import stated
    from teacher_cache.texts.prompts import prompts_of, write_texts
    from teacher_cache.texts.towers import load_text_tower

    prompts = prompts_of(data, prompt or ())
    trained = stated(mean, std, interpolation, quick_gelu)
    tower = load_text_tower(teacher, weights, tokenizer, trained)
    made = write_texts(tower, prompts, store)
    line = f"{made.namespace} in {store}: {made.prompts} prompts, {made.new} of them new"
    report(made._asdict(), json, [line])
