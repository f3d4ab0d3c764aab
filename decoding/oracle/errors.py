"""What the user of the oracle should do differently."""


class OracleError(ValueError):
    """A mistake in what the oracle was given; the message names the thing, what was expected, what came, what to do."""
