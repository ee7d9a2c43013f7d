#!/usr/bin/env bash
# Start one Ray process by hand, in the foreground: a token, a head, or a node that joins it. See cluster/README.md.
set -euo pipefail

usage() {
  cat >&2 <<'TEXT'
usage: cluster/ray.sh token
       cluster/ray.sh head [--host ADDRESS] [--port 6379] [--everywhere] [-- RAY START ARGUMENTS]
       cluster/ray.sh node --head ADDRESS:PORT [--host ADDRESS] [-- RAY START ARGUMENTS]

examples:
  cluster/ray.sh token
  cluster/ray.sh head
  cluster/ray.sh head --host 10.0.0.1 -- --num-gpus 8
  cluster/ray.sh node --head 10.0.0.1:6379 --host 10.0.0.2
TEXT
  exit 2
}

fail() { echo "cluster/ray.sh: $*" >&2; exit 2; }

token_file=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}

make_token() {
  [ -s "$token_file" ] && { echo "$token_file exists already; copy it to every node"; return; }
  mkdir -p "$(dirname "$token_file")"
  (umask 077; python3 -c 'import secrets; print(secrets.token_hex(32), end="")' > "$token_file")
  echo "wrote $token_file (mode 0600); copy it to the same place on every node"
}

require_token() {
  [ -s "$token_file" ] || fail "no token at $token_file; run 'cluster/ray.sh token' on the head and copy the file here"
  chmod 600 "$token_file"
}

[ $# -ge 1 ] || usage
command=$1; shift
host=127.0.0.1 port=6379 head='' everywhere=no
while [ $# -gt 0 ]; do
  case $1 in
    --host) host=${2:?--host needs an address}; shift 2 ;;
    --port) port=${2:?--port needs a number}; shift 2 ;;
    --head) head=${2:?--head needs ADDRESS:PORT}; shift 2 ;;
    --everywhere) everywhere=yes; shift ;;
    --) shift; break ;;
    *) usage ;;
  esac
done
if [ "$host" = 0.0.0.0 ] && [ "$everywhere" = no ]; then
  fail "--host 0.0.0.0 listens on every interface; add --everywhere if that is what you want"
fi

case $host in
  # By itself Ray replaces 127.0.0.1 by an address that other machines reach; this switch keeps it on loopback.
  127.*|localhost) export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 ;;
esac
PATH=$(cd "$(dirname "$0")/.." && pwd)/.venv/bin:$PATH # the environment of this checkout need not be active
if [ "$command" != token ] && ! command -v ray > /dev/null; then
  fail "there is no ray in .venv/bin or on the PATH; install first (README.md)"
fi
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token_file RAY_USAGE_STATS_ENABLED=0
export RAY_worker_niceness=${RAY_worker_niceness:-0} # Ray's own is 15: any other process of the machine comes first
case $command in
  token) make_token ;;
  head)
    require_token
    exec ray start --head --block --node-ip-address "$host" --port "$port" \
      --dashboard-host 127.0.0.1 --disable-usage-stats "$@" ;;
  node)
    require_token
    [ -n "$head" ] || fail "node needs --head ADDRESS:PORT"
    exec ray start --block --address "$head" --node-ip-address "$host" --disable-usage-stats "$@" ;;
  *) usage ;;
esac
