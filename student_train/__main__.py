"""`python -m student_train`: the command `student`, for launchers that start modules."""

from student_train.cli import main

main()
