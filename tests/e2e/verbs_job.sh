#!/bin/bash
# The main job over RDMA verbs, run by ci/softroce: a node on one end of the cable, a client on the other; the
# features must be, bit for bit, those that travel over libfabric.
#   HAPI_PROGRAMS, HAPI_DATA, HAPI_MODELS: as for the other end-to-end tests; HAPI_TEST_VERBS_HOST: the node's address
set -euo pipefail
cd "$(dirname "$0")/../.."
PROGRAMS=${HAPI_PROGRAMS:-build/release} DATA=${HAPI_DATA:-build/data} MODEL=${HAPI_MODELS:-build/model}/lite0.onnx
WORK=$(mktemp -d)
NODE=''

end() {
    if [ -n "$NODE" ]; then
        kill "$NODE" 2>/dev/null || true
        wait "$NODE" || true
    fi
    rm -rf "$WORK"
}
trap end EXIT

for name in train test; do
    shard=$(find "$DATA/fashion-$name" -name '*.tar' 2>/dev/null | sort | head -1)
    if [ -z "$shard" ] || [ ! -f "$MODEL" ]; then
        echo "skipped: no $MODEL or no shard in $DATA/fashion-$name (ci/quickstart makes them)"
        exit 77
    fi
    mkdir -p "$WORK/data/$name"
    # A guest has one CPU: 64 samples (a member has a header of 512 bytes and is padded to 512) are enough.
    python3 - "$shard" "$WORK/data/$name/part.tar" <<'PY'
import sys, tarfile
with tarfile.open(sys.argv[1]) as a, tarfile.open(sys.argv[2], "w", format=tarfile.USTAR_FORMAT) as b:
    for m in a.getmembers()[:128]:
        b.addfile(m, a.extractfile(m))
PY
done

# job TRANSPORT HOST: leaves $WORK/TRANSPORT-*.npy and .json
job() {
    "$PROGRAMS/hapi-rt" --data "$WORK/data" --listen "$2:0" --insecure --transport "$1" --read-area 1M \
        --send-area 4M --batches 3 --log-level warn >"$WORK/ready" &
    NODE=$!
    for _ in $(seq 200); do
        grep -q '^ready ' "$WORK/ready" && break
        kill -0 "$NODE" || return 1
        sleep 0.1
    done
    "$PROGRAMS/hapi" train "$MODEL" --nodes "$(sed -n 's/^ready //p' "$WORK/ready")" --dataset train \
        --test-dataset test --transport "$1" --policy "$3" --epochs 2 --batch 32 --quiet --checksum \
        --json "$WORK/$1-$3.json" --dump-features "$WORK/$1-$3"
    kill "$NODE"
    wait "$NODE"
    NODE=''
}

for policy in freeze none; do
    job verbs "${HAPI_TEST_VERBS_HOST:?}" "$policy"
    job ofi 127.0.0.1 "$policy"
    for part in train test train-labels test-labels test-predictions; do
        cmp "$WORK/verbs-$policy-$part.npy" "$WORK/ofi-$policy-$part.npy"
    done
    echo "policy $policy: features over verbs are those over ofi, bit for bit"
done
tr -d '\n ' <"$WORK/verbs-freeze.json"
echo
