#!/usr/bin/env bash
# Tests docker-compose.yml on a real engine, from a first start without models to three services behind one name: what is
# in the image, settings, quotas, a new version of the model and its rollback under load, a new one of the service, scaling,
# NVIDIA's perf_analyzer, and the expressions of dashboards and alerts in the Prometheus that is deployed. It removes
# everything at its end.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
BASE=python:3.11-slim-bookworm
PROMETHEUS=prom/prometheus:v2.53.5
DEMO=$(realpath "${DEMO:-out/demo/models}")
MOST_BYTES=$((250 * 1000 * 1000)) # of the image over its base

engine_up=${GLOWSERVE_SHARED:-../shared}/docker/engine-up
if ! docker info >/dev/null 2>&1; then
  if [[ ! -x $engine_up ]]; then
    echo "test-docker: no Docker engine is running; start one, or set GLOWSERVE_SHARED to a folder with docker/engine-up" >&2
    exit 2
  fi
  "$engine_up" $BASE $PROMETHEUS debian:trixie-slim
fi

# Grafana's image cannot be pulled everywhere: dashboards are tested by their expressions.
if command -v docker-compose >/dev/null; then
  # It finds the packages of PYTHONPATH before its own.
  compose() { env -u PYTHONPATH docker-compose --project-name glowserve-test "$@"; }
else
  compose() { docker compose --project-name glowserve-test "$@"; }
fi
glowserve() { "$PYTHON" -m glowserve "$@"; }

# Free ports, so that a running service does not conflict.
read -r PORT METRICS_PORT PROMETHEUS_PORT UI_PORT < <("$PYTHON" - <<'PY'
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
print(*(s.getsockname()[1] for s in sockets))
PY
)
work=$(mktemp -d)
chmod 755 "$work"
export PORT METRICS_PORT PROMETHEUS_PORT UI_PORT MODELS=$work/models ENV_FILE=$work/env
server=127.0.0.1:$PORT
down() {
  code=$?
  ((code == 0)) || compose logs --tail 50 >&2 || true
  compose down --volumes --remove-orphans >/dev/null 2>&1 || true
  docker rm --force glowserve-test-run >/dev/null 2>&1 || true
  rm -rf "$work" "${wheel-}"
  exit "$code"
}
trap down EXIT

step() { printf 'test-docker: %s (%d s so far)\n' "$*" "$SECONDS"; }
fail() { echo "test-docker: $*" >&2; exit 1; }
within() { # within SECONDS COMMAND...: repeats the command until it succeeds
  local end=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) || { echo "test-docker: still failing: $*" >&2; "$@" >&2 || true; return 1; }
    sleep 0.5
  done
}
containers() { compose ps -q glowserve; }
healthy() {
  for each in $(containers); do
    [[ $(docker inspect --format '{{.State.Health.Status}}' "$each") == healthy ]] || return 1
  done
}
serves() { [[ $(glowserve models --server "$server" --json | "$PYTHON" -c 'import json, sys; print(*(m["version"] for m in json.load(sys.stdin)))') == "$1" ]]; }
# grep -q would end before the other program of its pipe, which then fails.
logged() { docker logs "$container" 2>&1 | grep "$1" >/dev/null; }

step "a folder that is missing ends the start with its name, and is not made"
touch "$work/env"
docker build --quiet --file deploy/Dockerfile --target cpu --tag glowserve:cpu . >/dev/null
compose up --detach glowserve > "$work/up.txt" 2>&1 && fail "a missing folder was no error"
grep -q "$MODELS" "$work/up.txt" || fail "the error does not name $MODELS"
[[ ! -e $MODELS ]] || fail "$MODELS was made"

step "without models the service says what to do, is not ready, and is not restarted"
mkdir "$MODELS"
echo "GLOWSERVE_MAX_BATCHSIZE=8" > "$work/env"
GLOWSERVE_MAX_IMAGES_PER_CALL=8 GLOWSERVE_POLL_SECONDS=1 compose up --detach glowserve prometheus
container=$(containers)
within 60 logged 'waiting for a model'
logged 'glowserve export' || fail "the log does not say what to do"
logged 'GLOWSERVE_MAX_BATCHSIZE is not used; is $GLOWSERVE_MAX_BATCH_SIZE meant' || fail "the misspelled variable is not named"
[[ $(docker inspect --format '{{.RestartCount}} {{.State.Running}}' "$container") == "0 true" ]]

step "the first model is served, with the settings of the environment"
cp -r "$DEMO/digits" "$MODELS/.digits" && mv "$MODELS/.digits" "$MODELS/digits"
within 60 healthy
glowserve sample --server "$server" --n 4 --seed 1 --out "$work/samples"
glowserve score --server "$server" "$work/samples"
"$PYTHON" - "$server" <<'PY'
import sys, grpc # our client would split a call that is too large
from glowserve.v1 import glow_service_pb2 as pb, glow_service_pb2_grpc
with grpc.insecure_channel(sys.argv[1]) as channel:
    tensor = {"dtype": 1, "shape": [9, 8, 8, 1], "data": bytes(9 * 64)}
    try:
        glow_service_pb2_grpc.GlowServiceStub(channel).Score(pb.ScoreRequest(images=pb.Images(tensor=tensor)))
    except grpc.RpcError as error:
        sys.exit(0 if "1 to 8" in error.details() else error.details())
sys.exit("GLOWSERVE_MAX_IMAGES_PER_CALL was not passed on")
PY

step "the pages, which ask the service"
compose --profile ui up --detach ui
page() { curl --silent --fail --max-time 5 "http://localhost:$UI_PORT/sample?model=digits&temperature=0.7&seed=1" | grep data:image/png >/dev/null; }
within 30 page
compose --profile ui rm --stop --force ui >/dev/null

step "what is in the image, and its size"
contents() { docker run --rm --interactive --user 0 --entrypoint python "$1" - < tests/deploy/programs/contents.py; }
findings=$(contents glowserve:cpu)
[[ -z $findings ]] || fail "$findings"
contents $BASE | grep setuid >/dev/null || fail "the search finds nothing in the base image, which has setuid files"
[[ $(docker inspect --format '{{.Config.User}}' glowserve:cpu) == 10001:10001 ]]
[[ $(docker inspect --format '{{index .Config.Labels "org.opencontainers.image.title"}}' glowserve:cpu) == glowserve ]]
bytes=$(($(docker inspect --format '{{.Size}}' glowserve:cpu) - $(docker inspect --format '{{.Size}}' $BASE)))
echo "the cpu image has $((bytes / 1000000)) MB over its base"
((bytes < MOST_BYTES)) || fail "it may have $((MOST_BYTES / 1000000))"

step "the train image, with torch from a folder of wheels: it trains, and exports the version of a model"
torch=$("$PYTHON" -c 'from importlib.metadata import version; print(version("torch"))')
if [[ $torch == *+cpu ]]; then # where pip finds a wheel for CPUs: the default one brings gigabytes of CUDA
  if ! compgen -G 'deploy/wheels/torch-*.whl' >/dev/null; then
    "$PYTHON" -m pip download --disable-pip-version-check --quiet --no-deps --dest "$work/wheels" "torch==$torch"
    wheel=deploy/wheels/$(basename "$work"/wheels/torch-*.whl)
    mv "$work"/wheels/torch-*.whl "$wheel"
  fi
  docker build --quiet --file deploy/Dockerfile --target train --tag glowserve:train . >/dev/null
  rm -f "${wheel-}" # else every later build would be sent it
  bytes=$(($(docker inspect --format '{{.Size}}' glowserve:train) - $(docker inspect --format '{{.Size}}' $BASE)))
  echo "the train image has $((bytes / 1000000)) MB over its base"
  mkdir "$work/data"
  train() { docker run --rm --user "$(id -u):$(id -g)" --volume "$work/data:/data" glowserve:train "$@"; }
  train --help | grep export >/dev/null
  train train --data digits --steps 5 --out /data/runs/digits
  train export /data/runs/digits/model.ckpt /data/models/digits
  [[ -e $work/data/models/digits/1/manifest.json ]]
fi

step "one core, 768 MiB, a read-only root, and no shell"
docker run --detach --name glowserve-test-run --cpus 1 --memory 768m --read-only --tmpfs /tmp --cap-drop ALL \
  --volume /dev/null:/bin/sh:ro --volume /dev/null:/bin/bash:ro --volume "$DEMO:/models:ro" \
  --volume "$PWD/tests/deploy/programs:/programs:ro" glowserve:cpu >/dev/null
within 60 docker exec glowserve-test-run python -m glowserve_service.healthcheck
[[ $(docker exec glowserve-test-run python -c 'from glowserve.cores import cores; print(cores())') == 1 ]]
docker exec glowserve-test-run python /programs/load.py localhost:8001 5 32
address=$(docker inspect --format '{{.NetworkSettings.IPAddress}}' glowserve-test-run)
docker run --rm --volume "$PWD/tests/deploy/programs:/programs:ro" --entrypoint python glowserve:cpu /programs/large.py "$address:8001"
[[ $(docker inspect --format '{{.State.OOMKilled}} {{.RestartCount}}' glowserve-test-run) == "false 0" ]]
docker rm --force glowserve-test-run >/dev/null

step "a second version and its rollback under load"
"$PYTHON" tests/deploy/programs/load.py "$server" 15 8 > "$work/load.txt" & load=$!
cp -r "$MODELS/digits/1" "$MODELS/digits/.2" && mv "$MODELS/digits/.2" "$MODELS/digits/2"
within 30 serves 2
mv "$MODELS/digits/2" "$MODELS/digits/.2"
within 30 serves 1
wait $load || { cat "$work/load.txt"; fail "a call failed"; }
cat "$work/load.txt"

step "perf_analyzer, with the flags of docs/open-inference-protocol.md"
if [[ $(uname -m) == x86_64 ]]; then # the only architecture with a wheel; it needs the glibc of Debian 13
  "$PYTHON" -m pip download --disable-pip-version-check --quiet --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation py --platform manylinux_2_38_x86_64 --dest "$work" perf-analyzer==2.60.0
  "$PYTHON" -m zipfile --extract "$work"/perf_analyzer-*.whl "$work/perf"
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

step "SIGTERM stops the service with exit code 0, and right after a start before SIGKILL would"
early=$(docker run --detach --volume "$DEMO:/models:ro" glowserve:cpu)
docker stop --time 20 "$early" >/dev/null
[[ $(docker inspect --format '{{.State.ExitCode}}' "$early") != 137 ]]
docker rm "$early" >/dev/null
compose stop glowserve
[[ $(docker inspect --format '{{.State.ExitCode}}' "$container") == 0 ]]

step "three services behind one name, which are replaced under load, and of which one is killed"
# Ranges of ports, out of which each container gets one.
three() { PORT=20100-20102 METRICS_PORT=20110-20112 compose up --detach --scale glowserve=3 "$@" glowserve; }
three
within 60 healthy
network=$(docker inspect --format '{{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}' "$(containers | head -1)")
balanced() { # balanced SECONDS: load from a container of the same network
  docker run --rm --network "$network" --volume "$PWD/tests/deploy/programs:/programs:ro" --entrypoint python \
    glowserve:cpu /programs/load.py dns:///glowserve:8001 "$1" 8
}
answered() { # answered CONTAINER
  docker exec "$1" python -c 'import re, urllib.request as u
page = u.urlopen("http://127.0.0.1:8002/metrics").read().decode()
print(sum(int(float(n)) for n in re.findall(r"glowserve_requests_total\{.*method=.Score.*\} (\S+)", page)))'
}
balanced 5
counts=(); for each in $(containers); do counts+=("$(answered "$each")"); done
echo "calls of each: ${counts[*]}"
"$PYTHON" -c 'import sys; n = [int(x) for x in sys.argv[1:]]; sys.exit(max(n) - min(n) > 0.1 * sum(n) / 3 or len(n) != 3)' "${counts[@]}" || fail "the spread is more than 10 %"
balanced 40 > "$work/load.txt" & load=$!
sleep 4
for each in $(containers); do
  docker stop "$each" >/dev/null && docker rm "$each" >/dev/null
  three --no-recreate
  within 60 healthy
done
wait $load || { cat "$work/load.txt"; fail "a call failed while services were replaced"; }
cat "$work/load.txt"
balanced 8 > "$work/load.txt" & load=$!
sleep 4
docker kill "$(containers | head -1)" >/dev/null
wait $load || { cat "$work/load.txt"; fail "a call failed"; }
cat "$work/load.txt"

step "Prometheus scrapes all of them"
asked() { # asked QUERY RESULT
  "$PYTHON" - "$PROMETHEUS_PORT" "$@" <<'PY'
import json, sys, urllib.parse, urllib.request
port, query, expected = sys.argv[1:]
with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}", timeout=5) as answer:
    sys.exit([series["value"][1] for series in json.load(answer)["data"]["result"]] != [expected])
PY
}
within 60 asked 'count(count by (instance) (max_over_time(up{job="glowserve"}[2m]) == 1)) >= bool 3' 1

step "every expression of dashboards and alerts, and the alerts' own tests, in that Prometheus"
prometheus=$(docker create $PROMETHEUS)
mkdir "$work/bin"
for program in prometheus promtool; do
  docker cp --follow-link "$prometheus:/bin/$program" "$work/bin/$program" 2>/dev/null \
    || docker cp "$prometheus:/usr/bin/$program" "$work/bin/$program"
done
docker rm "$prometheus" >/dev/null
PATH=$work/bin:$PATH "$PYTHON" -m pytest -q -p no:cacheprovider tests/deploy/test_dashboards.py \
  tests/service/observability/test_traffic_alert.py

step "passed"
