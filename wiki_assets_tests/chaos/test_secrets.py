"""Q3: what is planted in settings, in the environment, in questions and in headers is found nowhere afterwards."""

import bz2
import gzip
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from wiki_assets.cli import main
from wiki_assets.defs.raw import fetch_snapshot
from wiki_assets.errors import BadRequest, SourceUnavailable, WikiAssetsError
from wiki_assets.keys import Snapshot
from wiki_assets.resources import connections
from wiki_assets.resources.chroma import open_store
from wiki_assets.resources.compute import check_answers
from wiki_assets.resources.mirror import DumpMirror
from wiki_assets.resources.session import check_root
from wiki_assets.resources.store import Store
from wiki_assets.settings import Settings, shown
from wiki_assets_tests.chaos.kept import dagster_home, free_of_settings
from wiki_assets_tests.processes import WIKI_ASSETS, running
from wiki_assets_tests.resources.faulty_server import Fault, FaultyServer
from wiki_assets_tests.resources.test_mirror import new
from wiki_assets_tests.serving.service import serving as service_on
from wiki_assets_tests.tinywiki.serve import serving

PLANTED = "planted5ecret"  # each secret begins with this, and goes on with where it was planted
IN_ENVIRONMENT = {
    name: f"{PLANTED}-{name.lower().replace('_', '-')}"
    for name in (
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "DAGSTER_PG_PASSWORD",
        "OPENAI_API_KEY",
        "CHROMA_API_KEY",
    )
}
RAY_TOKEN = f"{PLANTED}-0123456789abcdef0123456789abcdef"  # Ray wants it long
URLS = {
    "WIKI_ASSETS_MIRROR": (
        "https://somebody:{}@dumps.wikimedia.org",
        "https://{}@dumps.wikimedia.org",
        "https://dumps.wikimedia.org/?token={}",
        "https://somebody:{}/x@dumps.wikimedia.org",
        "https://somebody:{}@[no address",
        "ftp://somebody:{}@dumps.wikimedia.org",
    ),
    "WIKI_ASSETS_CHROMA": (
        "http://somebody:{}@localhost:8000",
        "localhost:8000?token={}",
        "somebody:{}@localhost",
        "http://localhost:8000/?token={}",
    ),
    "WIKI_ASSETS_RAY": ("ray://somebody:{}@head:10001", "rayjob/somebody:{}@wiki"),
    "WIKI_ASSETS_ROOT": ("s3://somebody:{}@bucket/prefix",),
}
BAD = [(variable, url.format(f"{PLANTED}-url")) for variable, urls in URLS.items() for url in urls]
COMMANDS = (
    ("materialize", "tinywiki"),
    ("watch", "tinywiki", "--once"),
    ("query", "x"),
    ("status",),
    ("verify",),
    ("serve", "--port", "0"),
    ("ui",),
)


def leaks(folder: Path) -> list[str]:
    """Files under a folder that hold something planted, as it is or compressed; their names count too."""
    found = []
    for path in sorted(folder.rglob("*")):
        if PLANTED in path.name:
            found.append(f"{path}: its name")
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            for unpack in (bytes, bz2.decompress, gzip.decompress, zlib.decompress):
                with suppress(OSError, EOFError, zlib.error):
                    where = unpack(data).find(PLANTED.encode())
                    if where >= 0:
                        found.append(f"{path}: {unpack(data)[max(0, where - 80) : where + 60]!r}")
                        break
    return found


def test_a_leak_would_be_found(tmp_path: Path) -> None:
    for name, pack in (("plain", bytes), ("bz2", bz2.compress), ("gz", gzip.compress), ("blob", zlib.compress)):
        (tmp_path / name).write_bytes(pack(b"so " + PLANTED.encode()))
    (tmp_path / f"{PLANTED}.txt").touch()
    assert len(leaks(tmp_path)) == 5


@pytest.mark.chaos("Q3")
@pytest.mark.parametrize(("variable", "url"), BAD)
def test_a_secret_in_a_setting_is_refused_and_not_repeated(
    variable: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WIKI_ASSETS_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv(variable, url)
    for command in COMMANDS:
        result = CliRunner().invoke(main, list(command))
        assert result.exit_code == 2, result.output
        assert PLANTED not in result.output + str(result.exception)
        assert variable in result.output
        assert len(result.output.strip().splitlines()) == 1
    assert leaks(tmp_path) == []
    record_property("settings x commands", len(COMMANDS))
    record_property("leaks", 0)


DOORS: dict[str, tuple[str, Callable[[str], object]]] = {
    "mirror": ("WIKI_ASSETS_MIRROR", check_root),
    "resource": ("WIKI_ASSETS_MIRROR", lambda url: DumpMirror(base_url=url).snapshots("tinywiki")),
    "chroma": ("WIKI_ASSETS_CHROMA", lambda url: open_store(Path("x"), url).__enter__()),
    "ray": ("WIKI_ASSETS_RAY", check_answers),
}


@pytest.mark.chaos("Q3")
@pytest.mark.parametrize("door", DOORS)
def test_a_secret_that_comes_by_another_way_is_not_repeated(door: str) -> None:
    """As in the configuration of a resource in the UI, which is read past the settings."""
    variable, act = DOORS[door]
    for url in URLS[variable]:
        with pytest.raises((WikiAssetsError, ValueError)) as error:
            act(url.format(f"{PLANTED}-url"))
        assert isinstance(error.value, WikiAssetsError) or "wiki_assets" in str(error.value)
        assert PLANTED not in str(error.value)


@pytest.mark.chaos("Q3")
def test_a_proxys_password_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", f"socks9://somebody:{PLANTED}@proxy:1")
    with pytest.raises(BadRequest, match="HTTPS_PROXY") as error:
        connections.Transport("dumps.wikimedia.org", max_connections=1, stall_s=1)
    assert PLANTED not in str(error.value)


@pytest.mark.chaos("Q3")
def test_where_a_redirect_leads_is_told_without_its_signature(tmp_path: Path) -> None:
    snapshot = Snapshot("xwiki", "20260823")
    with FaultyServer(new(snapshot.date, snapshot.wiki)) as server:
        for path in server.files:
            if path.endswith(".bz2"):
                signed = {"Location": f"https://elsewhere.example/{PLANTED[:3]}?X-Amz-Signature={PLANTED}"}
                server.faults[path] = [Fault(status=302, headers=signed)] * 20
        mirror = DumpMirror(base_url=server.url, backoff_s=0, max_attempts=2)
        with pytest.raises(SourceUnavailable, match="leads to https://elsewhere.example") as error:
            fetch_snapshot(snapshot, mirror, Store(str(tmp_path / "root")), lambda line: None)
    assert PLANTED not in str(error.value)
    assert leaks(tmp_path) == []


def test_what_is_no_secret_is_shown() -> None:
    for url in ("https://dumps.wikimedia.org/other", "ray://head:10001", "10.0.0.1:6379", "rayjob/a/b", ""):
        assert shown(url) == url
        Settings.from_env({"WIKI_ASSETS_RAY": url})
    assert shown("https://a:b@host/x?y=z") == "https://…@host/x?…"
    Settings.from_env({"WIKI_ASSETS_ROOT": "abfs://container@account.dfs.core.windows.net/prefix"})


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Ray's sockets lie there, and their names may not be long."""
    folder = Path(tempfile.mkdtemp(prefix="q3-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.ray
@pytest.mark.chaos("Q3")
def test_a_run_writes_no_secret_of_its_environment(tmp_path: Path, short_folder: Path, record_property) -> None:
    """Data, manifests, Dagster's database and Ray's logs of a command whose runs end well, and its last one fails."""
    planted = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": RAY_TOKEN, "RAY_TMPDIR": str(short_folder)}
    env = {**free_of_settings(), **IN_ENVIRONMENT, **planted, **dagster_home(tmp_path / "root")}
    command = [*WIKI_ASSETS, "materialize", "tinywiki", "--snapshot", "20250105", "--until", "embeddings"]
    log = tmp_path / "run.log"
    with serving() as mirror:
        wrong = {"WIKI_ASSETS_MIRROR": mirror, "WIKI_ASSETS_ENGINE": "abacus"}
        with running(command, env={**env, **wrong}, log=log, cwd=tmp_path) as run:
            assert run.wait(200) == 1, log.read_text()
    assert "tokens: 21 pages" in log.read_text()
    assert "engine 'abacus'" in log.read_text()
    files = [path for folder in (tmp_path, short_folder) for path in folder.rglob("*") if path.is_file()]
    assert any("gcs_server" in path.name for path in files), "Ray's logs are looked at"
    assert any(path.suffix == ".db" for path in files), "and Dagster's database"
    assert leaks(tmp_path) + leaks(short_folder) == []
    record_property("files looked at", len(files))
    record_property("leaks", 0)


@pytest.mark.chroma
@pytest.mark.chaos("Q3")
def test_the_service_keeps_and_tells_no_secret(tinywiki: Settings, tmp_path: Path, record_property) -> None:
    """Questions are in the answer to who asked them, and nowhere else; headers and environment are nowhere."""
    question, header = f"{PLANTED}-question", f"{PLANTED}-header"
    headers = {"Authorization": f"Bearer {header}", "X-API-Key": header, "Cookie": f"session={header}"}
    env = {**IN_ENVIRONMENT, "WIKI_ASSETS_ROOT": tinywiki.root, "WIKI_ASSETS_RATE": "0"}
    with (
        service_on(env, tmp_path / "serve.log") as service,
        httpx.Client(base_url=service.url, headers=headers, timeout=60) as http,
    ):
        replies = [
            http.get("/search", params={"q": question}),
            http.get("/search", params={"q": question, "k": -1}),
            http.get("/search", params={"q": question, "wiki": "nowiki"}),
            http.get("/search", params={"q": question, "api_key": question}),
            http.get("/", params={"q": question}),
            http.post("/search", json={"q": question, "where": {question: question}}),
            http.post("/search", content=f'{{"q": "{question}'.encode()),
            http.post("/embed", json={"texts": [question]}),
            http.get(f"/article/{question}"),
            http.get(f"/{question}"),
            http.request("BREW", "/search", params={"q": question}),
        ]
        about = [http.get(path) for path in ("/healthz", "/readyz", "/metrics", "/wikis", "/openapi.json")]
    assert {reply.status_code for reply in replies} >= {200, 404, 422}
    for reply in (*replies, *about):
        said = reply.text + str(reply.headers)
        assert header not in said
        assert not any(secret in said for secret in IN_ENVIRONMENT.values())
    assert not any(PLANTED in reply.text + str(reply.headers) for reply in about)
    assert leaks(tmp_path) == []
    assert leaks(Path(tinywiki.root)) == []
    record_property("replies", len(replies) + len(about))
    record_property("leaks", 0)


# Negative control


@pytest.mark.chaos("mutants")
def test_a_message_that_repeats_a_url_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    from wiki_assets.resources import session

    monkeypatch.setattr(session, "shown", lambda url: url)
    with pytest.raises(AssertionError):
        test_a_secret_that_comes_by_another_way_is_not_repeated("mirror")
