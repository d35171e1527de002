"""The one exception a user is meant to read."""


class HnsegError(Exception):
    """A mistake in the input, told in one line.

    The message names the file or key, the value that clashed and the remedy. Entry points print
    it without a traceback and exit with status 2; any other exception is a defect of hnseg.
    """
