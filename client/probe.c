/* Requests to one node, and what comes back. */
#include "probe.h"

#include <stdio.h>
#include <string.h>

#include "clock.h"
#include "int8.h"
#include "store.h"

enum { ANSWER_S = 120 }; /* until one answer: the node may compile the prefix first */

/* ------------------------------------------------------------------ what is asked for */

uint32_t probe_most(const struct probe *p, const struct hapi_cut *cut, enum hapi_dtype wire)
{
    uint64_t row = 0, one;
    uint32_t most = p->limits.micro_batch < PROBE_SAMPLES ? p->limits.micro_batch : PROBE_SAMPLES;

    for (uint32_t i = 0; i < cut->n_tensors; i++) {
        if (cut->n_tensors > HAPI_CUT_TENSORS || hapi_wire_row(&cut->tensors[i].shape, wire, &one))
            return 0;
        row += (one + 63) & ~63ULL;
    }
    return row && p->limits.send_area / row < most ? (uint32_t)(p->limits.send_area / row) : most;
}

static uint32_t bytes_of(const struct hapi_catalog *c, uint32_t sample)
{
    const struct hapi_catalog_object *o = &c->objects[c->sample_object[sample]];
    return o->sample_bytes[sample - o->first_sample];
}

static void sample_add(struct probe_slot *s, uint32_t sample)
{
    const struct hapi_catalog *c = s->probe->job->catalog;
    const struct hapi_catalog_object *o = &c->objects[c->sample_object[sample]];
    struct hapi_request *q = &s->req;
    uint32_t k = 0;

    while (k < q->n_objects && s->objects[k].name.s != o->name)
        k++;
    if (k == q->n_objects)
        s->objects[q->n_objects++] =
            (struct hapi_req_object){.name = {o->name, (uint32_t)strlen(o->name)}, .digest = o->digest};
    s->samples[q->n_samples++] = (struct hapi_req_sample){(uint16_t)k, sample - o->first_sample};
}

/* The next n of the order that the node has and that fit into `room` together. */
static int samples_take(struct probe_slot *s, uint32_t n, size_t room, struct hapi_err *err)
{
    struct probe *p = s->probe;
    const struct hapi_catalog *c = p->job->catalog;
    size_t used = 0;

    for (uint32_t looked = 0; s->req.n_samples < n && looked < c->n_samples + n; looked++) {
        uint32_t sample = p->job->order[p->cursor++ % c->n_samples], bytes = bytes_of(c, sample);
        size_t need = (hapi_read_capacity(bytes) + 4095) & ~(size_t)4095;
        if (!bytes || !(c->objects[c->sample_object[sample]].nodes >> p->number & 1) || need > room - used)
            continue;
        used += need;
        sample_add(s, sample);
    }
    return s->req.n_samples == n ? 0
                                 : hapi_err_set(err, HAPI_ETOOBIG, 0,
                                                "node %s: no %u samples of %s fit what it reads for a "
                                                "micro-batch (--read-area)",
                                                p->name, n, p->job->dataset);
}

static uint64_t remote(const struct probe *p, const void *at)
{
    return p->remote_base + (uint64_t)((const uint8_t *)at - p->slab.base);
}

static int cut_fill(struct probe_slot *s, const struct probe_ask *ask, struct hapi_err *err)
{
    const struct probe *p = s->probe;
    struct hapi_request *q = &s->req;
    uint8_t *at = s->payload;

    memcpy(q->model_hash, p->job->model_hash, HAPI_HASH_SIZE);
    q->transform = (struct hapi_str){p->job->transform, (uint32_t)strlen(p->job->transform)};
    q->compute_dtype = p->job->dtype;
    q->wire_dtype = ask->wire;
    q->layout = HAPI_LAYOUT_NHWC;
    q->micro_batch = ask->n;
    q->n_cut = q->n_windows = ask->cut->n_tensors;
    for (uint32_t i = 0; i < q->n_cut; i++) {
        uint64_t row;
        if (hapi_wire_row(&ask->cut->tensors[i].shape, ask->wire, &row) ||
            row * ask->n > p->slot_bytes - (size_t)(at - s->payload))
            return hapi_err_set(err, HAPI_ETOOBIG, 0, "%u images at cut %s are too large", ask->n,
                                ask->cut->id);
        q->cut[i] = (struct hapi_str){ask->cut->tensors[i].name, (uint32_t)strlen(ask->cut->tensors[i].name)};
        q->windows[i] = (struct hapi_window_ref){
            .key = p->key, .base = remote(p, at), .stride = row, .capacity = ask->n * row};
        at += ask->n * row;
    }
    return 0;
}

static int request_fill(struct probe_slot *s, const struct probe_ask *ask, struct hapi_err *err)
{
    struct probe *p = s->probe;

    s->req = (struct hapi_request){
        .index = (uint16_t)(s - p->slots),
        .trace_id = ++p->generation,
        .dataset = {p->job->dataset, (uint32_t)strlen(p->job->dataset)},
        .max_parts = ask->n,
        .flags = p->limits.cache ? HAPI_REQ_FRESH : 0, /* how long it takes is what is asked */
        .n_windows = 1,
        .record_key = p->key,
        .record_base = remote(p, s->records),
        .record_bytes = ask->n * p->record_slot,
        .objects = s->objects,
        .samples = s->samples,
    };
    s->req.windows[0] =
        (struct hapi_window_ref){.key = p->key, .base = remote(p, s->payload), .capacity = p->slot_bytes};
    int rc = ask->cut ? cut_fill(s, ask, err) : 0;
    return rc ? rc : samples_take(s, ask->n, ask->cut ? p->limits.read_area : p->slot_bytes, err);
}

/* ------------------------------------------------------------------ out */

static void sent(struct hapi_conn *c, struct hapi_conn_op *op, int status)
{
    (void)c;
    (void)status; /* a failed one is followed by on_close */
    ((struct probe_slot *)((char *)op - offsetof(struct probe_slot, op)))->sending = false;
}

/* Immediates that requests under way may still cause. */
static int credit_take(struct probe *p, uint32_t parts)
{
    uint32_t owed = parts;

    for (uint32_t i = 0; i < p->n_slots; i++)
        if (p->slots[i].active)
            owed += p->slots[i].req.max_parts - p->slots[i].answer->n_parts;
    int rc = owed > p->granted ? hapi_conn_grant(p->conn, owed - p->granted) : 0;
    if (!rc && owed > p->granted)
        p->granted = owed;
    return rc;
}

int probe_start(struct probe *p, const struct probe_ask *ask, struct probe_answer *answer,
                struct hapi_err *err)
{
    struct probe_slot *s = NULL;

    for (uint32_t i = 0; i < p->n_slots && !s; i++)
        s = p->slots[i].active || p->slots[i].sending ? NULL : &p->slots[i];
    if (p->err.code || !p->conn) {
        *err = p->err;
        return err->code;
    }
    if (!s)
        return hapi_err_set(err, HAPI_EBUSY, 0, "node %s: %u requests are under way", p->name, p->n_slots);
    if (!ask->n || ask->n > PROBE_SAMPLES)
        return hapi_err_set(err, HAPI_EINVAL, 0, "a request of %u samples", ask->n);
    int rc = request_fill(s, ask, err);
    if (rc)
        return rc;
    int bytes = hapi_request_encode(&s->req, s->message, HAPI_REQUEST_MAX);
    answer->status = 0;
    answer->n = ask->n;
    answer->n_parts = 0;
    s->answer = answer;
    s->op.on_done = sent;
    rc = bytes < 0 ? bytes : credit_take(p, ask->n);
    answer->sent_ns = hapi_clock_ns();
    rc = rc ? rc : hapi_conn_send(p->conn, s->message, (size_t)bytes, &s->op);
    if (rc)
        return hapi_err_set(err, rc, 0, "node %s: cannot send a request: %s", p->name, hapi_err_meaning(rc));
    s->active = s->sending = true;
    return 0;
}

/* ------------------------------------------------------------------ in */

static void part_keep(struct probe_slot *s, int64_t now)
{
    const struct hapi_record *r = s->record;
    struct probe_answer *a = s->answer;
    struct probe_part *part = &a->parts[a->n_parts++];

    *part = (struct probe_part){.count = r->count, .arrived_ns = now, .bytes = r->size};
    for (int i = 0; i < PROBE_NS; i++)
        part->ns[i] = (int64_t)r->stage_ns[i];
    for (uint32_t i = 0; i < r->count; i++) {
        const struct hapi_record_sample *x = &r->samples[i];
        a->images[r->first + i].status = x->status;
        if (x->status)
            continue;
        if (!s->req.n_cut) {
            a->images[r->first + i].data = s->payload + x->offset;
            a->images[r->first + i].bytes = x->bytes;
            part->bytes += x->bytes;
        }
        for (uint32_t k = 0; k < s->req.n_cut; k++)
            part->bytes += s->req.windows[k].stride;
    }
    if (r->status && !a->status) {
        a->status = r->status;
        const char *said = s->probe->said.text[0] ? s->probe->said.text : hapi_err_meaning(r->status);
        snprintf(a->why, sizeof a->why, "%s", said);
        s->probe->said.text[0] = '\0';
    }
}

void probe_imm(struct probe *p, uint32_t imm)
{
    uint32_t index = imm >> 16, part = imm & 0xffff;
    int64_t now = hapi_clock_ns();
    struct hapi_err err = {0};

    p->granted--;
    struct probe_slot *s = index < p->n_slots ? &p->slots[index] : NULL;
    if (!s || !s->active || part != s->answer->n_parts || part >= s->req.max_parts) {
        probe_fail(p, HAPI_EPROTO, "an immediate that answers no request");
        return;
    }
    /* Checked in our own copy: what a node can still write is checked in vain. */
    memcpy(s->record, s->records + part * p->record_slot, p->record_slot);
    int rc = hapi_record_check(s->record, p->record_slot, &s->req, p->job->catalog->n_node_classes[p->number],
                               &err);
    if (!rc && (s->record->generation != s->req.trace_id || s->record->part != part))
        rc = hapi_err_set(&err, HAPI_EPROTO, 0, "a stale record");
    if (rc) {
        probe_fail(p, rc, err.text);
        return;
    }
    part_keep(s, now);
    s->active = !(s->record->flags & HAPI_RECORD_TERMINAL);
}

static bool under_way(const struct probe *p)
{
    for (uint32_t i = 0; i < p->n_slots; i++)
        if (p->slots[i].active || p->slots[i].sending)
            return true;
    return false;
}

int probe_wait(struct probe *p, struct hapi_err *err)
{
    int64_t until = hapi_clock_ns() + ANSWER_S * HAPI_NS_PER_S;

    while (under_way(p) && !p->err.code) {
        struct hapi_err why = {0};
        if (hapi_loop_run_once(p->job->loop, HAPI_NS_PER_S, &why))
            probe_fail(p, why.code, why.text);
        if (hapi_clock_ns() > until)
            probe_fail(p, HAPI_ETIMEDOUT, "it answers no request");
    }
    if (p->err.code && err)
        *err = p->err;
    return p->err.code;
}
