"""The errors that a program may act on: what the user can mend, and a computation that left the finite numbers."""


class UserError(ValueError):
    """Reports a mistake that the user can mend: `what` it concerns, what we `got`, what is `allowed`.

    Every command ends with exit code 2 and this sentence; the service answers with it. It survives pickling.
    """

    def __init__(self, what: str, got: object, allowed: object) -> None:
        super().__init__(what, got, allowed)
        self.what, self.got, self.allowed = what, got, allowed

    def __str__(self) -> str:
        return f"{self.what}: got {self.got}, allowed: {self.allowed}"


class NotFinite(FloatingPointError):
    """Reports a loss or a weight that is NaN or infinite. Starting again would only repeat it."""
