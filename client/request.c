/* A request: which samples it is for, what it says, and how it is sent. */
#include <string.h>

#include "clock.h"
#include "loader.h"

/* Whether position p comes next in a request; *over: nothing after it does either. */
static bool extent_takes(struct hapi_loader *l, struct request *r, struct batch *b, uint32_t p, bool *over)
{
    bool gathers = r->route->direct && l->keep; /* through the slot, where others lie between */
    enum keep_state kept = r->n && gathers && !b->done[p] ? keep_take(l, b, p) : KEEP_NOT;

    *over = kept == KEEP_LATER || (!gathers && (b->done[p] || (r->n && keep_has(l, b, p))));
    return !*over && kept == KEEP_NOT && !b->done[p];
}

uint32_t request_take(struct hapi_loader *l, struct request *r, struct batch *b, uint32_t at, uint32_t most)
{
    const struct route *way = r->route;
    uint64_t bytes = 0;
    bool over = false;
    uint32_t i;

    r->n = 0;
    for (i = 0; i < most && r->n < REQUEST_SAMPLES; i++) {
        uint32_t p = at + i;
        if (!extent_takes(l, r, b, p, &over)) {
            if (over)
                break;
            continue;
        }
        uint32_t sample = (uint32_t)b->samples[p];
        const struct hapi_catalog_object *o = &l->catalog.objects[l->catalog.sample_object[sample]];
        bytes += way->cut ? way->wire_row : o->sample_bytes[sample - o->first_sample];
        bool in_slot = !way->direct || i != r->n;
        if (r->n && (!replica_may(r->node, b, p) || (in_slot && bytes > l->slot_bytes)))
            break;
        r->pos[r->n++] = p;
    }
    /* Both tiers have plans for so many at a time: one more takes as long as all of them. */
    bool bounded = i < most && r->n < REQUEST_SAMPLES && r->n > way->chunk;
    uint32_t whole = bounded && way->chunk ? r->n - r->n % way->chunk : r->n;
    if (whole < r->n)
        i = r->pos[whole] - at;
    r->n = whole;
    r->gathers = way->direct && r->pos[r->n - 1] != at + r->n - 1;
    return i;
}

static uint64_t remote(const struct loader_node *n, const void *p)
{
    return n->remote_base + (uint64_t)((const uint8_t *)p - n->l->exposed.base);
}

static void request_samples(struct request *r)
{
    struct hapi_loader *l = r->node->l;
    struct hapi_request *q = &r->req;

    q->n_objects = 0;
    q->n_samples = r->n;
    for (uint32_t i = 0; i < r->n; i++) {
        uint32_t sample = (uint32_t)r->batch->samples[r->pos[i]], k = 0;
        const struct hapi_catalog_object *o = &l->catalog.objects[l->catalog.sample_object[sample]];
        while (k < q->n_objects && r->objects[k].name.s != o->name)
            k++;
        if (k == q->n_objects)
            r->objects[q->n_objects++] = (struct hapi_req_object){
                .name = {o->name, (uint32_t)strlen(o->name)},
                .digest = o->digest,
            };
        r->samples[i] = (struct hapi_req_sample){(uint16_t)k, sample - o->first_sample};
    }
}

static void cut_names(struct hapi_request *q, const struct hapi_cut *cut)
{
    q->n_cut = cut->n_tensors;
    for (uint32_t i = 0; i < cut->n_tensors; i++)
        q->cut[i] = (struct hapi_str){cut->tensors[i].name, (uint32_t)strlen(cut->tensors[i].name)};
}

uint8_t *request_payload(const struct request *r)
{
    return r->route->direct && !r->gathers ? r->batch->features + r->pos[0] * r->node->l->row_bytes : r->slot;
}

static void request_fill(struct request *r)
{
    struct hapi_loader *l = r->node->l;
    struct hapi_request *q = &r->req;
    const struct route *way = r->route;
    uint8_t *to = request_payload(r);

    *q = (struct hapi_request){
        .index = r->index,
        .trace_id = r->generation,
        .dataset = {l->o.dataset, (uint32_t)strlen(l->o.dataset)},
        .epoch = l->epoch_asked,
        .micro_batch = way->micro_batch,
        .max_parts = r->n,
        .flags = l->o.checksum ? HAPI_REQ_CHECKSUM : 0,
        .n_windows = 1,
        .record_key = r->node->key,
        .record_base = remote(r->node, r->records),
        .record_bytes = r->n * l->record_slot,
        .objects = r->objects,
        .samples = r->samples,
    };
    q->windows[0] = (struct hapi_window_ref){
        .key = r->node->key,
        .base = remote(r->node, to),
        .stride = way->cut ? way->wire_row : 0,
        .capacity = way->cut ? r->n * way->wire_row : l->slot_bytes,
    };
    if (way->cut) {
        memcpy(q->model_hash, r->routes->offer->hash, HAPI_HASH_SIZE);
        cut_names(q, way->cut);
        q->transform = (struct hapi_str){l->transform_text, (uint32_t)strlen(l->transform_text)};
        q->compute_dtype = l->dtype;
        q->wire_dtype = way->wire;
        q->layout = HAPI_LAYOUT_NHWC;
    }
    request_samples(r);
}

static void request_sent(struct hapi_conn *c, struct hapi_conn_op *op, int status)
{
    struct request *r = (struct request *)((char *)op - offsetof(struct request, op));
    (void)c;
    (void)status; /* a failed send is followed by on_close, which issues the request anew */
    r->sending = false;
    fetch_pump(r->node->l);
}

/* Immediates that its requests may still cause. What an ended request left over serves the next one. */
static int credit_take(struct loader_node *n, uint32_t parts)
{
    uint32_t owed = parts;

    for (int i = 0; i < NODE_REQUESTS; i++)
        if (n->requests[i].active && !n->requests[i].terminal)
            owed += n->requests[i].n - n->requests[i].parts;
    int rc = owed > n->granted ? hapi_conn_grant(n->conn, owed - n->granted) : 0;
    if (!rc && owed > n->granted)
        n->granted = owed;
    return rc;
}

int request_issue(struct request *r, struct batch *b, struct hapi_err *err)
{
    struct hapi_loader *l = r->node->l;

    r->batch = b;
    r->terminal = r->lost = false;
    r->parts = r->jobs = r->waiting = 0;
    r->generation = ++l->generation;
    r->began_ns = hapi_clock_ns();
    if (!r->node->in_flight)
        r->node->progress_ns = r->began_ns;
    memset(r->seen, 0, sizeof r->seen);
    request_fill(r);
    int bytes = hapi_request_encode(&r->req, r->message, HAPI_REQUEST_MAX);
    if (bytes < 0)
        return hapi_err_set(err, bytes, 0, "a request of %u samples cannot be encoded: %s", r->n,
                            hapi_err_meaning(bytes));
    r->op.on_done = request_sent;
    int rc = credit_take(r->node, r->n);
    if (!rc)
        rc = hapi_conn_send(r->node->conn, r->message, (size_t)bytes, &r->op);
    if (rc)
        return hapi_err_set(err, rc, 0, "cannot send a request: %s", hapi_err_meaning(rc));
    r->active = r->sending = true;
    replica_asked(r);
    r->routes->users++;
    r->node->in_flight++;
    atomic_fetch_add(&l->n_requests, 1);
    return 0;
}
