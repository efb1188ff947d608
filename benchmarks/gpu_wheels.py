"""Carry what the GPU tests need to a bare machine without a network; the standard library alone.

    python -m benchmarks.gpu_wheels fetch wheels --python 3.12     # where there is a network
    python -m benchmarks.gpu_wheels install wheels                 # on the bare machine

`fetch` downloads the wheels of requirements-gpu.txt at the versions of constraints.txt for another
machine's Python on x86-64 Linux, and refuses a folder above `LIMIT`. `install` takes them without
an index and without their needs: torch, torchvision and transformers are there already.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 64 << 20  # bytes that are carried
GLIBC = (17, 24, 26, 27, 28, 31, 34)
NO_WHEEL = ("deepspeed",)  # published as source alone; its wheel is pure Python


def normal(name: str) -> str:
    """Return a package's name as an index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> dict[str, str]:
    """Return `name==version` of every package that is carried."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").split("\n")
    pins = {normal(line.partition("==")[0]): line.strip() for line in lines if "==" in line}
    wanted = (ROOT / "requirements-gpu.txt").read_text("utf-8").split("\n")
    names = [normal(line) for line in wanted if line and not line.startswith("#")]
    missing = [name for name in names if name not in pins]
    if missing:
        raise SystemExit(f"constraints.txt pins no {', '.join(missing)}; pin them there")
    return {name: pins[name] for name in names}


def fetch(folder: Path, python: str) -> int:
    """Download the wheels into a folder; return their bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    pins = pinned()
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in GLIBC]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    command = [*pip, "download", "--no-deps", "--only-binary=:all:", "--python-version", python]
    command += ["--implementation", "cp", "--dest", str(folder)]
    command += [word for one in platforms for word in ("--platform", one)]
    subprocess.run([*command, *(p for n, p in pins.items() if n not in NO_WHEEL)], check=True)
    for name in NO_WHEEL:  # built with the torch of this environment
        with tempfile.TemporaryDirectory() as scratch:
            build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", scratch]
            subprocess.run([*build, pins[name]], check=True)
            [wheel] = Path(scratch).glob("*.whl")
            if not wheel.name.endswith("-none-any.whl"):
                raise SystemExit(f"{wheel.name} is built for this machine alone")
            (folder / wheel.name).write_bytes(wheel.read_bytes())
    size = sum(wheel.stat().st_size for wheel in folder.glob("*.whl"))
    if size > LIMIT:
        raise SystemExit(f"{folder}: {size:,} bytes are more than the {LIMIT:,} to carry")
    return size


def install(folder: Path) -> None:
    """Install every wheel of a folder with this Python."""
    wheels = sorted(str(wheel) for wheel in folder.glob("*.whl"))
    if not wheels:
        raise SystemExit(f"{folder} holds no wheels; `fetch` downloads them")
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", *wheels]
    subprocess.run(command, check=True)


def main() -> None:
    """Run the subcommand that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["fetch", "install"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12")
    chosen = parser.parse_args()
    if chosen.what == "fetch":
        print(f"{fetch(chosen.folder, chosen.python):,} bytes in {chosen.folder}")
    else:
        install(chosen.folder)


if __name__ == "__main__":
    main()
