"""`python -m student_train`: the command `student`, for launchers that start modules.

Python puts the working directory first on the path, where a folder `shared/` of the user would be
taken for this project's: it leaves the path, unless the project itself lies there.
"""

import sys
from pathlib import Path

project = Path(__file__).resolve().parents[1]
if sys.path and Path(sys.path[0] or ".").resolve() == Path.cwd() != project:
    del sys.path[0]

from student_train.cli import main  # noqa: E402 - the path comes first

main()
