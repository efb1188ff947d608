"""The journal survives a kill at any byte and never mixes up two settings."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from pipelines.evaluation.answers import wait_for_all
from pipelines.evaluation.journal import Journal, answer_key
from pipelines.evaluation.loading import weights_digest
from pipelines.evaluation.result import Answer
from shared.errors import UserError

pytestmark = pytest.mark.unit


def said(text: str) -> Answer:
    """Return an answer; nothing here depends on its other fields."""
    return cast("Answer", {"text": text})


def test_answers_come_back_after_reopening(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append([("a", said("yes")), ("b", said("left\nlung é"))])
        assert "a" in journal
    with Journal(tmp_path) as journal:
        assert journal["b"] == said("left\nlung é")
        assert len(journal) == 2


def test_every_cut_of_the_file_keeps_the_whole_lines(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append([("a", said("é")), ("b", said("no"))])
    content = (tmp_path / "answers-0.jsonl").read_bytes()
    first_line = content.index(b"\n") + 1
    for cut in range(len(content)):
        (tmp_path / "answers-0.jsonl").write_bytes(content[:cut])
        with Journal(tmp_path) as journal:
            assert len(journal) == (cut >= first_line)
            journal.append([("c", said("appended"))])
        with Journal(tmp_path) as journal:
            assert journal["c"] == said("appended")


def test_ranks_share_what_they_wrote(tmp_path: Path) -> None:
    with Journal(tmp_path, 0) as first, Journal(tmp_path, 1) as second:
        first.append([("a", said("0"))])
        second.append([("b", said("1"))])
        first.refresh()
        assert first["b"] == said("1")
    with Journal(tmp_path, 2) as journal:
        assert len(journal) == 2


def test_two_writers_of_one_file_are_refused(tmp_path: Path) -> None:
    with Journal(tmp_path), pytest.raises(UserError, match="another evaluation"):
        Journal(tmp_path)


def test_a_broken_line_before_the_last_is_named(tmp_path: Path) -> None:
    (tmp_path / "answers-0.jsonl").write_text('{"key": "a"}\n{"key": \n{"key": "c"}\n')
    with pytest.raises(UserError, match="line 2"):
        Journal(tmp_path)


def test_the_key_depends_on_everything() -> None:
    base: dict[str, Any] = {
        "model": "m",
        "adapter": "a",
        "decoding": {"method": "vcd", "alpha": 1.0},
        "item": "1",
        "prompt": "?",
        "code": {"decoding": 1, "medalign": "0.1", "geometry": "pad", "dtype": "float32"},
    }
    keys = {answer_key(**base)}
    changes: tuple[dict[str, Any], ...] = (
        {"model": "n"},
        {"adapter": ""},
        {"decoding": {"method": "vcd", "alpha": 0.5}},
        {"item": "2"},
        {"prompt": "!"},
        {"code": base["code"] | {"decoding": 2}},
        {"code": base["code"] | {"geometry": "crop"}},
    )
    for change in changes:
        keys.add(answer_key(**(base | change)))
    assert len(keys) == 8
    assert answer_key(**(base | {"decoding": {"alpha": 1.0, "method": "vcd"}})) == answer_key(
        **base
    )


@pytest.mark.integration
def test_answers_appended_before_a_kill_are_on_disk(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from pipelines.evaluation.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for number in range(10**6):\n"
        "    journal.append([(str(number), {'text': 'x' * 50})]); print(number, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    seen = [int(process.stdout.readline()) for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with Journal(tmp_path) as journal:
        assert len(journal) >= len(seen)
        assert all(str(number) in journal for number in seen)
    lines = (tmp_path / "answers-0.jsonl").read_text().splitlines()
    assert all(json.loads(line)["text"] == "x" * 50 for line in lines)


def test_waiting_for_other_ranks_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Journal(tmp_path, 0) as first, Journal(tmp_path, 1) as second:
        first.append([("a", said("0"))])
        later = threading.Timer(0.3, second.append, [[("b", said("1"))]])
        later.start()
        wait_for_all(["a", "b"], first, poll_seconds=0.02)
        later.join()
        assert first["b"] == said("1")
    assert capsys.readouterr().err == "warning: waiting for 1 answers of the other ranks\n"


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_other_weights_are_another_model_whatever_their_type(dtype: torch.dtype) -> None:
    """The least change of one number, two that change places, another type or name."""
    values = torch.arange(1, 7, dtype=dtype)
    nudged, swapped = values.clone(), values.clone()
    nudged.view(torch.uint8)[-values.element_size()] ^= 1  # the last number's lowest bit
    swapped[0], swapped[1] = values[1], values[0]
    others = [nudged, swapped, values.view(2, 3), values.to(torch.int64)]
    digests = [digest_of(weights=one) for one in (values, *others)]
    digests += [digest_of(bias=values), digest_of(weights=values, more=values)]
    assert len(set(digests)) == 7
    assert digest_of(weights=values.clone()) == digests[0]


def digest_of(**tensors: torch.Tensor) -> str:
    module: Any = torch.nn.Module()
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor)
    return weights_digest(module)
