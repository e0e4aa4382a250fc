/*
 * One node, from its address to a data connection.
 *
 *     DOWN ─> CONNECTING ─hello─> LISTING ─> INDEXING ─> OFFERING ─> OFFERED ─> OPENING ─> UP
 *       ^                       (raw objects need no model: no OFFERING)                     │
 *       └──────────── retry, NODE_ATTEMPTS times without progress, then DEAD ────────────────┘
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "loader.h"

static struct loader_node *node_of(struct hapi_control *c)
{
    return hapi_control_user(c);
}

/* During opening the first failure is the caller's; later the node is tried again, others go on. */
static void node_down(struct loader_node *n, const struct hapi_err *why)
{
    struct hapi_loader *l = n->l;

    if (n->state == NODE_DOWN || n->state == NODE_DEAD)
        return;
    if (why->code != HAPI_ECANCELED || !n->last.code)
        n->last = *why;
    n->state = NODE_DOWN;
    if (!l->ready) {
        struct hapi_err err = n->last;
        hapi_err_context(&err, "node %s", n->name);
        n->state = NODE_DEAD;
        loader_fail(l, &err);
        return;
    }
    if (++n->attempts > NODE_ATTEMPTS || l->failure.set) {
        n->state = NODE_DEAD;
        fetch_pump(l); /* which finds out whether anybody else has what this one had */
        return;
    }
    hapi_loop_timer_set(l->loop, &n->retry, hapi_clock_ns() + (100LL << n->attempts) * HAPI_NS_PER_MS);
}

void node_break(struct loader_node *n, int code, const char *why)
{
    hapi_err_set(&n->last, code, 0, "%s", why);
    if (n->conn)
        hapi_conn_close(n->conn);
    if (n->control)
        hapi_control_close(n->control);
}

void node_close(struct loader_node *n)
{
    hapi_loop_timer_clear(n->l->loop, &n->retry);
    if (n->conn)
        hapi_conn_close(n->conn);
    if (n->control)
        hapi_control_finish(n->control);
}

static void send(struct loader_node *n, enum hapi_message type, const void *body, int bytes)
{
    int rc = bytes < 0 ? bytes : hapi_control_send(n->control, type, body, (size_t)bytes);
    if (rc)
        node_break(n, rc, "cannot send on the control channel");
}

static struct hapi_str str_of(const char *s)
{
    return (struct hapi_str){s, (uint32_t)strlen(s)};
}

static bool str_is(struct hapi_str s, const char *text)
{
    return s.n == strlen(text) && !memcmp(s.s, text, s.n);
}

/* ------------------------------------------------------------------ data connection */

static void data_open(struct hapi_conn *c)
{
    struct loader_node *n = hapi_conn_user(c);
    struct hapi_loader *l = n->l;
    struct hapi_err err = {0};

    if (hapi_conn_expose(c, l->exposed.base, l->exposed.size, &n->key, &n->remote_base, &err)) {
        n->falls_back = choice_fall_back(n, &err);
        if (n->falls_back)
            hapi_conn_close(c); /* its on_close goes on */
        else
            node_break(n, err.code, err.text);
        return;
    }
    n->state = NODE_UP;
    choice_tell(n);
    observe_up(n);
    loader_node_up(l);
    fetch_pump(l);
}

static void data_imm(struct hapi_conn *c, uint32_t imm)
{
    fetch_imm(hapi_conn_user(c), imm);
}

static void data_recv(struct hapi_conn *c, const void *message, size_t size)
{
    (void)message;
    (void)size;
    node_break(hapi_conn_user(c), HAPI_EPROTO, "a node sends a message on the data connection");
}

static void data_close(struct hapi_conn *c, const struct hapi_err *why)
{
    struct loader_node *n = hapi_conn_user(c);

    n->conn = NULL;
    bool again = n->falls_back;
    n->falls_back = false;
    if (n->state == NODE_OPENING && n->control && why->code != HAPI_ECANCELED)
        again = choice_fall_back(n, why);
    if (again && n->control) {
        node_open_data(n);
        return;
    }
    if (!n->last.code || why->code != HAPI_ECANCELED)
        n->last = *why;
    if (n->state == NODE_UP)
        n->state = NODE_OPENING; /* no more requests; node_down() when the control channel is gone, too */
    if (n->control)
        hapi_control_close(n->control);
    else
        node_down(n, why);
    fetch_lost(n);
}

static const struct hapi_conn_handler data_handler = {
    .on_open = data_open, .on_recv = data_recv, .on_imm = data_imm, .on_close = data_close};

void node_open_data(struct loader_node *n)
{
    struct hapi_msg_data m = {.id = HAPI_MSG_DATA_OPEN, .max_requests = NODE_REQUESTS};
    struct hapi_err err = {0};
    uint8_t buf[512];

    n->state = NODE_OPENING;
    if (choice_make(n, &err)) {
        node_break(n, err.code, err.text);
        return;
    }
    m.transport = str_of(transport_names[n->transport]);
    send(n, HAPI_MSG_DATA_OPEN, buf, hapi_msg_data_encode(&m, buf, sizeof buf));
}

/* Nothing came to be of the data connection that was asked for. */
static void data_failed(struct loader_node *n, const struct hapi_err *why)
{
    if (choice_fall_back(n, why))
        node_open_data(n);
    else
        node_break(n, why->code, why->text);
}

static void on_data_ready(struct loader_node *n, const void *body, size_t size)
{
    struct hapi_msg_data m;
    struct hapi_err err = {0};
    char host[HAPI_NAME_MAX + 1];

    int rc = hapi_msg_data_decode(&m, body, size, &err);
    if (!rc && (n->state != NODE_OPENING || n->conn || m.host.n > HAPI_NAME_MAX || !m.max_requests ||
                !str_is(m.transport, transport_names[n->transport])))
        rc = hapi_err_set(&err, HAPI_EPROTO, 0, "a data address that was not asked for");
    if (rc) {
        node_break(n, err.code, err.text);
        return;
    }
    memcpy(host, m.host.s, m.host.n);
    host[m.host.n] = '\0';
    n->max_requests = m.max_requests < NODE_REQUESTS ? m.max_requests : NODE_REQUESTS;
    if (hapi_conn_connect(&n->conn, n->l->fabrics[n->transport].fabric, host, m.port, m.nonce, &data_handler,
                          n, &err))
        data_failed(n, &err);
}

/* ------------------------------------------------------------------ model */

static void upload_more(struct loader_node *n)
{
    struct hapi_loader *l = n->l;
    const struct offer *o = n->offering;

    while (o && n->upload_at < o->size) {
        size_t bytes = o->size - n->upload_at < UPLOAD_BYTES ? o->size - n->upload_at : UPLOAD_BYTES;
        struct hapi_msg_model m = {
            .id = HAPI_MSG_MODEL_OFFER,
            .size = o->size,
            .offset = n->upload_at,
            .bytes = {(const char *)o->bytes + n->upload_at, (uint32_t)bytes},
        };
        memcpy(m.hash, o->hash, HAPI_HASH_SIZE);
        int used = hapi_msg_model_encode(&m, l->upload, sizeof l->upload);
        int rc =
            used < 0 ? used : hapi_control_send(n->control, HAPI_MSG_MODEL_CHUNK, l->upload, (size_t)used);
        if (rc == HAPI_EBUSY)
            return; /* on_drained goes on */
        if (rc) {
            node_break(n, rc, "cannot upload the model");
            return;
        }
        n->upload_at += bytes;
    }
}

static void offered(struct loader_node *n)
{
    n->state = NODE_OFFERED;
    if (n->l->ready)
        node_open_data(n);
    else
        loader_node_offered(n->l);
}

void node_offer(struct loader_node *n, const struct offer *o)
{
    struct hapi_msg_model m = {.id = HAPI_MSG_MODEL_OFFER, .size = o->size};
    uint8_t buf[256];

    n->offering = o;
    n->upload_at = o->size; /* nothing to send unless it is wanted */
    memcpy(m.hash, o->hash, HAPI_HASH_SIZE);
    send(n, HAPI_MSG_MODEL_OFFER, buf, hapi_msg_model_encode(&m, buf, sizeof buf));
}

static void offer(struct loader_node *n)
{
    if (n->l->routes->offer) {
        n->state = NODE_OFFERING;
        node_offer(n, n->l->routes->offer);
    } else {
        offered(n);
    }
}

static void on_model_ready(struct loader_node *n)
{
    if (!n->offering)
        return;
    memcpy(n->has, n->offering->hash, HAPI_HASH_SIZE);
    n->offering = NULL;
    if (n->state == NODE_OFFERING)
        offered(n);
    routes_advance(n->l);
}

void node_clock(struct loader_node *n)
{
    struct hapi_msg_clock m = {.t0_ns = (uint64_t)hapi_clock_ns()};
    uint8_t buf[64];

    send(n, HAPI_MSG_CLOCK, buf, hapi_msg_clock_encode(&m, buf, sizeof buf));
}

/* ------------------------------------------------------------------ listing */

static void ask_index(struct loader_node *n, uint64_t first)
{
    const char *name = n->l->o.dataset;
    struct hapi_msg_index m = {
        .id = HAPI_MSG_INDEX, .dataset = {name, (uint32_t)strlen(name)}, .first = first};
    uint8_t buf[512];

    n->state = NODE_INDEXING;
    n->index_from = first;
    send(n, HAPI_MSG_INDEX, buf, hapi_msg_index_encode(&m, buf, sizeof buf));
}

/* What it may list is bounded by what it says it has, and that by what this side can count. */
static int announced(struct loader_node *n, const struct hapi_msg_dataset *d, struct hapi_err *err)
{
    if (d->samples >= UINT32_MAX || d->objects >= UINT32_MAX)
        return hapi_err_set(err, HAPI_ETOOBIG, 0, "it says that %s has %llu objects with %llu samples",
                            n->l->o.dataset, (unsigned long long)d->objects, (unsigned long long)d->samples);
    n->index_objects = n->objects_left = d->objects;
    n->samples_left = d->samples;
    return 0;
}

static int listed(struct loader_node *n, const struct hapi_msg_object *o, struct hapi_err *err)
{
    if (!n->objects_left || o->samples > n->samples_left)
        return hapi_err_set(err, HAPI_EPROTO, 0, "its index has more in it than it said");
    n->objects_left--;
    n->samples_left -= o->samples;
    return hapi_catalog_add(&n->l->catalog, n->number, o, err);
}

static void on_list(struct loader_node *n, const void *body, size_t size)
{
    struct hapi_list_cursor cursor;
    struct hapi_msg_dataset d;
    struct hapi_err err = {0};
    const char *name = n->l->o.dataset;
    char all[200] = "";
    size_t used = 0;

    int rc = n->state == NODE_LISTING
                 ? hapi_list_open(&cursor, body, size, &err)
                 : hapi_err_set(&err, HAPI_EPROTO, 0, "a list of datasets that was not asked for");
    while (!rc && (rc = hapi_list_next_dataset(&cursor, &d, &err)) == 1) {
        if (d.name.n == strlen(name) && !memcmp(d.name.s, name, d.name.n)) {
            rc = hapi_catalog_classes(&n->l->catalog, n->number, &d, &err);
            if (!rc)
                rc = announced(n, &d, &err);
            if (rc)
                break;
            ask_index(n, 0);
            return;
        }
        if (used < sizeof all - 1)
            used += (size_t)snprintf(all + used, sizeof all - used, "%s%.*s", used ? ", " : "", (int)d.name.n,
                                     d.name.s);
        rc = 0;
    }
    if (!rc)
        hapi_err_set(&err, HAPI_ENOENT, 0, "it has no dataset `%s`; it has: %s", name, *all ? all : "none");
    node_break(n, err.code ? err.code : HAPI_EPROTO, err.text);
}

static void on_index(struct loader_node *n, const void *body, size_t size)
{
    struct hapi_list_cursor cursor;
    struct hapi_msg_object o;
    struct hapi_err err = {0};

    int rc = n->state == NODE_INDEXING
                 ? hapi_list_open(&cursor, body, size, &err)
                 : hapi_err_set(&err, HAPI_EPROTO, 0, "an index that was not asked for");
    while (!rc && (rc = hapi_list_next_object(&cursor, &o, &err)) == 1)
        rc = listed(n, &o, &err);
    if (!rc && cursor.next && (cursor.next <= n->index_from || cursor.next >= n->index_objects))
        rc = hapi_err_set(&err, HAPI_EPROTO, 0, "its index does not end");
    if (rc)
        node_break(n, err.code ? err.code : HAPI_EPROTO, err.text);
    else if (cursor.next)
        ask_index(n, cursor.next);
    else
        offer(n);
}

/* ------------------------------------------------------------------ control channel */

/* Whether the node computes in the job's dtype; false: *why says what to do. */
static bool computes(const struct hapi_loader *l, uint32_t caps, char *why, size_t size)
{
    static const struct {
        enum hapi_dtype dtype;
        uint32_t cap;
        const char *name;
    } rows[] = {{HAPI_BF16, HAPI_CAP_BF16, "bf16"},
                {HAPI_F16, HAPI_CAP_F16, "f16 (a node with a GPU can)"},
                {HAPI_I8, HAPI_CAP_COMPUTE_I8, "int8"}};

    for (size_t i = 0; l->pushes && i < sizeof rows / sizeof *rows; i++)
        if (l->dtype == rows[i].dtype && !(caps & rows[i].cap)) {
            snprintf(why, size, "it cannot compute in %s: give another --dtype", rows[i].name);
            return false;
        }
    return true;
}

static void control_open(struct hapi_control *c, const struct hapi_hello *peer)
{
    struct loader_node *n = node_of(c);
    struct hapi_loader *l = n->l;
    struct hapi_msg_text m = {.id = HAPI_MSG_LS};
    char class[sizeof l->numeric_class], why[384];
    uint8_t buf[64];

    snprintf(class, sizeof class, "%.*s", (int)peer->numeric_class.n, peer->numeric_class.s);
    if (l->pushes && l->numeric_class[0] && strcmp(class, l->numeric_class)) {
        snprintf(why, sizeof why,
                 "its numeric class is %s, the job's is %s: features would differ in the last bits%s", class,
                 l->numeric_class,
                 strstr(class, "/tuned-") && strstr(l->numeric_class, "/tuned-")
                     ? " (nodes with --autotune agree where they share HAPI_CACHE)"
                     : "");
        node_break(n, HAPI_EINVAL, why);
        return;
    }
    if (l->o.checksum && !(peer->caps & HAPI_CAP_CHECKSUM)) {
        node_break(n, HAPI_EUNSUPPORTED, "it offers no checksums of the payload: leave --checksum out");
        return;
    }
    if (l->int8_wire && !(peer->caps & HAPI_CAP_INT8)) {
        node_break(n, HAPI_EUNSUPPORTED, "it cannot send int8: give another --wire or --accuracy");
        return;
    }
    if (!computes(l, peer->caps, why, sizeof why)) {
        node_break(n, HAPI_EUNSUPPORTED, why);
        return;
    }
    memcpy(l->numeric_class, class, sizeof class);
    n->caps = peer->caps;
    n->last.code = 0;
    n->state = NODE_LISTING;
    send(n, HAPI_MSG_LS, buf, hapi_msg_text_encode(&m, buf, sizeof buf));
}

static void on_error(struct loader_node *n, const void *body, size_t size)
{
    struct hapi_msg_error m;

    if (hapi_msg_error_decode(&m, body, size, NULL))
        return;
    struct hapi_err err = {0};
    hapi_err_set(&err, m.code < 0 ? m.code : HAPI_EPROTO, 0, "%.*s", (int)m.text.n, m.text.s);
    if (m.id == HAPI_MSG_DATA_OPEN && n->state == NODE_OPENING && !n->conn)
        data_failed(n, &err);
    else if (m.id >= FIRST_GENERATION) { /* of a request: its last record says that it failed, this why */
        n->last = err;
        fetch_refused(n);
    } else
        node_break(n, err.code, err.text);
}

static void control_message(struct hapi_control *c, enum hapi_message type, const void *body, size_t size)
{
    struct loader_node *n = node_of(c);

    switch (type) {
    case HAPI_MSG_LS_REPLY:
        on_list(n, body, size);
        break;
    case HAPI_MSG_INDEX_REPLY:
        on_index(n, body, size);
        break;
    case HAPI_MSG_MODEL_WANT:
        n->upload_at = n->offering ? 0 : n->upload_at;
        upload_more(n);
        break;
    case HAPI_MSG_MODEL_READY:
        on_model_ready(n);
        break;
    case HAPI_MSG_CLOCK_REPLY:
        observe_clock(n, body, size);
        break;
    case HAPI_MSG_DATA_READY:
        on_data_ready(n, body, size);
        break;
    case HAPI_MSG_ERROR:
        on_error(n, body, size);
        break;
    default: /* heartbeats; BYE is followed by the close */
        break;
    }
}

static void control_drained(struct hapi_control *c)
{
    struct loader_node *n = node_of(c);
    upload_more(n);
}

static void control_close(struct hapi_control *c, const struct hapi_err *why)
{
    struct loader_node *n = node_of(c);

    n->control = NULL;
    n->offering = NULL;
    memset(n->has, 0, sizeof n->has);
    if (n->conn) {
        if (!n->last.code)
            n->last = *why;
        hapi_conn_close(n->conn); /* its on_close goes on */
    } else {
        node_down(n, why);
    }
}

static const struct hapi_control_handler control_handler = {
    .on_open = control_open,
    .on_message = control_message,
    .on_close = control_close,
    .on_drained = control_drained,
};

static void retry_fire(struct hapi_timer *t)
{
    struct loader_node *n = (struct loader_node *)((char *)t - offsetof(struct loader_node, retry));
    if (n->state == NODE_DOWN && !n->control && !n->conn)
        node_connect(n);
}

void node_connect(struct loader_node *n)
{
    struct hapi_err err = {0};
    struct hapi_control_options opt = {
        .hello =
            {
                .major_min = HAPI_PROTO_MAJOR,
                .major_max = HAPI_PROTO_MAJOR,
                .minor = HAPI_PROTO_MINOR,
                .caps = HAPI_CAP_TRANSPORT_OFI | HAPI_CAP_TRANSPORT_VERBS | HAPI_CAP_CHECKSUM | HAPI_CAP_INT8,
                .role = {"client", 6},
                .version = {HAPI_VERSION, sizeof HAPI_VERSION - 1},
            },
        .keys = n->l->keys,
    };

    n->retry.fire = retry_fire;
    n->state = NODE_CONNECTING;
    if (hapi_control_connect(&n->control, n->l->loop, n->host, n->port, &opt, &control_handler, n, &err))
        node_down(n, &err);
}
