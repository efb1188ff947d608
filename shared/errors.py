"""Errors that speak to the user.

Apart from the console, so that reading a target loads no command line.
"""


class UserError(Exception):
    """Something the user can mend; its one line names the way out.

    A command prints it and exits with 1.
    """
