"""What went wrong, in words for whoever typed the command."""


class Failure(Exception):
    """Its text says what was done, to what, the likely cause, and what to do."""
