"""Errors that are meant for people."""


class UserError(Exception):
    """Something a user can put right: the message names the file, what is wrong and what to do, in one line.

    Command-line entry points print the message without a traceback and exit with code 2.
    """
