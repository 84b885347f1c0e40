"""The errors that Kasparro raises on purpose, told apart by what a caller can do, and how any is told."""


class KasparroError(Exception):
    """Base of every error Kasparro raises on purpose; its text is one line a person can act on."""


class SettingsError(KasparroError):
    """A setting has a value that is not allowed; the text names the variable and what is."""


class DatabaseUnavailable(KasparroError):
    """PostgreSQL cannot be reached now; trying again later may work."""


class DatabaseBusy(DatabaseUnavailable):
    """PostgreSQL is at work for others, and enough wait for it already; trying again soon may work."""


class StatementTimeout(KasparroError):
    """PostgreSQL ended a statement at its time limit; trying again would end the same way."""


class MigrationError(KasparroError):
    """The database's schema and the migrations of this program disagree; a person has to look."""


class RunInProgress(KasparroError):
    """Another run is at work on this database; only one may be."""


class LeaseLost(KasparroError):
    """This run is no longer the one that may write: another process marked it interrupted."""


class SourceError(KasparroError):
    """A source, one of its pages or one of its files could not be read; the text says why."""


class NothingToDo(KasparroError):
    """A source has nothing to do in this run; the text says why."""


class AlreadyLogged(Exception):
    """Raised into a library to end its work on something, after the reason was logged; not logged again."""


def one_line(error: BaseException) -> str:
    """What an error says, in one line of bounded length; its kind, where it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}…"
