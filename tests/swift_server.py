"""OpenStack Swift with its S3 interface, all four servers in this one process; prints its port and serves until killed.

python tests/swift_server.py FOLDER PORT KEY SECRET [careless]

PORT 0 is any that is free. A careless server ignores the condition If-None-Match, as one that many use.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import eventlet

eventlet.patcher.monkey_patch(all=False, socket=True, select=True, thread=True)

import eventlet.wsgi  # noqa: E402
from eventlet.semaphore import Semaphore  # noqa: E402
from swift.common.ring import RingBuilder  # noqa: E402
from swift.common.utils import set_swift_dir  # noqa: E402
from swift.common.wsgi import SwiftHttpProtocol, loadapp  # noqa: E402

SWIFT = """
[swift-hash]
swift_hash_path_prefix = tests
swift_hash_path_suffix = tests
[storage-policy:0]
name = Policy-0
default = yes
"""

STORAGE = """
[DEFAULT]
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
disable_fallocate = true
log_level = ERROR
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
conn_timeout = 30
node_timeout = 60
container_update_timeout = 60
"""  # patience, since a list of objects lags behind where a busy machine runs into a time-out

FILTERS = ("catch_errors", "gatekeeper", "listing_formats", "s3api", "tempauth", "bulk", "slo", "dlo")
PROXY = """
[DEFAULT]
swift_dir = {folder}
log_level = ERROR
[pipeline:main]
pipeline = {filters} proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
conn_timeout = 30
node_timeout = 60
"""
FILTER_OPTIONS = {"tempauth": "user_{account}_{user} = {secret} .admin", "s3api": "location = us-east-1"}


Application = Callable[..., object]


def forgetting(settings: dict[str, str], **options: str) -> Callable[[Application], Application]:
    """Make a filter that takes the condition out of a request whose signature has been checked."""

    def wrap(app: Application) -> Application:
        def answer(environment: dict[str, object], start_response: object) -> object:
            environment.pop("HTTP_IF_NONE_MATCH", None)
            return app(environment, start_response)

        return answer

    return wrap


def in_turn(settings: dict[str, str], **options: str) -> Callable[[Application], Application]:
    """Make a filter that lets conditional writes of one object follow each other.

    Swift looks whether the object is there and then writes, without a lock between: of several writers at the same
    moment more than one would win, which the condition of S3 rules out.
    """
    locks: dict[str, Semaphore] = {}

    def wrap(app: Application) -> Application:
        def answer(environment: dict[str, object], start_response: object) -> object:
            if "HTTP_IF_NONE_MATCH" not in environment:
                return app(environment, start_response)
            with locks.setdefault(str(environment["PATH_INFO"]), Semaphore()):
                return app(environment, start_response)

        return answer

    return wrap


def write_settings(folder: Path, ports: dict[str, int], key: str, secret: str, extra: list[str]) -> None:
    (folder / "devices" / "disk").mkdir(parents=True, exist_ok=True)
    (folder / "swift.conf").write_text(SWIFT)
    for kind, port in ports.items():
        ring = RingBuilder(1, 1, 0)  # two partitions, one copy
        ring.add_dev({"id": 0, "region": 1, "zone": 1, "weight": 1, "ip": "127.0.0.1", "port": port, "device": "disk"})
        ring.rebalance()
        ring.get_ring().save(str(folder / f"{kind}.ring.gz"))
        (folder / f"{kind}.conf").write_text(STORAGE.format(folder=folder, kind=kind))
    account, _, user = key.partition(":")
    text = PROXY.format(folder=folder, filters=" ".join(["in_turn", *FILTERS, *extra]))
    text += "[filter:in_turn]\npaste.filter_factory = swift_server:in_turn\n"
    text += "[filter:careless]\npaste.filter_factory = swift_server:forgetting\n"
    for name in FILTERS:
        options = FILTER_OPTIONS.get(name, "").format(account=account, user=user, secret=secret)
        text += f"[filter:{name}]\nuse = egg:swift#{name}\n{options}\n"
    (folder / "proxy.conf").write_text(text)


def main(folder: Path, port: int, key: str, secret: str, *extra: str) -> None:
    sockets = {kind: eventlet.listen(("127.0.0.1", 0)) for kind in ("account", "container", "object")}
    write_settings(
        folder, {kind: socket.getsockname()[1] for kind, socket in sockets.items()}, key, secret, list(extra)
    )
    set_swift_dir(str(folder))
    sockets["proxy"] = eventlet.listen(("127.0.0.1", port))
    servers = []
    for kind, socket in sockets.items():
        app = loadapp(str(folder / f"{kind}.conf"), global_conf={"log_name": kind})
        servers.append(eventlet.spawn(eventlet.wsgi.server, socket, app, log_output=False, protocol=SwiftHttpProtocol))
    print(sockets["proxy"].getsockname()[1], flush=True)
    for server in servers:
        server.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
