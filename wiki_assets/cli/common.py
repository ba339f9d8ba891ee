"""What every command has in common: settings, one-line errors, exit codes, progress on standard error."""

import logging
import os
import sys
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from wiki_assets.errors import BadRequest, WikiAssetsError
from wiki_assets.settings import Settings

DONE, FAILED, USAGE = 0, 1, 2


def with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the deployment's settings, a flag for the usual ones, and one-line errors."""

    @click.option("--root", help="Data root; WIKI_ASSETS_ROOT.")
    @click.option("--mirror", help="Root of the dump server; WIKI_ASSETS_MIRROR.")
    @click.option("--chroma", help="URL of a Chroma server; WIKI_ASSETS_CHROMA.")
    @click.option("--model", help="Embedding model; WIKI_ASSETS_MODEL.")
    @click.option("--shards", type=int, help="Shards of a wiki that has no data yet; WIKI_ASSETS_SHARDS.")
    @wraps(command)
    def run(
        root: str | None, mirror: str | None, chroma: str | None, model: str | None, shards: int | None, **kwargs: Any
    ) -> None:
        try:
            settings = Settings.from_env(root=root, mirror=mirror, chroma=chroma, model=model, shards=shards)
            command(settings=settings, **kwargs)
        except BadRequest as error:
            fail(str(error), USAGE)
        except WikiAssetsError as error:
            fail(str(error), FAILED)
        except BrokenPipeError:
            os._exit(FAILED)
        except Exception as error:
            if message := of_a_store(error):
                fail(message, FAILED)
            raise

    return run


def of_a_store(error: Exception) -> str:
    """What the client of an object store says, where it is not one of our errors already; else nothing."""
    if type(error).__module__.partition(".")[0] not in ("adlfs", "aiohttp", "azure", "botocore", "gcsfs", "google"):
        return ""
    said = " ".join(str(error).split()) or type(error).__name__
    return f"the object store failed: {said}: check WIKI_ASSETS_ROOT, credentials and network, then run again"


def fail(message: str, code: int) -> None:
    click.echo(f"wiki-assets: {message}", err=True)
    sys.exit(code)


def speak() -> None:
    """Progress goes to standard error, a line a shard, with the seconds since the start."""
    began = time.monotonic()

    class Elapsed(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            mark = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
            return f"{time.monotonic() - began:7.1f} s  {mark}{record.getMessage()}"

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Elapsed())
    ours = logging.getLogger("wiki_assets")
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False
