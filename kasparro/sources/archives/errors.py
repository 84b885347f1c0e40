"""The error that rejects a whole archive."""


class FileRejected(Exception):
    """A file is not loaded. The text completes "FILE: ".

    `setting` is the line of the file's overrides that would settle what the file leaves open, if any.
    """

    def __init__(self, text: str, setting: str | None = None) -> None:
        super().__init__(text)
        self.setting = setting
