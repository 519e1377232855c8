"""Errors caused by what a user gave; their messages are for people."""


class UserError(Exception):
    """Something a user can put right: the message names the file, what is wrong and what to do, in one line.

    Command-line entry points print the message without a traceback and exit with code 2.
    """


class NotAnalysableError(UserError):
    """Images that can be read but must not be counted on: the message says why, in one line.

    Command-line entry points exit with code 3, and results say `status: not analysable`.
    """
