"""Answer questions for others: over HTTP, on Ray Serve, and to assistants."""

import logging
import sys
from contextlib import suppress

import click

from wiki_assets.cli.common import speak, with_settings
from wiki_assets.settings import Settings


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0 for every one.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 = any free one.")
@click.option("--ray", "on_ray", is_flag=True, help="On Ray Serve, with replicas that come and go with the load.")
@click.option("--min-replicas", type=click.IntRange(1), default=1, show_default=True, help="With --ray.")
@click.option("--max-replicas", type=click.IntRange(1), default=4, show_default=True, help="With --ray.")
@with_settings
def serve(host: str, port: int, on_ray: bool, min_replicas: int, max_replicas: int, settings: Settings) -> None:
    """Answer over HTTP what is published: a page to search on, an API with OpenAPI, tools for assistants.

    \b
    wiki-assets serve
    wiki-assets serve --host 0.0.0.0 --port 80
    """
    speak()
    if on_ray:
        from wiki_assets.serving.ray_app import Scale, run_on_ray

        run_on_ray(settings, host=host, port=port, scale=Scale(min_replicas=min_replicas, max_replicas=max_replicas))
        return
    from wiki_assets.serving.app import create_app
    from wiki_assets.serving.process import opener, service_limits
    from wiki_assets.serving.server import listen, make_server

    limits = service_limits(settings)
    with listen(host, port) as sock:
        name, bound = sock.getsockname()[:2]
        app = create_app(
            opener(settings),
            limits,
            trusted_proxies=settings.trusted_proxies,
            local=name in ("127.0.0.1", "::1"),
        )
        logging.getLogger(__name__).info("http://%s:%d  (Ctrl-C ends it)", f"[{name}]" if ":" in name else name, bound)
        with suppress(KeyboardInterrupt):
            make_server(app, limits).run(sockets=[sock])


@click.command()
@with_settings
def mcp(settings: Settings) -> None:
    """Answer an assistant over standard input and output (Model Context Protocol).

    \b
    claude mcp add wikipedia -- wiki-assets mcp
    """
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    from wiki_assets.serving.mcp import make_server
    from wiki_assets.serving.process import opener, service_limits
    from wiki_assets.serving.service import Service

    make_server(Service(opener(settings), service_limits(settings)), own_life=True).run("stdio")
