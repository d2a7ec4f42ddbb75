#!/usr/bin/env bash
# Tests docker-compose.yml on a real engine: builds and starts it, scores and samples through the published port, queries
# the metrics in Prometheus, runs NVIDIA's perf_analyzer, stops the service gracefully, and removes everything.
set -euo pipefail
cd "$(dirname "$0")/.."

engine_up=${GLOWSERVE_SHARED:-../shared}/docker/engine-up
if ! docker info >/dev/null 2>&1; then
  if [[ ! -x $engine_up ]]; then
    echo "test-docker: no Docker engine is running; start one, or set GLOWSERVE_SHARED to a folder with docker/engine-up" >&2
    exit 2
  fi
  "$engine_up" python:3.11-slim-bookworm prom/prometheus:v2.53.5 debian:trixie-slim
fi

compose() { docker-compose --project-name glowserve-test "$@"; }
if ! command -v docker-compose >/dev/null; then
  compose() { docker compose --project-name glowserve-test "$@"; }
fi

# Free ports, so that a running service does not conflict.
read -r PORT METRICS_PORT PROMETHEUS_PORT < <(.venv/bin/python - <<'PY'
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(s.getsockname()[1] for s in sockets))
PY
)
export PORT METRICS_PORT PROMETHEUS_PORT
work=$(mktemp -d)
down() {
  code=$?
  ((code == 0)) || compose logs --tail 50 >&2 || true
  compose down --volumes --remove-orphans >/dev/null 2>&1 || true
  rm -rf "$work"
  exit "$code"
}
trap down EXIT

step() { printf 'test-docker: %s\n' "$*"; }
within() { # within SECONDS COMMAND...: repeats the command until it succeeds
  local end=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) || { echo "test-docker: still failing: $*" >&2; "$@" >&2 || true; return 1; }
    sleep 1
  done
}

step "alert rules"
docker run --rm --volume "$PWD/deploy/prometheus:/rules:ro" --entrypoint promtool prom/prometheus:v2.53.5 \
  test rules /rules/rules_test.yml

step "building and starting"
compose up --build --detach
container=$(compose ps -q glowserve)
healthy() { [[ $(docker inspect --format '{{.State.Health.Status}}' "$container") == healthy ]]; }
within 90 healthy

step "the image: no root user, no torch"
[[ $(docker exec "$container" id -u) == 10001 ]]
docker exec "$container" python -c 'import importlib.util as u; assert u.find_spec("torch") is None'

step "scoring and sampling through the published port"
server=127.0.0.1:$PORT
.venv/bin/glowserve models --server "$server"
.venv/bin/glowserve sample --server "$server" --n 4 --seed 1 --out "$work/samples"
.venv/bin/glowserve score --server "$server" "$work/samples"
.venv/bin/glowserve sample --server "$server" --n 4 --seed 1 --out "$work/again" >/dev/null
diff -r "$work/samples" "$work/again"

step "metrics through Prometheus"
scraped() {
  .venv/bin/python - "$PROMETHEUS_PORT" <<'PY'
import json, sys, urllib.parse, urllib.request
query = urllib.parse.urlencode({"query": 'glowserve_requests_total{method="Sample",code="OK"}'})
with urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/api/v1/query?{query}", timeout=5) as answer:
    series = json.load(answer)["data"]["result"]
print(series)
sys.exit(0 if [value["value"][1] for value in series] == ["2"] else 1)
PY
}
within 60 scraped

step "perf_analyzer, with the flags of docs/open-inference-protocol.md"
if [[ $(uname -m) == x86_64 ]]; then # the only architecture with a wheel; it needs the glibc of Debian 13
  .venv/bin/python -m pip download --disable-pip-version-check --quiet --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation py --platform manylinux_2_38_x86_64 --dest "$work" perf-analyzer==2.60.0
  .venv/bin/python -m zipfile --extract "$work"/perf_analyzer-*.whl "$work/perf"
  chmod +x "$work/perf/perf_analyzer/bin/perf_analyzer"
  echo '{"data": [{"seed": [7], "temperature": [0.5]}]}' > "$work/perf/rows.json"
  perf_analyzer() { # passes once a throughput is printed; whether it is stable depends on the machine
    docker run --rm --network host --volume "$work/perf:/perf:ro" --workdir /perf debian:trixie-slim \
      /perf/perf_analyzer/bin/perf_analyzer -i grpc -u "$server" --measurement-interval 1000 --stability-percentage 999 "$@" \
      | tee "$work/perf.txt"
    grep -q '^Concurrency: .* throughput: [1-9]' "$work/perf.txt"
  }
  perf_analyzer -m digits -b 8 --concurrency-range 1:2
  perf_analyzer -m digits -b 8 --concurrency-range 4 --async --streaming
  perf_analyzer -m digits.sample -b 8 --input-data rows.json
fi

step "SIGTERM right after the start ends the container before SIGKILL would"
early=$(docker run --detach --volume "$(realpath "${MODELS:-out/demo/models}"):/models:ro" "glowserve:${EXTRA:-cpu}")
docker stop --time 20 "$early" >/dev/null
[[ $(docker inspect --format '{{.State.ExitCode}}' "$early") != 137 ]]
docker rm "$early" >/dev/null

step "SIGTERM stops the service with exit code 0"
compose stop glowserve
[[ $(docker inspect --format '{{.State.ExitCode}}' "$container") == 0 ]]

step "passed"
