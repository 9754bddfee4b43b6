"""Errors that a user can act on."""


class UserError(Exception):
    """A problem with the input, not with the program; the message says what was wrong and the way out.

    The command line prints the message without a traceback (unless ``--debug``) and exits with 1.
    """
