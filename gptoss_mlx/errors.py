"""The exceptions that a user is meant to read: one line, what is wrong and what to do."""


class GptOssError(Exception):
    """Bad input or an unusable environment; the message is for the user and fits on one line."""
