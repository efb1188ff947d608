"""`python -m teacher_cache`, which is how `torchrun` starts the command."""

from teacher_cache.cli import main

main()
