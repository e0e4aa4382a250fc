#!/bin/bash
# The main job over RDMA verbs, run by ci/softroce: a node on one end of the cable, a client on the other; the
# features must be, bit for bit, those that travel over libfabric. Without a word about transports both sides take
# verbs; a client that cannot, falls back to libfabric and says why.
#   HAPI_PROGRAMS, HAPI_DATA, HAPI_MODELS: as for the other end-to-end tests; HAPI_TEST_VERBS_HOST: the node's address
set -euo pipefail
cd "$(dirname "$0")/../.."
PROGRAMS=${HAPI_PROGRAMS:-build/release} DATA=${HAPI_DATA:-build/data} MODEL=${HAPI_MODELS:-build/model}/lite0.onnx
WORK=$(mktemp -d)
NODE=''
poor=() # a prefix that takes locked memory away
checksum=(--checksum)

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

# node TRANSPORT HOST OPTION...
node() {
    local transport=$1 host=$2
    shift 2
    : >"$WORK/ready" # what the last one said there
    "${poor[@]}" "$PROGRAMS/hapi-rt" --data "$WORK/data" --listen "$host:0" --insecure --transport "$transport" \
        --read-area 1M --send-area 4M --batches 3 "$@" >"$WORK/ready" 2>"$WORK/log" &
    NODE=$!
    for _ in $(seq 200); do
        grep -q '^ready ' "$WORK/ready" && break
        kill -0 "$NODE" || {
            cat "$WORK/log"
            return 1
        }
        sleep 0.1
    done
}

# train NAME POLICY OPTION...: leaves $WORK/NAME-POLICY-*.npy and .json
train() {
    local name=$1 policy=$2
    shift 2
    "${poor[@]}" "$PROGRAMS/hapi" train "$MODEL" --nodes "$(sed -n 's/^ready //p' "$WORK/ready")" --dataset train \
        --test-dataset test --policy "$policy" --epochs 2 --batch 32 --quiet "${checksum[@]}" \
        --json "$WORK/$name-$policy.json" --dump-features "$WORK/$name-$policy" "$@"
}

node_end() {
    kill "$NODE"
    wait "$NODE"
    NODE=''
}

# same NAME NAME POLICY
same() {
    local part
    for part in train test train-labels test-labels test-predictions; do
        cmp "$WORK/$1-$3-$part.npy" "$WORK/$2-$3-$part.npy"
    done
}

# went NAME POLICY TRANSPORT WORD: which way its features came, and why
went() {
    python3 - "$WORK/$1-$2.json" "$3" "$4" <<'PY'
import json, sys
with open(sys.argv[1]) as f:
    said = json.load(f)
if said["transport"] != sys.argv[2] or sys.argv[3] not in said["transport_why"]:
    sys.exit(f"not {sys.argv[2]} ({sys.argv[3]}) but {said['transport']}: {said['transport_why']}")
print(f"{sys.argv[2]}: {said['transport_why']}")
PY
}

for policy in freeze none; do
    node ofi 127.0.0.1
    train ofi "$policy" --transport ofi
    node_end
    node verbs "${HAPI_TEST_VERBS_HOST:?}"
    train verbs "$policy" --transport verbs
    node_end
    same verbs ofi "$policy"
    echo "policy $policy: features over verbs are those over ofi, bit for bit"
done
tr -d '\n\t' <"$WORK/verbs-freeze.json"
echo

node auto "$HAPI_TEST_VERBS_HOST"
train auto freeze --transport auto
went auto freeze verbs 'RDMA device'
same auto ofi freeze
# It works here, but not the way it is told to: nothing came of it, so the job goes on over ofi.
train back freeze --gid-index 200
went back freeze ofi gid
same back ofi freeze
# As for an ordinary user: hardly any memory may be locked.
poor=(prlimit --memlock=65536 setpriv --bounding-set -ipc_lock)
train poor freeze
went poor freeze ofi lock
same poor ofi freeze
poor=()
# RDMA's packets (UDP) are lost on the way, those of TCP are not: the connection never comes up.
if [ -e /sys/class/net/va ]; then
    for port in va vb; do
        tc qdisc add dev $port root handle 1: prio priomap 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
        tc qdisc add dev $port parent 1:3 handle 30: netem loss 100%
        tc filter add dev $port parent 1: protocol ip u32 match ip protocol 17 0xff flowid 1:3
    done
    train cut freeze
    for port in va vb; do
        tc qdisc del dev $port root
    done
    went cut freeze ofi 'data connection over verbs'
    same cut ofi freeze
fi
node_end
# From a GPU's memory: the fake's, which is the host's, so that the kernel can translate its addresses. Nothing computes
# there; what arrives is what that memory is made of (tests/fake_cuda/fake_cuda.h).
if [ -e "$PROGRAMS/tests/fake_cuda/libcudnn.so.9" ]; then
    for direct in auto off; do
        gpu=(--backend cudnn --gpu-memory 64M --gpudirect "$direct")
        LD_LIBRARY_PATH=$PROGRAMS/tests/fake_cuda FAKE_CUDA_FILL_MIB=64 HAPI_CACHE=$WORK/cache \
            node verbs "$HAPI_TEST_VERBS_HOST" "${gpu[@]}"
        checksum=()
        train "gpu-$direct" freeze --transport verbs
        checksum=(--checksum)
        node_end
        case $direct in
        auto) grep 'activations go from the GPU to the NIC.* via=peermem' "$WORK/log" ;;
        off) [ "$(grep -c 'activations' "$WORK/log")" = 0 ] ;;
        esac
        python3 - "$WORK/gpu-$direct-freeze-train.npy" <<'PY'
import sys
with open(sys.argv[1], "rb") as f:
    rows = f.read()[128:]
sys.exit(len(rows) < 1280 * 4 or rows.strip(b"\x3c") != b"")
PY
    done
fi
node auto "$HAPI_TEST_VERBS_HOST"
# A client that is stopped for longer than the deadline (4 s) connects again, by verbs, and misses nothing.
"$PROGRAMS/hapi" train "$MODEL" --nodes "$(sed -n 's/^ready //p' "$WORK/ready")" --dataset train --test-dataset test \
    --transport verbs --keep 0 --epochs 5 --batch 16 --quiet --checksum --json "$WORK/stopped-freeze.json" \
    --dump-order "$WORK/order" &
JOB=$!
for _ in $(seq 400); do
    [ -s "$WORK/order" ] && break
    sleep 0.05
done
kill -STOP "$JOB"
[ "$(wc -l <"$WORK/order")" -lt 320 ]
sleep 6
grep 'session closed.* transport=verbs .*nothing was heard' "$WORK/log"
kill -CONT "$JOB"
wait "$JOB"
for epoch in 0 1 2 3 4; do
    seq 0 63 | sed "s/^/$epoch /"
done | sort >"$WORK/order-wanted"
sort "$WORK/order" | cmp - "$WORK/order-wanted"
went stopped freeze verbs 'asked for'

# Who asks for verbs gets verbs, or is told why not.
if train never freeze --transport verbs --gid-index 200 2>"$WORK/said"; then
    echo "a GID that is not there does not matter"
    exit 1
fi
grep gid "$WORK/said"
node_end
grep 'session closed' "$WORK/log"
[ "$(grep -c 'session closed.* transport=verbs .* rnr=0 ' "$WORK/log")" -ge 2 ]

# A node that may not lock memory offers ofi only, and warns.
poor=(prlimit --memlock=65536 setpriv --bounding-set -ipc_lock)
node auto "$HAPI_TEST_VERBS_HOST"
poor=()
grep 'level=warn msg="transport not offered" transport=verbs why=.*lock' "$WORK/log"
train only freeze
went only freeze ofi 'does not offer'
node_end
