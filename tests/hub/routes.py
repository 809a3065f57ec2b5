"""What the test hub answers: one function for each kind of request, and the table that leads to them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import yaml

from tests.hub.answers import expanded, file_row, front_matter, info_of, page_of, ranged
from tests.hub.repository import Blob, Commit, Files, Repository, is_clean_path, tree_ids
from tests.hub.wire import Answer, RefusedError, Request

if TYPE_CHECKING:
    from tests.hub.server import TestHub

# Users and repositories.


def get_whoami(hub: TestHub, request: Request) -> Answer:
    user = hub.known_user(request)
    orgs = [
        {"type": "org", "name": org, "fullname": org, "roleInOrg": members[user]}
        for org, members in hub.orgs.items()
        if user in members
    ]
    auth = {
        "type": "access_token",
        "accessToken": {"displayName": "test", "role": hub.tokens[request.token][1]},
    }
    return Answer.json({"type": "user", "name": user, "fullname": user, "orgs": orgs, "auth": auth})


def create_repo(hub: TestHub, request: Request) -> Answer:
    asked = request.json()
    namespace = asked.get("organization") or hub.known_user(request)
    hub.writer(request, namespace)
    id = f"{namespace}/{asked['name']}"
    url = f"{hub.url}/{id}"
    if id in hub.repos:
        raise RefusedError(409, "You already created this model repo", url=url)
    repo = hub.add_repo(id, asks_for_private(asked))
    return Answer.json({"url": url, "name": id, "id": repo.head.id[:24]})


def asks_for_private(asked: dict[str, Any]) -> bool:
    # Older clients say `private` instead of `visibility`.
    return asked.get("visibility") == "private" or asked.get("private") is True


def get_auth_check(hub: TestHub, request: Request, repo: str, write: str) -> Answer:
    hub.readable(request, repo, files=True)
    if write:
        hub.writable(request, repo)
    return Answer.json({})


def validate_yaml(hub: TestHub, request: Request) -> Answer:
    errors, warnings = [], []
    try:
        card = front_matter(request.json()["content"])
        if card is None:
            warnings.append("empty or missing yaml metadata in repo card")
        elif not isinstance(card, dict):
            errors.append("expected a mapping")
        else:
            errors += [
                f'"{key}" must be an array' for key in ("tags", "model-index") if isinstance(card.get(key), dict)
            ]
    except yaml.YAMLError as error:
        errors.append(str(error))
    found = {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]}
    return Answer.json(found, 400 if errors else 200)


def get_info(hub: TestHub, request: Request, repo: str, rev: str = "main") -> Answer:
    found = hub.readable(request, repo)
    return Answer.json(expanded(request, info_of(hub, request, found, commit_of(found, rev))))


def list_repos(hub: TestHub, request: Request) -> Answer:
    author, search = request.option("author"), request.option("search").lower()
    wanted = {*request.query.get("filter", []), *request.query.get("pipeline_tag", [])}
    order = "createdAt" if request.option("sort") == "createdAt" else "lastModified"
    rows = []
    for repo in hub.repos.values():
        if hub.can_see(request, repo):
            info = info_of(hub, request, repo, repo.head)
            if author in ("", repo.namespace) and search in repo.id.lower() and wanted <= {*info["tags"]}:
                rows.append(info)
    rows.sort(key=lambda info: info[order], reverse=True)
    return page_of(hub, request, [expanded(request, info) for info in rows])


# Revisions and files.


def get_tree(hub: TestHub, request: Request, repo: str, rev: str, path: str) -> Answer:
    commit = commit_of(hub.readable(request, repo), rev)
    folders, inside = tree_ids(commit.files), f"{path}/" if path else ""
    if path not in folders:
        raise RefusedError(404, f"{path} does not exist on {rev}", "EntryNotFound")
    names = [name for name in sorted({*commit.files, *folders} - {""}) if name.startswith(inside)]
    if not request.flag("recursive"):
        names = [name for name in names if "/" not in name[len(inside) :]]
    return page_of(hub, request, [file_row(hub, commit, name, folders, request.flag("expand")) for name in names])


def get_paths_info(hub: TestHub, request: Request, repo: str, rev: str) -> Answer:
    commit = commit_of(hub.readable(request, repo), rev)
    form, folders = parse_qs(request.body.decode()), tree_ids(commit.files)
    expand = form.get("expand", [""])[0].lower() == "true"
    paths = [path for path in form.get("paths", []) if path in commit.files or path in folders]
    return Answer.json([file_row(hub, commit, path, folders, expand) for path in paths])


def get_refs(hub: TestHub, request: Request, repo: str) -> Answer:
    found = hub.readable(request, repo)
    folders = {"branches": "refs/heads/", "tags": "refs/tags/"}
    if request.flag("include_prs"):
        folders["pullRequests"] = "refs/pr/"
    rows = {
        key: [
            {"name": ref[len(folder) :], "ref": ref, "targetCommit": commit.id}
            for ref, commit in found.refs.items()
            if ref.startswith(folder)
        ]
        for key, folder in folders.items()
    }
    return Answer.json({**rows, "converts": []})


def create_tag(hub: TestHub, request: Request, repo: str, rev: str) -> Answer:
    found, ref = hub.writable(request, repo), f"refs/tags/{request.json()['tag']}"
    if ref in found.refs:
        raise RefusedError(409, f"Reference {ref} already exists")
    found.refs[ref] = commit_of(found, rev)
    return Answer.json({})


def create_branch(hub: TestHub, request: Request, repo: str, rev: str) -> Answer:
    found, ref = hub.writable(request, repo), f"refs/heads/{rev}"
    if ref in found.refs:
        raise RefusedError(409, f"Reference {ref} already exists")
    found.refs[ref] = commit_of(found, request.json().get("startingPoint", "main"))
    return Answer.json({})


# Uploads.


def preupload(hub: TestHub, request: Request, repo: str, rev: str) -> Answer:
    commit = commit_of(hub.writable(request, repo, rev), rev)
    rows = []
    for file in request.json()["files"]:
        path, present = file["path"], commit.files.get(file["path"])
        is_large = hub.is_large(commit, path, file["size"], base64.b64decode(file["sample"]))
        mode = "lfs" if is_large else "regular"
        row = {"path": path, "uploadMode": mode, "shouldIgnore": False}
        if present:
            row["oid"] = present.sha256 if present.lfs else present.blob_id
        rows.append(row)
    return Answer.json({"files": rows})


def lfs_batch(hub: TestHub, request: Request, repo: str) -> Answer:
    # Whether the file is for a new pull request is not said here, so anyone who may open one may send it.
    hub.readable(request, repo)
    hub.writer(request)
    asked = request.json()
    chunk = hub.multipart_chunk if "multipart" in asked["transfers"] else None
    objects, transfer = [], "basic"
    for row in asked["objects"]:
        sha256, size = row["oid"], row["size"]
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            row["error"] = {"code": 422, "message": f"invalid oid {sha256!r}"}
        elif not hub.storage.has(sha256):
            upload: dict[str, Any] = {"href": hub.sign(f"/lfs/{sha256}")}
            if chunk is not None and size > chunk:
                transfer, num_parts = "multipart", -(-size // chunk)
                parts = {f"{n:05d}": hub.sign(f"/lfs/{sha256}/{n}") for n in range(1, num_parts + 1)}
                upload = {"href": hub.sign(f"/lfs/{sha256}/complete"), "header": {"chunk_size": str(chunk), **parts}}
            row["actions"] = {"upload": upload, "verify": {"href": f"{hub.url}/lfs/verify"}}
        objects.append(row)
    return Answer.json({"transfer": transfer, "objects": objects})


def put_lfs(hub: TestHub, request: Request, sha256: str) -> Answer:
    hub.require_signature(request)
    if hashlib.sha256(request.body).hexdigest() != sha256:
        raise RefusedError(400, "the content does not match its oid")
    hub.storage.put(request.body)
    return Answer()


def put_lfs_part(hub: TestHub, request: Request, sha256: str, num: str) -> Answer:
    hub.require_signature(request)
    return Answer(headers={"ETag": f'"{hub.storage.put_part(sha256, int(num), request.body)}"'})


def complete_lfs(hub: TestHub, request: Request, sha256: str) -> Answer:
    hub.require_signature(request)
    etags = {part["partNumber"]: part["etag"].strip('"') for part in request.json()["parts"]}
    if not hub.storage.join_parts(sha256, etags):
        raise RefusedError(400, "the parts do not make up the content")
    return Answer.json({})


def verify_lfs(hub: TestHub, request: Request) -> Answer:
    hub.writer(request)
    asked = request.json()
    if not hub.storage.has(asked["oid"]) or hub.storage.size(asked["oid"]) != asked["size"]:
        raise RefusedError(404, "Object not found")
    return Answer.json({})


def get_xet_token(hub: TestHub, request: Request, repo: str, right: str, rev: str) -> Answer:
    if right == "write":
        hub.writable(request, repo, rev)
    else:
        hub.readable(request, repo, files=True)
    if not hub.xet:
        raise RefusedError(404, "Not Found")
    expires, url, token = int(time.time()) + 3600, f"local://{hub.storage.cas}", f"xet_{right}"
    headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expires)}
    return Answer.json({"accessToken": token, "exp": expires, "casUrl": url}, headers=headers)


def create_commit(hub: TestHub, request: Request, repo: str, rev: str) -> Answer:
    found = hub.writable(request, repo, rev)
    user, base = hub.user(request), commit_of(found, rev)
    header, *operations = [json.loads(line) for line in request.body.splitlines()]
    title, message = header["value"]["summary"], header["value"].get("description", "")
    if header["value"].get("parentCommit") not in (None, base.id):
        raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
    files = dict(base.files)
    for operation in operations:
        apply_operation(hub, files, operation["key"], operation["value"])
    pull = found.open_pull(title, message, user, "open") if request.flag("create_pr") else None
    ref = pull.ref if pull else found.writable_ref(rev)
    if ref is None:
        raise RefusedError(404, f"{rev} is not a branch", "RevisionNotFound")
    commit = found.commit(ref, files, title, message, user)
    page = f"{hub.url}/{found.id}"
    answer = {"success": True, "commitOid": commit.id, "commitUrl": f"{page}/commit/{commit.id}"}
    return Answer.json({**answer, "pullRequestUrl": f"{page}/discussions/{pull.num}"} if pull else answer)


def apply_operation(hub: TestHub, files: Files, key: str, value: dict[str, Any]) -> None:
    path = value["path"]
    if key in ("file", "lfsFile") and not is_clean_path(path):
        raise RefusedError(400, f"Invalid path: {path!r}")
    if key == "file":
        files[path] = hub.keep(base64.b64decode(value["content"]))
    elif key == "lfsFile":
        sha256 = value["oid"]
        xet_hash, size = hub.storage.xet_files().get(sha256, ("", 0))
        if not xet_hash and not hub.storage.has(sha256):
            raise RefusedError(400, f"{path}: LFS object {sha256} was never uploaded")
        files[path] = Blob.large(sha256, size if xet_hash else hub.storage.size(sha256), xet_hash)
    elif key in ("deletedFile", "deletedFolder"):
        gone = [p for p in files if p == path or (key == "deletedFolder" and p.startswith(path.rstrip("/") + "/"))]
        if not gone:
            raise RefusedError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        for name in gone:
            del files[name]
    else:
        raise RefusedError(400, f"unknown operation {key!r}")


# Pull requests.


# Downloads.


def resolve(hub: TestHub, request: Request, repo: str, rev: str, path: str) -> Answer:
    found = hub.readable(request, repo, files=True)
    commit = commit_of(found, rev)
    if path not in commit.files:
        refused = RefusedError(404, "Entry not found", "EntryNotFound")
        refused.answer.headers["X-Repo-Commit"] = commit.id
        raise refused
    blob = commit.files[path]
    etag = blob.sha256 if blob.lfs else blob.blob_id
    headers = {"X-Repo-Commit": commit.id, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
    if blob.lfs:
        headers |= {"X-Linked-ETag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
    if blob.xet_hash and hub.xet:
        token = f"{hub.url}/api/models/{found.id}/xet-read-token/{commit.id}"
        headers |= {"X-Xet-Hash": blob.xet_hash, "Link": f'<{token}>; rel="xet-auth"'}
    if blob.lfs and hub.cdn:
        return Answer(302, headers={**headers, "Location": hub.sign(f"/lfs/{blob.sha256}")})
    return ranged(request, hub.content(blob), headers)


def get_lfs(hub: TestHub, request: Request, sha256: str) -> Answer:
    hub.require_signature(request)
    blobs = (b for repo in hub.repos.values() for commit in repo.commits.values() for b in commit.files.values())
    blob = next((b for b in blobs if b.lfs and b.sha256 == sha256), None)
    if blob is None:
        raise RefusedError(404, "NoSuchKey")
    return ranged(request, hub.content(blob), {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})


# Helpers.


def commit_of(repo: Repository, rev: str) -> Commit:
    commit = repo.find(rev)
    if commit is None:
        raise RefusedError(404, f"Invalid rev id: {rev}", "RevisionNotFound")
    return commit


REPO = r"(?P<repo>[^/]+/[^/]+)"
REV = r"(?P<rev>[^/]+)"
SHA256 = r"(?P<sha256>[0-9a-f]{64})"
API = f"/api/models/{REPO}"
PAGE = f"/{REPO}"

# Method, pattern of the encoded path, and who answers; the first that fits is taken.
ROUTES: list[tuple[str, str, Callable[..., Answer]]] = [
    ("GET", "/api/whoami-v2", get_whoami),
    ("POST", "/api/repos/create", create_repo),
    ("POST", "/api/validate-yaml", validate_yaml),
    ("GET", "/api/models", list_repos),
    ("GET", API, get_info),
    ("GET", f"{API}/revision/{REV}", get_info),
    ("GET", f"{API}/auth-check(?P<write>/write)?", get_auth_check),
    ("GET", f"{API}/tree/{REV}/?(?P<path>.*)", get_tree),
    ("POST", f"{API}/paths-info/{REV}", get_paths_info),
    ("GET", f"{API}/refs", get_refs),
    ("POST", f"{API}/tag/{REV}", create_tag),
    ("POST", f"{API}/branch/{REV}", create_branch),
    ("POST", f"{API}/preupload/{REV}", preupload),
    ("POST", f"{API}/commit/{REV}", create_commit),
    ("GET", f"{API}/xet-(?P<right>read|write)-token/{REV}", get_xet_token),
    ("GET", f"{PAGE}/resolve/{REV}/(?P<path>.+)", resolve),
    ("POST", rf"{PAGE}\.git/info/lfs/objects/batch", lfs_batch),
    ("PUT", f"/lfs/{SHA256}", put_lfs),
    ("PUT", rf"/lfs/{SHA256}/(?P<num>\d+)", put_lfs_part),
    ("POST", f"/lfs/{SHA256}/complete", complete_lfs),
    ("POST", "/lfs/verify", verify_lfs),
    ("GET", f"/lfs/{SHA256}", get_lfs),
]
