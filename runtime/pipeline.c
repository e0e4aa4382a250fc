#include "pipeline.h"

#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "log.h"
#include "runtime.h"

static void enter_read(struct hapi_batch *b);
static void enter_compute(struct hapi_batch *b);
static void enter_send(struct hapi_batch *b);
static void enter_free(struct hapi_batch *b);

static void (*const enter[])(struct hapi_batch *b) = {
    [HAPI_BATCH_FREE] = enter_free,
    [HAPI_BATCH_READ] = enter_read,
    [HAPI_BATCH_COMPUTE] = enter_compute,
    [HAPI_BATCH_SEND] = enter_send,
};

/* The only way from stage to stage. The batch's whereabouts are unknown after it: it may be FREE again. */
static void advance(struct hapi_batch *b, enum hapi_batch_stage to)
{
    b->stage = to;
    b->since_ns = hapi_clock_ns();
    enter[to](b);
}

/* ------------------------------------------------------------------ the pool */

static size_t record_bytes(uint32_t samples)
{
    return (hapi_record_size(samples) + 4095) & ~(size_t)4095;
}

size_t hapi_batches_bytes(const struct hapi_config *c)
{
    return c->batches * (record_bytes(hapi_remember_samples(c)) + ((c->read_area + 4095) & ~4095ULL) +
                         ((c->send_area + 4095) & ~4095ULL));
}

int hapi_batches_open(struct hapi_rt *rt, struct hapi_err *err)
{
    const struct hapi_config *c = &rt->cfg;
    uint32_t n = hapi_remember_samples(c);

    rt->batches = calloc(c->batches, sizeof *rt->batches);
    if (!rt->batches)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for %u micro-batches", c->batches);
    for (uint32_t i = 0; i < c->batches; i++) {
        struct hapi_batch *b = &rt->batches[i];
        b->rt = rt;
        b->record = hapi_slab_take(&rt->slab, record_bytes(n), 4096);
        b->read_area = hapi_slab_take(&rt->slab, c->read_area, 4096);
        b->send_area = hapi_slab_take(&rt->slab, c->send_area, 4096);
        b->device_area = rt->direct.base ? (uint8_t *)rt->direct.base + i * c->send_area : NULL;
        b->reads = calloc(n, sizeof *b->reads);
        b->images = calloc(n, sizeof *b->images);
        b->packed = calloc(n, sizeof *b->packed);
        b->rows = calloc(n, sizeof *b->rows);
        if (!b->record || !b->read_area || !b->send_area || !b->reads || !b->images || !b->packed || !b->rows)
            return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for micro-batch %u of %u", i, c->batches);
        for (uint32_t k = 0; k < n; k++)
            b->rows[k].batch = b;
        b->next = rt->free_batches;
        rt->free_batches = b;
    }
    return 0;
}

void hapi_batches_close(struct hapi_rt *rt)
{
    for (uint32_t i = 0; rt->batches && i < rt->cfg.batches; i++) {
        free(rt->batches[i].reads);
        free(rt->batches[i].images);
        free(rt->batches[i].packed);
        free(rt->batches[i].rows);
    }
    free(rt->batches);
}

/* ------------------------------------------------------------------ READ */

const struct hapi_sample_info *hapi_service_sample(const struct hapi_service *v, uint32_t i)
{
    const struct hapi_req_sample *s = &v->req.samples[i];
    int64_t object = v->object[s->object];

    if (object < 0 || s->index >= v->dataset->objects[object].n_samples)
        return NULL;
    return &v->dataset->samples[v->dataset->objects[object].first_sample + s->index];
}

/* That will travel, as far as it is known before anything is read. */
static uint64_t payload_bytes(const struct hapi_batch *b)
{
    const struct hapi_service *v = b->service;
    uint64_t bytes = v->prefix ? b->count * v->prefix->row_total : 0;

    for (uint32_t i = 0; !v->prefix && i < b->count; i++) {
        const struct hapi_sample_info *info = hapi_service_sample(v, b->first + i);
        bytes += info ? info->bytes : 0;
    }
    return bytes;
}

static void read_done(struct hapi_read *r)
{
    struct hapi_batch *b = r->user;
    struct hapi_image *m = &b->images[r - b->reads];

    m->status = r->status;
    m->data = r->data;
    m->bytes = r->bytes;
    b->rt->counters.read_bytes += r->status ? 0 : r->bytes;
    hapi_batch_read_over(b);
}

/* Something is to be decoded and computed, or checked. */
static bool needs_thread(const struct hapi_batch *b)
{
    bool network = b->service->prefix != NULL, check = b->service->req.flags & HAPI_REQ_CHECKSUM;

    for (uint32_t i = 0; i < b->count; i++)
        if (!b->images[i].status && (check || (network && b->rows[i].source == HAPI_ROW_COMPUTED)))
            return true;
    return false;
}

void hapi_batch_read_over(struct hapi_batch *b)
{
    if (--b->reads_left)
        return;
    if (hapi_remember_redo(b)) {
        b->again = true;
        advance(b, HAPI_BATCH_READ);
        return;
    }
    b->ns[HAPI_NS_READ] = hapi_clock_ns() - b->since_ns;
    advance(b, needs_thread(b) ? HAPI_BATCH_COMPUTE : HAPI_BATCH_SEND);
}

/* Starts the read of sample i; its image has a status when it cannot be. */
static int read_start(struct hapi_batch *b, uint32_t i, const struct hapi_sample_info *info, size_t at)
{
    const struct hapi_service *v = b->service;
    const struct hapi_req_object *o = &v->req.objects[v->req.samples[b->first + i].object];
    struct hapi_read *r = &b->reads[i];

    *r = (struct hapi_read){
        .dataset = v->dataset,
        .object = (uint32_t)v->object[v->req.samples[b->first + i].object],
        .offset = info->offset,
        .bytes = info->bytes,
        .buf = b->read_area + at,
        .capacity = hapi_read_capacity(info->bytes),
        .expect_digest = o->digest,
        .done = read_done,
        .user = b,
    };
    if (o->version.n && o->version.n <= HAPI_VERSION_MAX) {
        r->expect.size = (uint8_t)o->version.n;
        memcpy(r->expect.data, o->version.s, o->version.n);
    }
    return hapi_store_read(b->rt->store, r);
}

static void enter_read(struct hapi_batch *b)
{
    struct hapi_service *v = b->service;
    size_t at = 0;
    uint32_t i, want = b->count;

    b->reads_left = 1; /* ours, so that no completion ends the stage before the last read is started */
    for (i = 0; i < want; i++) {
        const struct hapi_sample_info *info = hapi_service_sample(v, b->first + i);
        size_t need = info ? hapi_read_capacity(info->bytes) : 0;
        bool fits = need <= b->rt->cfg.read_area - at;
        if (b->rows[i].source != HAPI_ROW_COMPUTED) {
            hapi_remember_read(b, i);
            continue;
        }
        if (!fits && i && !b->again)
            break; /* the rest goes into the next micro-batch */
        b->images[i] = (struct hapi_image){.status = !info          ? HAPI_ENOENT
                                                     : !fits        ? HAPI_ETOOBIG
                                                     : !info->bytes ? HAPI_EDECODE
                                                                    : read_start(b, i, info, at)};
        if (b->images[i].status)
            continue;
        b->reads_left++;
        at += (need + 4095) & ~(size_t)4095;
        at = at < b->rt->cfg.read_area ? at : b->rt->cfg.read_area;
    }
    hapi_remember_trim(b, i);
    b->count = i;
    if (!b->again) {
        v->formed = b->first + i;
        hapi_tenant_sends(v->session->tenant, payload_bytes(b), hapi_clock_ns());
    }
    hapi_batch_read_over(b); /* ours */
}

bool hapi_batch_start(struct hapi_rt *rt, struct hapi_service *v)
{
    struct hapi_batch *b = rt->free_batches;
    int64_t now = hapi_clock_ns();

    if (!b)
        return false;
    rt->free_batches = b->next;
    b->service = v;
    b->first = v->formed;
    b->status = v->status;
    b->posted = b->left = b->again = false;
    b->n_computed = b->n_keeps = b->writes = 0;
    memset(b->ns, 0, sizeof b->ns);
    b->wait_ns = 0;
    b->ns[HAPI_NS_QUEUE] = now - v->arrived_ns;
    v->refs++;
    v->unsent++;
    if (v->prefix)
        hapi_prefix_enter(v->prefix);
    v->session->batches++;
    uint32_t left = v->status ? 0 : v->req.n_samples - v->formed;
    b->count =
        hapi_remember_form(b, left, v->prefix ? (uint32_t)v->prefix->micro_batch : rt->cfg.micro_batch);
    hapi_sched_charge(b);
    if (v->status) /* the error part: no samples, terminal */
        v->formed = v->req.n_samples;
    advance(b, v->status ? HAPI_BATCH_SEND : HAPI_BATCH_READ);
    return true;
}

/* ------------------------------------------------------------------ COMPUTE */

static void compute_submit(struct hapi_batch *b);

/* To whoever waits longest for one of this prefix. */
static void plan_give(struct hapi_rt *rt, struct hapi_prefix *p, struct hapi_plan *plan)
{
    struct hapi_batch **at = &rt->want_plan, *b;

    while (*at && (*at)->service->prefix != p)
        at = &(*at)->next;
    b = *at;
    if (!b) {
        hapi_prefix_plan_give(p, plan);
        return;
    }
    *at = b->next;
    b->plan = plan;
    compute_submit(b);
}

/* Said once, twice, four times ... : what a GPU cannot get over fails every micro-batch from then on. */
static void device_failed(struct hapi_rt *rt, const struct hapi_err *why)
{
    char quoted[HAPI_ERR_TEXT];
    uint64_t n = ++rt->counters.device_errors;

    if (!(n & (n - 1)))
        hapi_log(HAPI_LOG_ERROR, "a run on the GPU failed", "times=%llu why=%s", (unsigned long long)n,
                 hapi_log_quote(quoted, sizeof quoted, why->text));
}

static void compute_done(struct hapi_job *job)
{
    struct hapi_batch *b = (struct hapi_batch *)((char *)job - offsetof(struct hapi_batch, job));
    struct hapi_plan *plan = b->plan;
    bool check = false;

    if (plan && b->computed && !b->status) {
        struct hapi_err err;
        hapi_worker_unpack(b);
        b->status = hapi_plan_finish(plan, &err);
        if (b->status)
            device_failed(b->rt, &err);
        check = !b->status && (b->n_keeps || b->service->req.flags & HAPI_REQ_CHECKSUM);
    }
    b->plan = NULL;
    if (plan)
        plan_give(b->rt, b->service->prefix, plan);
    if (check) /* by a compute thread again */
        compute_submit(b);
    else
        advance(b, HAPI_BATCH_SEND);
}

static void compute_submit(struct hapi_batch *b)
{
    b->job = (struct hapi_job){.run = hapi_worker_run, .done = compute_done};
    int rc = hapi_pool_submit(b->rt->pool, &b->job);
    if (rc) { /* cannot be: every queue holds all batches */
        b->status = rc;
        advance(b, HAPI_BATCH_SEND);
    }
}

static void enter_compute(struct hapi_batch *b)
{
    struct hapi_prefix *p = b->service->prefix;
    struct hapi_batch **last = &b->rt->want_plan;

    bool starts = p && p->starts && b->n_computed;

    b->computed = p && !b->n_computed;
    hapi_remember_reserve(b);
    b->plan = starts ? hapi_prefix_plan_take(p) : NULL;
    if (!starts || b->plan) {
        compute_submit(b);
        return;
    }
    while (*last)
        last = &(*last)->next;
    b->next = NULL;
    *last = b;
}

/* ------------------------------------------------------------------ SEND */

static void record_fill(struct hapi_batch *b)
{
    struct hapi_service *v = b->service;
    struct hapi_record *r = b->record;

    r->magic = HAPI_RECORD_MAGIC;
    r->size = (uint32_t)hapi_record_size(b->count);
    r->request = v->req.index;
    r->part = (uint16_t)v->parts;
    r->major = HAPI_PROTO_MAJOR;
    r->first = b->first;
    r->count = b->count;
    r->status = b->status;
    r->label_encoding = HAPI_LABEL_CLASS_U32;
    r->n_windows = (uint16_t)v->req.n_windows;
    r->wait_us =
        b->wait_ns / HAPI_NS_PER_US < UINT32_MAX ? (uint32_t)(b->wait_ns / HAPI_NS_PER_US) : UINT32_MAX;
    r->generation = v->req.trace_id;
    r->flags = v->req.flags & HAPI_REQ_CHECKSUM ? HAPI_RECORD_CHECKSUM : 0;
    for (uint32_t i = 0; i < b->count; i++) {
        const struct hapi_sample_info *info = hapi_service_sample(v, b->first + i);
        struct hapi_record_sample *s = &r->samples[i];
        *s = (struct hapi_record_sample){.status = b->images[i].status, .label = info ? info->class_id : 0};
        if (s->status || b->status)
            continue;
        s->offset = v->prefix ? (b->first + i) * v->req.windows[0].stride : v->raw_offset[b->first + i];
        s->bytes = (uint32_t)(v->prefix ? v->prefix->row_bytes[0] : b->images[i].bytes);
    }
}

static void stages_count(const struct hapi_batch *b)
{
    const int64_t ns[] = {
        [HAPI_METRIC_QUEUE] = b->ns[HAPI_NS_QUEUE],
        [HAPI_METRIC_READ] = b->ns[HAPI_NS_READ],
        [HAPI_METRIC_WAIT] = b->wait_ns,
        [HAPI_METRIC_DECODE] = b->ns[HAPI_NS_DECODE],
        [HAPI_METRIC_COMPUTE] = b->ns[HAPI_NS_COMPUTE],
        [HAPI_METRIC_CONVERT] = b->ns[HAPI_NS_CONVERT],
    };

    for (int i = 0; i < HAPI_METRIC_SEND; i++)
        if (i == HAPI_METRIC_QUEUE || ns[i]) /* raw objects skip some */
            hapi_histogram_add(&b->rt->counters.stage[i], ns[i]);
    for (int i = HAPI_METRIC_DECODE; i <= HAPI_METRIC_CONVERT; i++)
        b->service->session->tenant->thread_ns += (uint64_t)ns[i];
}

/* A bad sample ends a fail-fast request; counted in every case. */
static void samples_judge(struct hapi_batch *b)
{
    struct hapi_service *v = b->service;
    struct hapi_counters *c = &b->rt->counters;
    struct hapi_tenant *t = v->session->tenant;

    for (uint32_t i = 0; i < b->count; i++) {
        int status = b->images[i].status;
        c->samples += !status;
        c->bad_samples += status != 0;
        t->samples += !status;
        t->bad_samples += status != 0;
        if (status && !b->status && v->req.flags & HAPI_REQ_FAIL_FAST)
            b->status = status;
    }
    stages_count(b);
}

const uint8_t *hapi_batch_row(const struct hapi_batch *b, uint32_t i, uint32_t t)
{
    const struct hapi_prefix *p = b->service->prefix;
    const struct hapi_batch_row *row = &b->rows[i];

    return row->source == HAPI_ROW_COMPUTED ? b->out[t] + row->nth * p->row_bytes[t]
                                            : row->data + p->row_at[t];
}

/* Posts the payload of the batch from where it stopped. HAPI_EBUSY: the connection is full. */
static int payload_post(struct hapi_batch *b)
{
    struct hapi_service *v = b->service;
    struct hapi_conn *c = v->session->conn;
    uint32_t tensors = v->prefix ? v->prefix->n_tensors : 1;

    for (; !b->status && b->sent_tensors < tensors; b->sent_tensors++, b->sent_samples = 0) {
        const struct hapi_window_ref *w = &v->req.windows[b->sent_tensors];
        uint64_t row = v->prefix ? v->prefix->row_bytes[b->sent_tensors] : 0;
        while (b->sent_samples < b->count) {
            uint32_t i = b->sent_samples, n = 1;
            const uint8_t *from = v->prefix ? hapi_batch_row(b, i, b->sent_tensors) : b->images[i].data;
            uint64_t to = w->base + (v->prefix ? (b->first + i) * w->stride : v->raw_offset[b->first + i]);
            uint64_t bytes = v->prefix ? row : b->images[i].bytes;
            bool nothing = !bytes || b->images[i].status;
            while (!nothing && v->prefix && w->stride == row &&
                   i + n < b->count && /* dense on both sides: one write */
                   hapi_batch_row(b, i + n, b->sent_tensors) == from + n * row)
                n++;
            bytes *= n;
            int rc = nothing ? 0 : hapi_conn_write(c, from, bytes, to, w->key, NULL);
            if (rc)
                return rc;
            b->rt->counters.wire_bytes += nothing ? 0 : bytes;
            v->session->tenant->wire_bytes += nothing ? 0 : bytes;
            b->sent_samples += n;
        }
    }
    return 0;
}

/* What is written to disk still needs its memory. */
static void leave(struct hapi_batch *b)
{
    b->left = true;
    if (!b->writes)
        advance(b, HAPI_BATCH_FREE);
}

void hapi_batch_written(struct hapi_batch *b)
{
    struct hapi_rt *rt = b->rt;

    if (--b->writes || !b->left)
        return;
    advance(b, HAPI_BATCH_FREE);
    hapi_sched_pump(rt);
}

static void send_done(struct hapi_conn *c, struct hapi_conn_op *op, int status)
{
    struct hapi_batch *b = (struct hapi_batch *)((char *)op - offsetof(struct hapi_batch, op));
    struct hapi_rt *rt = b->rt;

    (void)status; /* a failed one is followed by the connection's on_close */
    b->ns[HAPI_NS_SEND] = hapi_clock_ns() - b->since_ns;
    hapi_histogram_add(&rt->counters.stage[HAPI_METRIC_SEND], b->ns[HAPI_NS_SEND]);
    b->service->session->sent_ns = hapi_clock_ns();
    leave(b);
    hapi_batches_continue(rt, c);
    hapi_sched_pump(rt);
}

static int record_post(struct hapi_batch *b)
{
    struct hapi_service *v = b->service;
    uint64_t slot = v->req.record_bytes / v->req.max_parts;
    bool last = v->unsent == 1 && v->formed == v->req.n_samples;

    /* The client has no room for the parts that this node needs: this one must end the request. */
    if (!last && v->parts + 1 >= v->req.max_parts)
        b->status = b->status ? b->status : HAPI_ETOOBIG;
    record_fill(b);
    if (last || b->status)
        b->record->flags |= HAPI_RECORD_TERMINAL;
    b->record->crc32c = b->crc32c;
    for (int i = 0; i < HAPI_NS_SEND; i++)
        b->record->stage_ns[i] = (uint64_t)b->ns[i];
    b->record->stage_ns[HAPI_NS_SEND] = (uint64_t)b->since_ns;
    b->op.on_done = send_done;
    int rc = hapi_conn_write_imm(v->session->conn, b->record, b->record->size,
                                 v->req.record_base + v->parts * slot, v->req.record_key,
                                 hapi_imm(v->req.index, (uint16_t)v->parts), &b->op);
    if (rc)
        return rc;
    b->rt->counters.wire_bytes += b->record->size;
    v->session->tenant->wire_bytes += b->record->size;
    b->rt->counters.parts++;
    b->posted = true;
    v->parts++;
    v->unsent--;
    if (b->record->flags & HAPI_RECORD_TERMINAL)
        hapi_service_finish(v);
    return 0;
}

/* Goes on with the posting; gives the batch back when nobody waits for it any more. */
static void send_continue(struct hapi_batch *b)
{
    struct hapi_service *v = b->service;

    if (v->finished || !v->session->conn) {
        leave(b);
        return;
    }
    int rc = payload_post(b);
    if (!rc)
        rc = record_post(b);
    if (rc && rc != HAPI_EBUSY) /* the connection is broken: its on_close will come and free the batch */
        hapi_conn_close(v->session->conn);
}

static void enter_send(struct hapi_batch *b)
{
    hapi_sched_computed(b);
    if (b->service->session->sending++ == 0)
        b->service->session->sent_ns = b->since_ns;
    b->sent_tensors = b->sent_samples = 0;
    hapi_remember_commit(b);
    samples_judge(b);
    send_continue(b);
}

void hapi_batches_continue(struct hapi_rt *rt, struct hapi_conn *c)
{
    for (uint32_t i = 0; i < rt->cfg.batches; i++) {
        struct hapi_batch *b = &rt->batches[i];
        if (b->stage == HAPI_BATCH_SEND && !b->posted && !b->left &&
            (!b->service->session->conn || b->service->session->conn == c))
            send_continue(b);
    }
}

/* ------------------------------------------------------------------ FREE */

static void enter_free(struct hapi_batch *b)
{
    struct hapi_service *v = b->service;

    hapi_sched_settle(b);
    hapi_remember_release(b);
    if (!b->posted)
        v->unsent--;
    v->refs--;
    if (v->prefix)
        hapi_prefix_leave(v->prefix);
    v->session->batches--;
    v->session->sending--;
    b->service = NULL;
    b->next = b->rt->free_batches;
    b->rt->free_batches = b;
    if (v->finished)
        hapi_service_finish(v);
}
