"""The errors that Kasparro raises on purpose: one class for each thing that a caller can do about them."""


class KasparroError(Exception):
    """Base of every error that Kasparro raises on purpose. Its text is one line that a person can act on."""


class SettingsError(KasparroError):
    """A setting has a value that is not allowed. The text names the variable and the allowed values."""


class DatabaseUnavailable(KasparroError):
    """PostgreSQL cannot be reached now. A retry later may succeed."""


class DatabaseBusy(DatabaseUnavailable):
    """All connections are in use, and enough queries wait for one already. A retry soon may succeed."""


class ConnectionLost(DatabaseUnavailable):
    """A connection to PostgreSQL was lost while it was used. A retry may succeed at once."""


class ReplicaBehind(DatabaseUnavailable):
    """No server that can be reached has the data version that a client has seen. A retry soon may succeed."""


class StatementTimeout(KasparroError):
    """PostgreSQL cancelled a statement at its `statement_timeout`. A retry would end the same way."""


class MigrationError(KasparroError):
    """The schema of the database does not match the migrations of this program. A person has to decide."""


class WrongDatabase(KasparroError):
    """Real and simulated data would mix."""


class RunInProgress(KasparroError):
    """Another run is in progress on this database. Only one run at a time is allowed."""


class LeaseLost(KasparroError):
    """This run may no longer write, because another process has marked it `interrupted`."""


class SourceError(KasparroError):
    """A source, a page or a file could not be read. The text says why."""


class NothingToDo(KasparroError):
    """A source has nothing to do in this run. The text says why."""


class AlreadyLogged(Exception):
    """Makes a library stop its work, after the reason was logged. It is not logged again."""


def one_line(error: BaseException) -> str:
    """The text of an error in one line of at most 200 characters; its type, if it has no text."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}…"
