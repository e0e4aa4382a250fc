/*
 * Requests out, records in.
 *
 *     order ─> batch ─> requests of consecutive positions ─> a node ─> parts ─┬─> features are in place
 * (direct) ^                                                           └─> suffix jobs ─> in place └── ranges
 * whose node was lost are asked for again ─────────────────────────────┘
 */
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "convert.h"
#include "loader.h"
#include "order.h"

enum { WORD_MS = 1000 }; /* that a node's word on why it refuses a request may come after its record */

/* ------------------------------------------------------------------ batches */

void fetch_epoch(struct hapi_loader *l)
{
    uint32_t n = l->catalog.n_samples;

    if (l->o.sequential)
        for (uint32_t i = 0; i < n; i++)
            l->order[i] = i;
    else
        hapi_order_shuffle(l->order, n, l->o.seed, l->epoch);
    l->next_position = 0;
    l->filling = NULL;
    l->epoch_asked = l->epoch;
}

/* A batch with positions left to ask for, or NULL when all buffers are in use or the epoch is asked for. */
static struct batch *batch_filling(struct hapi_loader *l)
{
    struct batch *b = l->filling;

    if (b && b->asked < b->n)
        return b;
    l->filling = NULL;
    if (l->next_position == l->catalog.n_samples)
        return NULL;
    pthread_mutex_lock(&l->lock);
    for (uint32_t i = 0; i < l->o.depth && !l->filling; i++)
        if (l->batches[i].state == BATCH_FREE) {
            l->filling = &l->batches[i];
            l->filling->state = BATCH_FILLING;
        }
    pthread_mutex_unlock(&l->lock);
    b = l->filling;
    if (!b)
        return NULL;
    uint32_t rest = l->catalog.n_samples - l->next_position;
    b->sequence = l->next_sequence++;
    b->first = l->next_position;
    b->n = b->left = rest < l->o.batch ? rest : l->o.batch;
    b->asked = b->delivered = b->bad = 0;
    memset(b->done, 0, b->n);
    memset(b->tried, 0, b->n * sizeof *b->tried);
    for (uint32_t i = 0; i < b->n; i++)
        b->samples[i] = l->order[b->first + i];
    l->next_position += b->n;
    return b;
}

/* Moves the good rows together: bad samples are left out of what is delivered. */
static void batch_compact(struct hapi_loader *l, struct batch *b)
{
    uint32_t to = 0;

    for (uint32_t i = 0; i < b->n; i++) {
        if (b->done[i] < 0)
            continue;
        if (to != i) {
            memcpy(b->features + to * l->row_bytes, b->features + i * l->row_bytes, l->row_bytes);
            b->labels[to] = b->labels[i];
            b->samples[to] = b->samples[i];
        }
        to++;
    }
    b->bad = b->n - to;
    b->delivered = to;
}

static void sample_fail(struct hapi_loader *l, const struct batch *b, uint32_t at, const char *node,
                        int status)
{
    uint32_t sample = (uint32_t)b->samples[at];
    const struct hapi_catalog_object *o = &l->catalog.objects[l->catalog.sample_object[sample]];
    struct hapi_err err = {0};

    atomic_fetch_add(&l->n_bad, 1);
    hapi_err_set(&err, status, 0,
                 "sample %u of object %s in dataset %s on %s: %s (--on-bad skip leaves it out)",
                 sample - o->first_sample, o->name, l->o.dataset, node, hapi_err_meaning(status));
    if (l->o.on_bad == HAPI_FAIL_ON_BAD)
        loader_fail(l, &err);
}

static void batch_check(struct hapi_loader *l, struct batch *b)
{
    if (b->left)
        return;
    batch_compact(l, b);
    pthread_mutex_lock(&l->lock);
    b->state = BATCH_READY;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
}

void fetch_samples_done(struct request *r, uint32_t first, uint32_t count, const struct hapi_image *images)
{
    struct hapi_loader *l = r->node->l;
    struct batch *b = r->batch;

    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = r->pos[first + i];
        int status = images ? images[i].status : 0;
        if (b->done[at]) /* asked for twice, came twice: the bits are the same */
            continue;
        if (status && replica_another(r, at, status))
            continue;
        b->done[at] = status ? -1 : 1;
        if (status)
            sample_fail(l, b, at, r->node->name, status);
        else
            keep_put(r, at);
        b->left--;
    }
    batch_check(l, b);
}

/* Every node that is left has failed at it. */
static void sample_give_up(struct hapi_loader *l, struct batch *b, uint32_t at)
{
    b->done[at] = -1;
    b->left--;
    sample_fail(l, b, at, "every node that has it", b->failed[at]);
    batch_check(l, b);
}

void fetch_again(struct hapi_loader *l, struct batch *b, uint32_t at)
{
    struct range *end = l->again + l->n_again; /* there is room for all that may be on their way */

    if (l->n_again && end[-1].batch == b && end[-1].at + end[-1].n == at) {
        end[-1].n++;
        return;
    }
    *end = (struct range){b, at, 1};
    l->n_again++;
}

void fetch_kept(struct hapi_loader *l, struct batch *b, uint32_t at, bool good)
{
    b->done[at] = good;
    if (!good) {
        fetch_again(l, b, at);
        return;
    }
    b->left--;
    atomic_fetch_add(&l->n_kept, 1);
    batch_check(l, b);
}

/* ------------------------------------------------------------------ requests out */

/* One request for positions [at, at+most) of b; returns how many it covers, 0 when nobody has room. */
static uint32_t ask(struct hapi_loader *l, struct batch *b, uint32_t at, uint32_t most)
{
    struct hapi_err err = {0};
    bool anywhere;

    struct request *r = replica_request(l, b, at, &anywhere);
    if (!anywhere && b->tried[at]) { /* those that are left have failed at it */
        sample_give_up(l, b, at);
        return 1;
    }
    if (!anywhere) {
        const char *name = l->catalog.objects[l->catalog.sample_object[b->samples[at]]].name;
        const struct loader_node *n = &l->nodes[0];
        for (uint32_t i = 0; i < l->n_nodes; i++)
            n = l->nodes[i].state == NODE_DEAD ? &l->nodes[i] : n;
        hapi_err_set(&err, HAPI_ECLOSED, 0, "no node left that has object %s of dataset %s: %.300s", name,
                     l->o.dataset, n->last.text);
        loader_fail(l, &err);
    }
    if (!r)
        return 0;
    struct route *way = routes_next(l);
    r->routes = l->routes;
    r->route = way;
    bool small =
        most > CHUNK_SAMPLES && (way->share <= 0 || replica_is_new(r->node)); /* to see how it does */
    uint32_t n = request_take(l, r, b, at, small ? CHUNK_SAMPLES : most);
    if (request_issue(r, b, &err)) {
        node_break(r->node, err.code, err.text);
        return 0;
    }
    way->asked += r->n;
    return n;
}

void fetch_pump(struct hapi_loader *l)
{
    struct batch *b;
    uint32_t n;

    if (!l->ready || l->failure.set)
        return;
    while (l->n_again) {
        struct range *g = &l->again[l->n_again - 1];
        while (g->n && g->batch->done[g->at])
            g->at++, g->n--;
        n = g->n ? ask(l, g->batch, g->at, g->n) : 0;
        if (g->n && !n)
            return;
        g->at += n;
        g->n -= n;
        if (!g->n)
            l->n_again--;
    }
    while ((b = batch_filling(l))) {
        enum keep_state kept = b->done[b->asked] ? KEEP_TAKEN : keep_take(l, b, b->asked);
        if (kept == KEEP_TAKEN) {
            b->asked++;
            continue;
        }
        if (kept == KEEP_LATER)
            return;
        n = ask(l, b, b->asked, b->n - b->asked);
        if (!n)
            return;
        b->asked += n;
    }
}

/* ------------------------------------------------------------------ records in */

static int part_take(struct request *r, uint32_t part, struct hapi_err *err)
{
    struct hapi_loader *l = r->node->l;
    const uint8_t *at = r->records + part * l->record_slot;
    struct hapi_record *record = r->record;

    /* Checked in our own copy: what a node can still write is checked in vain. */
    memcpy(record, at, l->record_slot);
    int rc =
        hapi_record_check(record, l->record_slot, &r->req, l->catalog.n_node_classes[r->node->number], err);
    if (rc)
        return rc;
    if (record->generation != r->generation || record->part != part || record->request != r->index)
        return hapi_err_set(err, HAPI_EPROTO, 0, "the record of part %u is stale", part);
    for (uint32_t i = 0; i < record->count; i++) {
        const struct hapi_record_sample *s = &record->samples[i];
        if (r->route->cut && !record->status && !s->status && s->bytes != r->route->wire_row)
            return hapi_err_set(err, HAPI_EPROTO, 0, "a row of %u bytes, of %s it has %llu", s->bytes,
                                hapi_dtype_name(r->route->wire), (unsigned long long)r->route->wire_row);
        if (r->seen[record->first + i])
            return hapi_err_set(err, HAPI_EPROTO, 0, "sample %u of a request came twice", record->first + i);
        r->seen[record->first + i] = true;
    }
    atomic_fetch_add(&l->wire_bytes, record->size);
    return 0;
}

static int part_checksum(struct request *r, struct hapi_err *err)
{
    const struct hapi_record *record = r->record;
    const uint8_t *base = request_payload(r);
    uint32_t crc = 0;

    if (!(record->flags & HAPI_RECORD_CHECKSUM))
        return hapi_err_set(err, HAPI_EPROTO, 0, "a part came without the checksum that was asked for");
    if (suffix_checks(r))
        return 0;
    for (uint32_t i = 0; i < record->count; i++)
        if (!record->samples[i].status)
            crc = hapi_crc32c(crc, base + record->samples[i].offset, record->samples[i].bytes);
    return crc == record->crc32c
               ? 0
               : hapi_err_set(err, HAPI_ECORRUPT, 0, "the checksum of a micro-batch differs");
}

static int part_samples(struct request *r, struct hapi_err *err)
{
    struct hapi_loader *l = r->node->l;
    const struct hapi_record *record = r->record;
    struct hapi_image images[REQUEST_SAMPLES];
    int rc = l->o.checksum && record->count ? part_checksum(r, err) : 0;

    if (rc)
        return rc;
    for (uint32_t i = 0; i < record->count; i++) {
        const struct hapi_record_sample *s = &record->samples[i];
        images[i].status = s->status;
        if (s->status)
            continue;
        r->batch->labels[r->pos[record->first + i]] = l->catalog.node_class_map[r->node->number][s->label];
        atomic_fetch_add(&l->wire_bytes, s->bytes);
        if (r->gathers)
            memcpy(r->batch->features + r->pos[record->first + i] * l->row_bytes,
                   r->slot + (record->first + i) * l->row_bytes, l->row_bytes);
    }
    if (r->route->direct)
        fetch_samples_done(r, record->first, record->count, images);
    else if (record->count)
        suffix_submit(r, record->first, record->count);
    return 0;
}

static void again_add(struct hapi_loader *l, struct request *r)
{
    for (uint32_t i = 0; i < r->n; i++) {
        uint32_t at = r->pos[i];
        bool passed_on = r->batch->tried[at] >> r->node->number & 1; /* by replica_another() */
        if (!r->batch->done[at] && !passed_on)
            fetch_again(l, r->batch, at);
    }
    atomic_fetch_add(&l->n_reissued, 1);
}

void fetch_request_settle(struct request *r)
{
    struct hapi_loader *l = r->node->l;

    if (!r->active || !r->terminal || r->jobs)
        return;
    r->active = false;
    r->node->in_flight--;
    replica_answered(r);
    routes_over(r->routes, l);
    if (r->lost && !l->failure.set)
        again_add(l, r);
    else
        r->node->attempts = 0;
    fetch_pump(l);
}

/* The node says that a request failed as a whole, and by the control channel why, which may come later. */
static void part_failed(struct request *r)
{
    struct loader_node *n = r->node;

    if (!n->refused) {
        n->refused = r->record->status;
        n->refused_ns = hapi_clock_ns();
    }
    if (n->last.code)
        fetch_refused(n);
}

void fetch_refused(struct loader_node *n)
{
    struct hapi_err err = {0};

    if (!n->refused)
        return;
    hapi_err_set(&err, n->refused, 0, "%s refuses a request: %.400s", n->name,
                 n->last.code ? n->last.text : hapi_err_meaning(n->refused));
    loader_fail(n->l, &err);
}

static bool all_seen(const struct request *r)
{
    for (uint32_t i = 0; i < r->n; i++)
        if (!r->seen[i])
            return false;
    return true;
}

void fetch_imm(struct loader_node *n, uint32_t imm)
{
    uint32_t index = imm >> 16, part = imm & 0xffff;
    struct hapi_err err = {0};

    n->granted--;
    n->progress_ns = hapi_clock_ns();
    struct request *r = index < NODE_REQUESTS ? &n->requests[index] : NULL;
    if (!r || !r->active || r->terminal || part != r->parts || part >= r->n) {
        node_break(n, HAPI_EPROTO, "an immediate that answers no request");
        return;
    }
    r->parts++;
    atomic_fetch_add(&n->l->n_arrived, 1);
    int rc = part_take(r, part, &err);
    if (!rc)
        observe_part(r);
    if (!rc && !r->record->status)
        rc = part_samples(r, &err);
    if (rc) {
        node_break(n, err.code, err.text);
        return;
    }
    if (r->record->status)
        part_failed(r);
    if (!(r->record->flags & HAPI_RECORD_TERMINAL))
        return;
    if (!r->record->status && !all_seen(r)) {
        node_break(n, HAPI_EPROTO, "a request ended with samples missing");
        return;
    }
    suffix_flush(r);
    observe_request(r);
    r->terminal = true;
    fetch_request_settle(r);
}

/* ------------------------------------------------------------------ loss */

void fetch_lost(struct loader_node *n)
{
    fetch_refused(n);
    n->granted = 0;
    for (int i = 0; i < NODE_REQUESTS; i++) {
        struct request *r = &n->requests[i];
        if (!r->active)
            continue;
        /* With its last record here all samples are on their way: only the others are asked for anew, and not
         * before the suffix jobs are done that write to the same places. */
        r->lost |= !r->terminal;
        r->terminal = true;
        fetch_request_settle(r);
    }
    fetch_pump(n->l);
}

/* Silence is no part of any request for so long: a slow network is not silent, however much waits in its
 * queue. */
void fetch_timeouts(struct hapi_loader *l)
{
    int64_t since = hapi_clock_ns() - l->o.request_timeout_ms * HAPI_NS_PER_MS;

    for (uint32_t i = 0; i < l->n_nodes; i++) {
        struct loader_node *n = &l->nodes[i];
        bool waiting = false;
        for (int k = 0; k < NODE_REQUESTS; k++)
            waiting |= n->requests[k].active && !n->requests[k].terminal;
        if (n->refused_ns && n->refused_ns < hapi_clock_ns() - WORD_MS * HAPI_NS_PER_MS)
            fetch_refused(n);
        if (waiting && n->state == NODE_UP && n->progress_ns < since)
            node_break(n, HAPI_ETIMEDOUT, "it answers no request (request_timeout_ms)");
    }
}
