/*
 * From an address to a data connection.
 *
 *     CONNECTING ─hello─> LISTING ─> LISTED    (the caller waits for all nodes here)
 *     OFFERING ─model─> ASKING ─limits─> OPENING ─data connection─> UP
 */
#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "probe.h"

enum { WAIT_S = 120 }; /* for one step: a large model is hashed and parsed meanwhile */

static struct probe *probe_of(struct hapi_control *c)
{
    return hapi_control_user(c);
}

void probe_fail(struct probe *p, int code, const char *why)
{
    if (!p->err.code)
        hapi_err_set(&p->err, code, 0, "node %s: %.400s", p->name, why);
}

static void send(struct probe *p, enum hapi_message type, const void *body, int bytes)
{
    int rc = bytes < 0 ? bytes : hapi_control_send(p->control, type, body, (size_t)bytes);
    if (rc)
        probe_fail(p, rc, "cannot send on the control channel");
}

static void send_text(struct probe *p, enum hapi_message type)
{
    struct hapi_msg_text m = {.id = type};
    uint8_t buf[64];

    send(p, type, buf, hapi_msg_text_encode(&m, buf, sizeof buf));
}

/* ------------------------------------------------------------------ what it has */

static void ask_index(struct probe *p, uint64_t first)
{
    const char *name = p->job->dataset;
    struct hapi_msg_index m = {
        .id = HAPI_MSG_INDEX, .dataset = {name, (uint32_t)strlen(name)}, .first = first};
    uint8_t buf[512];

    p->index_from = first;
    send(p, HAPI_MSG_INDEX, buf, hapi_msg_index_encode(&m, buf, sizeof buf));
}

static void on_list(struct probe *p, const void *body, size_t size)
{
    struct hapi_list_cursor cursor;
    struct hapi_msg_dataset d;
    struct hapi_err err = {0};
    const char *name = p->job->dataset;

    int rc = hapi_list_open(&cursor, body, size, &err);
    while (!rc && hapi_list_next_dataset(&cursor, &d, &err) == 1) {
        if (d.name.n != strlen(name) || memcmp(d.name.s, name, d.name.n) != 0)
            continue;
        if (d.samples >= UINT32_MAX || d.objects >= UINT32_MAX)
            rc = hapi_err_set(&err, HAPI_ETOOBIG, 0, "its dataset %s is too large", name);
        rc = rc ? rc : hapi_catalog_classes(p->job->catalog, p->number, &d, &err);
        p->index_objects = p->objects_left = d.objects;
        p->samples_left = d.samples;
        if (!rc)
            ask_index(p, 0);
        else
            probe_fail(p, rc, err.text);
        return;
    }
    if (!err.code)
        hapi_err_set(&err, HAPI_ENOENT, 0, "it has no dataset `%s`", name);
    probe_fail(p, err.code, err.text);
}

static void on_index(struct probe *p, const void *body, size_t size)
{
    struct hapi_list_cursor cursor;
    struct hapi_msg_object o;
    struct hapi_err err = {0};

    int rc = hapi_list_open(&cursor, body, size, &err);
    while (!rc && (rc = hapi_list_next_object(&cursor, &o, &err)) == 1) {
        rc = 0;
        if (!p->objects_left || o.samples > p->samples_left)
            rc = hapi_err_set(&err, HAPI_EPROTO, 0, "its index has more in it than it said");
        p->objects_left--;
        p->samples_left -= rc ? 0 : o.samples;
        rc = rc ? rc : hapi_catalog_add(p->job->catalog, p->number, &o, &err);
    }
    if (!rc && cursor.next && (cursor.next <= p->index_from || cursor.next >= p->index_objects))
        rc = hapi_err_set(&err, HAPI_EPROTO, 0, "its index does not end");
    if (rc)
        probe_fail(p, rc, err.text);
    else if (cursor.next)
        ask_index(p, cursor.next);
    else
        p->state = PROBE_LISTED;
}

/* ------------------------------------------------------------------ model and limits */

static void upload_more(struct probe *p)
{
    const struct probe_job *j = p->job;

    while (p->uploaded < j->model_size) {
        size_t left = j->model_size - p->uploaded, bytes = left < PROBE_UPLOAD ? left : PROBE_UPLOAD;
        struct hapi_msg_model m = {
            .id = HAPI_MSG_MODEL_OFFER,
            .size = j->model_size,
            .offset = p->uploaded,
            .bytes = {(const char *)j->model + p->uploaded, (uint32_t)bytes},
        };
        memcpy(m.hash, j->model_hash, HAPI_HASH_SIZE);
        int used = hapi_msg_model_encode(&m, p->upload, PROBE_UPLOAD + 512);
        int rc =
            used < 0 ? used : hapi_control_send(p->control, HAPI_MSG_MODEL_CHUNK, p->upload, (size_t)used);
        if (rc == HAPI_EBUSY)
            return; /* on_drained goes on */
        if (rc) {
            probe_fail(p, rc, "cannot upload the model");
            return;
        }
        p->uploaded += bytes;
    }
}

static void offer(struct probe *p)
{
    struct hapi_msg_model m = {.id = HAPI_MSG_MODEL_OFFER, .size = p->job->model_size};
    uint8_t buf[256];

    p->state = PROBE_OFFERING;
    p->uploaded = p->job->model_size; /* nothing to send unless it is wanted */
    memcpy(m.hash, p->job->model_hash, HAPI_HASH_SIZE);
    send(p, HAPI_MSG_MODEL_OFFER, buf, hapi_msg_model_encode(&m, buf, sizeof buf));
}

static double limit(const cJSON *o, const char *key)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, key);
    return cJSON_IsNumber(v) && v->valuedouble >= 0 ? v->valuedouble : 0;
}

static void open_data(struct probe *p);

static void on_stat(struct probe *p, const void *body, size_t size)
{
    struct hapi_msg_text m;
    struct hapi_err err = {0};

    if (hapi_msg_text_decode(&m, body, size, &err)) {
        probe_fail(p, err.code, err.text);
        return;
    }
    cJSON *o = cJSON_ParseWithLength(m.text.s, m.text.n);
    const cJSON *limits = cJSON_GetObjectItemCaseSensitive(o, "limits");
    const cJSON *kept = cJSON_GetObjectItemCaseSensitive(o, "features");
    const cJSON *gpu = cJSON_GetObjectItemCaseSensitive(o, "gpu_memory");
    p->limits = (struct probe_limits){
        .threads = (uint32_t)limit(limits, "threads"),
        .micro_batch = (uint32_t)limit(limits, "micro_batch"),
        .read_area = (uint64_t)limit(limits, "read_area"),
        .send_area = (uint64_t)limit(limits, "send_area"),
        .memory = (uint64_t)limit(limit(gpu, "reserved") > 0 ? gpu : limits,
                                  limit(gpu, "reserved") > 0 ? "reserved" : "memory"),
        .cache = (uint64_t)(limit(kept, "memory_budget") + limit(kept, "disk_budget")),
    };
    cJSON_Delete(o);
    if (p->limits.threads && p->limits.micro_batch && p->limits.read_area && p->limits.send_area)
        open_data(p);
    else
        probe_fail(p, HAPI_EVERSION, "it does not say its limits: it is older than this program");
}

/* ------------------------------------------------------------------ data connection */

static size_t page(size_t n)
{
    return (n + 4095) & ~(size_t)4095;
}

/* Slots as many as the threads may have to do at once, within a bound of the memory that they take. */
static int memory_take(struct probe *p, struct hapi_err *err)
{
    enum { SLOTS_BYTES = 512 << 20, RAW_BYTES = 4 << 20 };
    size_t raw =
        p->job->catalog->max_sample_bytes > RAW_BYTES ? p->job->catalog->max_sample_bytes : RAW_BYTES;

    p->record_slot = (hapi_record_size(PROBE_SAMPLES) + 63) & ~(size_t)63;
    p->slot_bytes = page(p->limits.send_area > raw ? p->limits.send_area : raw);
    size_t records = page(PROBE_SAMPLES * p->record_slot), all = HAPI_REQUEST_MAX + records + p->slot_bytes;
    p->n_slots = p->limits.threads > 8 ? p->limits.threads : 8;
    p->n_slots = p->n_slots < PROBE_SLOTS ? p->n_slots : PROBE_SLOTS;
    if (p->n_slots * all > SLOTS_BYTES)
        p->n_slots = SLOTS_BYTES / all ? (uint32_t)(SLOTS_BYTES / all) : 1;
    int rc = hapi_slab_init(&p->slab, p->n_slots * all, err);
    for (uint32_t i = 0; i < p->n_slots && !rc; i++) {
        struct probe_slot *s = &p->slots[i];
        s->probe = p;
        s->message = hapi_slab_take(&p->slab, HAPI_REQUEST_MAX, 4096);
        s->records = hapi_slab_take(&p->slab, records, 4096);
        s->payload = hapi_slab_take(&p->slab, p->slot_bytes, 4096);
        s->record = aligned_alloc(64, p->record_slot);
        if (!s->message || !s->records || !s->payload || !s->record)
            rc = hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for requests");
    }
    return rc;
}

static int fabric_open(struct probe *p, const char *kind, struct hapi_err *err)
{
    struct hapi_fabric_options opt = {
        .max_recv = 1, .max_ops = 2 * PROBE_SLOTS, .max_imm = PROBE_SLOTS * PROBE_SAMPLES};

    p->transport = kind;
    return hapi_fabric_open(&p->fabric, p->job->loop, kind, NULL, &opt, err);
}

static void open_data(struct probe *p)
{
    struct hapi_msg_data m = {.id = HAPI_MSG_DATA_OPEN, .max_requests = PROBE_SLOTS};
    struct hapi_err err = {0};
    bool any = !strcmp(p->job->transport, "auto");
    uint8_t buf[512];

    p->state = PROBE_OPENING;
    int rc = memory_take(p, &err);
    if (!rc && any && (!(p->caps & HAPI_CAP_TRANSPORT_VERBS) || fabric_open(p, "verbs", &err)))
        rc = fabric_open(p, "ofi", &err);
    else if (!rc && !any)
        rc = fabric_open(p, p->job->transport, &err);
    if (rc) {
        probe_fail(p, rc, err.text);
        return;
    }
    m.transport = (struct hapi_str){p->transport, (uint32_t)strlen(p->transport)};
    send(p, HAPI_MSG_DATA_OPEN, buf, hapi_msg_data_encode(&m, buf, sizeof buf));
}

static void data_open(struct hapi_conn *c)
{
    struct probe *p = hapi_conn_user(c);
    struct hapi_err err = {0};

    if (hapi_conn_expose(c, p->slab.base, p->slab.size, &p->key, &p->remote_base, &err))
        probe_fail(p, err.code, err.text);
    else
        p->state = PROBE_UP;
}

static void data_imm(struct hapi_conn *c, uint32_t imm)
{
    probe_imm(hapi_conn_user(c), imm);
}

static void data_recv(struct hapi_conn *c, const void *message, size_t size)
{
    (void)message;
    (void)size;
    probe_fail(hapi_conn_user(c), HAPI_EPROTO, "it sends a message on the data connection");
}

static void data_close(struct hapi_conn *c, const struct hapi_err *why)
{
    struct probe *p = hapi_conn_user(c);

    p->conn = NULL;
    probe_fail(p, why->code, why->text);
}

static void on_data_ready(struct probe *p, const void *body, size_t size)
{
    static const struct hapi_conn_handler handler = {
        .on_open = data_open, .on_recv = data_recv, .on_imm = data_imm, .on_close = data_close};
    struct hapi_msg_data m;
    struct hapi_err err = {0};
    char host[HAPI_NAME_MAX + 1];

    int rc = hapi_msg_data_decode(&m, body, size, &err);
    if (!rc && (p->state != PROBE_OPENING || p->conn || m.host.n > HAPI_NAME_MAX || !m.max_requests))
        rc = hapi_err_set(&err, HAPI_EPROTO, 0, "a data address that was not asked for");
    if (!rc) {
        memcpy(host, m.host.s, m.host.n);
        host[m.host.n] = '\0';
        p->n_slots = m.max_requests < p->n_slots ? m.max_requests : p->n_slots;
        rc = hapi_conn_connect(&p->conn, p->fabric, host, m.port, m.nonce, &handler, p, &err);
    }
    if (rc)
        probe_fail(p, rc, err.text);
}

/* ------------------------------------------------------------------ control channel */

static void control_open(struct hapi_control *c, const struct hapi_hello *peer)
{
    struct probe *p = probe_of(c);

    snprintf(p->numeric_class, sizeof p->numeric_class, "%.*s", (int)peer->numeric_class.n,
             peer->numeric_class.s);
    p->caps = peer->caps;
    if (p->job->dtype == HAPI_I8 && !(peer->caps & HAPI_CAP_COMPUTE_I8)) {
        probe_fail(p, HAPI_EUNSUPPORTED, "it cannot compute in int8: give another --dtype");
        return;
    }
    p->state = PROBE_LISTING;
    send_text(p, HAPI_MSG_LS);
}

static void on_error(struct probe *p, const void *body, size_t size)
{
    struct hapi_msg_error m;
    struct hapi_err err = {0};

    if (hapi_msg_error_decode(&m, body, size, NULL))
        return;
    hapi_err_set(&err, m.code < 0 ? m.code : HAPI_EPROTO, 0, "%.*s", (int)m.text.n, m.text.s);
    if (m.id >= 1ULL << 32) /* of a request: its record says that it failed, this says why */
        p->said = err;
    else
        probe_fail(p, err.code, err.text);
}

static void control_message(struct hapi_control *c, enum hapi_message type, const void *body, size_t size)
{
    struct probe *p = probe_of(c);

    if (p->err.code)
        return;
    if (type == HAPI_MSG_LS_REPLY && p->state == PROBE_LISTING)
        on_list(p, body, size);
    else if (type == HAPI_MSG_INDEX_REPLY && p->state == PROBE_LISTING)
        on_index(p, body, size);
    else if (type == HAPI_MSG_MODEL_WANT && p->state == PROBE_OFFERING) {
        p->uploaded = 0;
        upload_more(p);
    } else if (type == HAPI_MSG_MODEL_READY && p->state == PROBE_OFFERING) {
        p->state = PROBE_ASKING;
        send_text(p, HAPI_MSG_STAT);
    } else if (type == HAPI_MSG_STAT_REPLY && p->state == PROBE_ASKING)
        on_stat(p, body, size);
    else if (type == HAPI_MSG_DATA_READY)
        on_data_ready(p, body, size);
    else if (type == HAPI_MSG_ERROR)
        on_error(p, body, size);
}

static void control_drained(struct hapi_control *c)
{
    struct probe *p = probe_of(c);
    if (p->state == PROBE_OFFERING && !p->err.code)
        upload_more(p);
}

static void control_close(struct hapi_control *c, const struct hapi_err *why)
{
    struct probe *p = probe_of(c);

    p->control = NULL;
    probe_fail(p, why->code, why->text);
}

/* ------------------------------------------------------------------ in order */

static int wait_for(struct probe *p, enum probe_state state, struct hapi_err *err)
{
    int64_t until = hapi_clock_ns() + WAIT_S * HAPI_NS_PER_S;

    while (p->state < state && !p->err.code) {
        struct hapi_err why = {0};
        if (hapi_loop_run_once(p->job->loop, HAPI_NS_PER_S, &why))
            probe_fail(p, why.code, why.text);
        if (hapi_clock_ns() > until)
            probe_fail(p, HAPI_ETIMEDOUT, "it does not go on");
    }
    if (p->err.code)
        *err = p->err;
    return p->err.code;
}

int probe_connect(struct probe **out, struct probe_job *job, const char *address, uint32_t number,
                  struct hapi_err *err)
{
    static const struct hapi_control_handler handler = {.on_open = control_open,
                                                        .on_message = control_message,
                                                        .on_close = control_close,
                                                        .on_drained = control_drained};
    struct hapi_control_options opt = {
        .hello = {.major_min = HAPI_PROTO_MAJOR,
                  .major_max = HAPI_PROTO_MAJOR,
                  .minor = HAPI_PROTO_MINOR,
                  .caps = HAPI_CAP_TRANSPORT_OFI | HAPI_CAP_TRANSPORT_VERBS | HAPI_CAP_INT8,
                  .role = {"client", 6},
                  .version = {HAPI_VERSION, sizeof HAPI_VERSION - 1}},
        .keys = job->keys,
    };
    struct probe *p = calloc(1, sizeof *p);
    char host[HAPI_NAME_MAX + 1];
    uint16_t port;

    if (!p || !(p->upload = malloc(PROBE_UPLOAD + 512))) {
        free(p);
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a node");
    }
    p->job = job;
    p->number = number;
    p->generation = 1ULL << 32;
    snprintf(p->name, sizeof p->name, "%s", address);
    int rc = hapi_address_parse(address, host, &port, err);
    rc = rc ? rc : hapi_control_connect(&p->control, job->loop, host, port, &opt, &handler, p, err);
    rc = rc ? rc : wait_for(p, PROBE_LISTED, err);
    if (rc)
        probe_close(p);
    else
        *out = p;
    return rc;
}

int probe_ready(struct probe *p, struct hapi_err *err)
{
    offer(p);
    return wait_for(p, PROBE_UP, err);
}

void probe_close(struct probe *p)
{
    struct hapi_err err;

    if (!p)
        return;
    probe_fail(p, HAPI_ECANCELED, "closed"); /* what comes from now on is nobody's business */
    if (p->conn)
        hapi_conn_close(p->conn);
    if (p->control)
        hapi_control_finish(p->control);
    int64_t until = hapi_clock_ns() + 3 * HAPI_NS_PER_S;
    while ((p->conn || p->control) && hapi_clock_ns() < until)
        if (hapi_loop_run_once(p->job->loop, 50 * HAPI_NS_PER_MS, &err))
            break;
    if (p->fabric)
        hapi_fabric_close(p->fabric);
    for (uint32_t i = 0; i < PROBE_SLOTS; i++)
        free(p->slots[i].record);
    hapi_slab_fini(&p->slab);
    free(p->upload);
    free(p);
}
