"""What can go wrong, named by who acts next.

Every message says what was found, what was expected and the next move, in one line.
"""


class WikiAssetsError(Exception):
    """Any failure that we foresee. Its message is meant for the person at the terminal."""


class BadRequest(WikiAssetsError):
    """The person asked for something that cannot be: a name, a number or a setting is wrong."""


class SourceUnavailable(WikiAssetsError):
    """The dump server has no such snapshot, refuses us, or stayed busy for longer than we wait."""


class TransientSource(SourceUnavailable):
    """The dump server failed in a way that may pass: a dropped connection, a 5xx, a 429."""


class CorruptDump(WikiAssetsError):
    """The bytes of a dump file are not what was published: cut, changed or damaged. Refetch it."""


class SchemaMismatch(WikiAssetsError):
    """Data made with other settings (shards, model, encoding) than those in force now."""


class LedgerBroken(WikiAssetsError):
    """Documents, passages or vectors went missing or came from nowhere: the counts do not add up."""


class DamagedArtifact(WikiAssetsError):
    """A file of ours is missing, or is not the one its manifest describes. Materialize it again."""


class NoSpace(WikiAssetsError):
    """The disk is full, or would be. Free some space, then run again: nothing was replaced."""


class StoreRefused(WikiAssetsError):
    """The object store has no such bucket, does not let us in, or cannot do what we need of it."""


class StoreAway(WikiAssetsError):
    """The object store does not answer, or has too much to do. Run again later: what was finished is kept."""


class StoreLocked(WikiAssetsError):
    """Another process is writing what we were about to write."""


class Superseded(StoreLocked):
    """Another run claimed this, or published it, after this run began: ours is dropped, theirs stands."""


class NotPublished(WikiAssetsError):
    """There is no published index to ask yet."""


class ComputeLost(WikiAssetsError):
    """Ray is gone: its head, or this machine's part of it. What was finished is kept; run again."""


class Overdue(WikiAssetsError):
    """A task, or a question to Ray, took longer than it may, and was ended or left behind."""


class NotPoison(WikiAssetsError):
    """Rows fail, or workers die over them, and it is not a few bad rows: look at the machine or the code."""
