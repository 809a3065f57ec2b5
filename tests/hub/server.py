"""A hub on the loopback interface that the real huggingface_hub client, hf_xet and the hf command can work against.

It knows models, commits with git's own ids, LFS (basic and multipart), xet, tags, pull requests, users with tokens,
private and gated repositories: what pushing and pulling a bundle needs. Every request is in `hub.requests`; rules in
`hub.faults` spoil answers.

    with TestHub() as hub:
        token = hub.add_user("alice")
        HfApi(endpoint=hub.url, token=token).create_repo("alice/model")
"""

from __future__ import annotations

import hmac
import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import unquote

from tests.hub.repository import GITATTRIBUTES, Blob, Commit, Repository
from tests.hub.routes import ROUTES
from tests.hub.storage import Storage
from tests.hub.wire import Answer, Fault, LoopbackServer, RefusedError, Request, RequestLog

MIB = 1024 * 1024


class TestHub:
    """The hub: users, repositories and the servers in front of them.

    Args:
        root: where contents are kept; a temporary folder if None.
        cdn: send downloads and uploads of LFS files to a second server, as the public hub does.
        xet: offer xet; without it, a client that insists on xet fails.
        lfs_threshold: files of this size or more are LFS files, whatever .gitattributes says.
        multipart_chunk: LFS files larger than this are uploaded in parts of this size; None asks for no parts.
        page_size: rows in one page of a listing.
    """

    # Pytest would take it for a group of tests.
    __test__ = False

    def __init__(
        self,
        root: Path | None = None,
        cdn: bool = False,
        xet: bool = False,
        lfs_threshold: int = 10 * MIB,
        multipart_chunk: int | None = None,
        page_size: int = 1000,
    ) -> None:
        self._is_root_mine = root is None
        self.root = Path(tempfile.mkdtemp(prefix="hub-")) if root is None else root
        self.cdn = cdn
        self.xet = xet
        self.lfs_threshold = lfs_threshold
        self.multipart_chunk = multipart_chunk
        self.page_size = page_size
        self.requests = RequestLog()
        self.faults: list[Fault] = []
        self.storage = Storage(self.root)
        self.repos: dict[str, Repository] = {}
        # Tokens to (user, role); organisations to the role of each member.
        self.tokens: dict[str, tuple[str, str]] = {}
        self.orgs: dict[str, dict[str, str]] = {}
        self._secret = secrets.token_bytes(16)
        self._lock = threading.RLock()
        self._ports = {"hub": 0, "cdn": 0}
        self._servers: list[LoopbackServer] = []
        self._errors: list[str] = []

    def __enter__(self) -> TestHub:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def start(self) -> None:
        """Listen; after a stop, on the same ports and with the same state."""
        for name in ("hub", "cdn") if self.cdn else ("hub",):
            server = LoopbackServer(name, self._ports[name], self._route, self.requests, self.faults)
            self._servers.append(server)
            self._ports[name] = server.port

    def stop(self) -> None:
        """Hang up on every client and refuse new connections; `start` brings the hub back."""
        while self._servers:
            server = self._servers.pop()
            server.stop()
            self._errors += server.errors

    def close(self) -> None:
        """Stop for good and remove what was kept."""
        self.stop()
        if self._is_root_mine:
            shutil.rmtree(self.root)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._ports['hub']}"

    @property
    def errors(self) -> list[str]:
        """Tracebacks of the hub's own mistakes; a test in which this is not empty says nothing."""
        return self._errors + [error for server in self._servers for error in server.errors]

    def _route(self, request: Request) -> Answer:
        method = "GET" if request.method == "HEAD" else request.method
        for route_method, pattern, handler in ROUTES:
            match = re.fullmatch(pattern, request.path)
            if match and method == route_method:
                # Unquoted only now: an encoded slash does not separate parts.
                parts = {name: unquote(value) for name, value in match.groupdict(default="").items()}
                with self._lock:
                    return handler(self, request, **parts)
        raise RefusedError(404, f"no route for {request.method} {request.path}")

    # What tests set up and look at.

    def add_user(self, name: str, role: str = "write", **orgs: str) -> str:
        """Create the user (or one more token) and return a token.

        Args:
            name: of the user and of the user's namespace.
            role: of the token: "write" or "read".
            **orgs: the user's role in each organisation: "admin", "write" or "read".
        """
        token = f"hf_{name}_{role}"
        self.tokens[token] = (name, role)
        for org, org_role in orgs.items():
            self.orgs.setdefault(org, {})[name] = org_role
        return token

    def add_repo(self, repo_id: str, private: bool = False) -> Repository:
        repo = self.repos[repo_id] = Repository(repo_id, private)
        repo.commit("refs/heads/main", {".gitattributes": self.keep(GITATTRIBUTES.encode())}, "initial commit")
        return repo

    def repo(self, repo_id: str) -> Repository:
        return self.repos[repo_id]

    def put_raw(
        self,
        repo_id: str,
        files: Mapping[str, bytes | None],
        *,
        revision: str = "main",
        title: str = "put by the test",
    ) -> str:
        """Commit files under any name, even one a real hub would refuse, and return the commit id.

        Args:
            repo_id: is created if missing.
            files: content by name; None removes a file.
            revision: an existing branch.
            title: of the commit.
        """
        repo = self.repos.get(repo_id) or self.add_repo(repo_id)
        ref = f"refs/heads/{revision}"
        kept = {path: blob for path, blob in repo.refs[ref].files.items() if path not in files}
        for path, data in files.items():
            if data is not None:
                is_large = self.is_large(repo.refs[ref], path, len(data), data[:512])
                kept[path] = Blob.large(self.storage.put(data), len(data)) if is_large else self.keep(data)
        return repo.commit(ref, kept, title).id

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """The content of every file, as a download would give it."""
        commit = self.repo(repo_id).find(revision)
        if commit is None:
            raise KeyError(f"{repo_id} has no revision {revision}")
        return {path: self.content(blob) for path, blob in commit.files.items()}

    # Contents, for the routes.

    def keep(self, data: bytes) -> Blob:
        """Keep the content of a regular file."""
        self.storage.put(data)
        return Blob.regular(data)

    def content(self, blob: Blob) -> bytes:
        return self.storage.get(blob.sha256, blob.size, blob.xet_hash)

    def is_large(self, commit: Commit, path: str, size: int, sample: bytes) -> bool:
        """Whether a file put on top of `commit` is an LFS file: by its name, its size or because it is binary."""
        attributes = self.content(commit.files[".gitattributes"]).decode() if ".gitattributes" in commit.files else ""
        patterns = [line.split()[0] for line in attributes.splitlines() if "filter=lfs" in line]
        is_named = any(fnmatch(name, pattern) for pattern in patterns for name in (path, path.rsplit("/", 1)[-1]))
        return is_named or size >= self.lfs_threshold or b"\0" in sample

    def sign(self, path: str) -> str:
        """A link into storage that works without a token."""
        return f"http://127.0.0.1:{self._ports['cdn' if self.cdn else 'hub']}{path}?signature={self._signature(path)}"

    def _signature(self, path: str) -> str:
        return hmac.new(self._secret, path.encode(), "sha256").hexdigest()

    def require_signature(self, request: Request) -> None:
        if not hmac.compare_digest(request.option("signature"), self._signature(request.path)):
            raise RefusedError(403, "SignatureDoesNotMatch")
        # Storage services refuse two ways of authentication at once, so a client that leaks its token fails.
        if request.token:
            raise RefusedError(400, "Only one auth mechanism allowed")

    # Who may do what.

    def user(self, request: Request) -> str:
        """The name of the user who asks, or "" without a token."""
        if request.token and request.token not in self.tokens:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return self.tokens[request.token][0] if request.token else ""

    def known_user(self, request: Request) -> str:
        if not self.user(request):
            raise RefusedError(401, "Invalid username or password.")
        return self.user(request)

    def writer(self, request: Request, namespace: str = "") -> str:
        """The name of the user who asks with a token that may write, in `namespace` if one is given."""
        user = self.known_user(request)
        if self.tokens[request.token][1] != "write":
            raise RefusedError(403, "This token has no write permission")
        if namespace and self._role(user, namespace) not in ("admin", "write"):
            raise RefusedError(403, f'You don\'t have the rights to write under the namespace "{namespace}"')
        return user

    def _role(self, user: str, namespace: str) -> str:
        return "admin" if user == namespace else self.orgs.get(namespace, {}).get(user, "")

    def can_see(self, request: Request, repo: Repository) -> bool:
        return not repo.private or self._role(self.user(request), repo.namespace) != ""

    def readable(self, request: Request, repo: str, *, files: bool = False) -> Repository:
        """The repository, if the user may see it; its files may be behind a gate.

        Args:
            request: says who asks.
            repo: its id.
            files: whether the content of files is asked for.
        """
        found = self.repos.get(repo)
        user = self.user(request)
        if found is None or not self.can_see(request, found):
            status, message = (404, "Repository not found") if user else (401, "Invalid username or password.")
            raise RefusedError(status, message, "RepoNotFound")
        if files and found.gated and not self._role(user, found.namespace) and user not in found.granted:
            raise RefusedError(403 if user else 401, f"Access to model {repo} is restricted.", "GatedRepo")
        return found

    def writable(self, request: Request, repo: str, rev: str = "") -> Repository:
        """The repository, if the user may write to `rev`; anyone may write to a new or an own pull request."""
        found = self.readable(request, repo)
        pull = next((p for p in found.pulls.values() if p.ref == rev), None)
        user = self.writer(request)
        if not request.flag("create_pr") and not (pull and pull.author == user):
            self.writer(request, found.namespace)
        return found
