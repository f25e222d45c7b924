"""The one exception that means: the user can mend this."""


class UserError(ValueError):
    """A user's mistake, told in one sentence: the value, what is allowed, what to do.

    The command line prints the sentence without a traceback and exits with 2.
    """
