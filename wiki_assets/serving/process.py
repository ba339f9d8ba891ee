"""What a serving process opens, with this deployment's settings."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from wiki_assets.serving.limits import Limits
from wiki_assets.settings import Settings

if TYPE_CHECKING:
    from wiki_assets.search import Searcher


def service_limits(settings: Settings) -> Limits:
    """The bounds, as the settings have them."""
    return replace(Limits(), rate=settings.rate)


def opener(settings: Settings) -> "Callable[[], Searcher]":
    """What opens the index. Its imports take seconds, which a service that has begun to listen can spare."""

    def open_searcher() -> "Searcher":
        from wiki_assets.search import Searcher

        return Searcher(settings)

    return open_searcher
