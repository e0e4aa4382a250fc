#include "transport.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "transport_ops.h"

#define CONNECT_NS (5 * HAPI_NS_PER_S)

static const struct hapi_fabric_ops *const kinds[] = {&hapi_fabric_ofi, &hapi_fabric_verbs};

static const struct hapi_fabric_ops *find(const char *kind)
{
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kinds[i]->kind, kind) == 0)
            return kinds[i];
    return NULL;
}

/* ---- fabric, listener ---- */

int hapi_fabric_probe(const char *kind, struct hapi_err *err)
{
    const struct hapi_fabric_ops *ops = find(kind);

    if (!ops)
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "no transport \"%s\" (ofi or verbs)", kind);
    return ops->probe(err);
}

static int copy_name(char *to, size_t size, const char *name, const char *what, struct hapi_err *err)
{
    if (name && snprintf(to, size, "%s", name) >= (int)size)
        return hapi_err_set(err, HAPI_EINVAL, 0, "no %s \"%.64s...\"", what, name);
    return 0;
}

static int check_path(const struct hapi_fabric_path *p, struct hapi_err *err)
{
    if (p->mtu && (p->mtu < 256 || p->mtu > 4096 || p->mtu & (p->mtu - 1)))
        return hapi_err_set(err, HAPI_EINVAL, 0, "path MTU %u: it is 256, 512, 1024, 2048 or 4096", p->mtu);
    if (p->gid_index < -1 || p->gid_index > 255 || p->tos < -1 || p->tos > 255 || p->sl < -1 || p->sl > 15)
        return hapi_err_set(err, HAPI_EINVAL, 0,
                            "a GID index and a traffic class are 0..255, a service level 0..15");
    return 0;
}

static void default_to(uint32_t *v, uint32_t otherwise)
{
    *v = *v ? *v : otherwise;
}

static int take_options(struct hapi_fabric *f, const struct hapi_fabric_options *opt, struct hapi_err *err)
{
    struct hapi_fabric_options *o = &f->opt;

    *o = opt ? *opt : (struct hapi_fabric_options){0};
    f->path = o->path ? *o->path : HAPI_FABRIC_PATH_ANY;
    int rc = copy_name(f->device, sizeof f->device, o->device, "device", err);
    if (!rc)
        rc = copy_name(f->provider, sizeof f->provider, o->provider, "provider", err);
    if (!rc)
        rc = check_path(&f->path, err);
    if (rc)
        return rc;
    o->device = o->provider = NULL;
    o->path = NULL;
    default_to(&o->max_recv, 16);
    default_to(&o->max_ops, 256);
    default_to(&o->max_imm, 1024);
    o->ack_timeout = o->ack_timeout ? o->ack_timeout : 14;
    if (o->max_recv > 4096 || o->max_ops > HAPI_FABRIC_OPS_MAX || o->max_imm > 65536 || o->ack_timeout < 0 ||
        o->ack_timeout > 31)
        return hapi_err_set(err, HAPI_EINVAL, 0,
                            "transport: at most 4096 receives, %d operations, 65536 immediates, and an "
                            "acknowledgement time-out of 1 to 31",
                            HAPI_FABRIC_OPS_MAX);
    return 0;
}

int hapi_fabric_open(struct hapi_fabric **out, struct hapi_loop *loop, const char *kind,
                     const struct hapi_slab *slab, const struct hapi_fabric_options *opt,
                     struct hapi_err *err)
{
    struct hapi_fabric proto = {.ops = find(kind), .loop = loop, .slab = slab};
    int rc = hapi_fabric_probe(kind, err);

    if (rc || !proto.ops)
        return rc;
    rc = take_options(&proto, opt, err);
    return rc ? rc : proto.ops->open(out, &proto, err);
}

int hapi_fabric_data_host(const struct hapi_fabric *f, const char *host, char out[HAPI_NAME_MAX + 1],
                          struct hapi_err *err)
{
    if (f->ops->data_host)
        return f->ops->data_host(f, host, out, err);
    if (snprintf(out, HAPI_NAME_MAX + 1, "%s", host) > HAPI_NAME_MAX)
        return hapi_err_set(err, HAPI_EINVAL, 0, "no address of that length");
    return 0;
}

int hapi_fabric_add_device_memory(struct hapi_fabric *f, void *base, size_t n, int fd, uint64_t offset,
                                  struct hapi_err *err)
{
    struct hapi_device_piece d = {base, n, fd, offset};

    if (!base || !n)
        return hapi_err_set(err, HAPI_EINVAL, 0, "no device memory to add");
    if (f->n_device_memory == HAPI_DEVICE_PIECES)
        return hapi_err_set(err, HAPI_EBUSY, 0, "at most %d pieces of device memory", HAPI_DEVICE_PIECES);
    if (!f->ops->add_device_memory)
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0,
                            "transport %s cannot send from device memory: copy it to the host first",
                            f->ops->kind);
    int rc = f->ops->add_device_memory(f, &d, err);
    if (!rc)
        f->device_memory[f->n_device_memory++] = d;
    return rc;
}

void hapi_fabric_close(struct hapi_fabric *f)
{
    if (f)
        f->ops->close(f);
}

const char *hapi_fabric_kind(const struct hapi_fabric *f)
{
    return f->ops->kind;
}

int hapi_listener_open(struct hapi_listener **out, struct hapi_fabric *f, const char *host, uint16_t port,
                       const struct hapi_listener_handler *handler, void *user, struct hapi_err *err)
{
    struct hapi_listener proto = {.fabric = f, .handler = *handler, .user = user};

    return f->ops->listener_open(out, &proto, host, port, err);
}

uint16_t hapi_listener_port(const struct hapi_listener *l)
{
    return l->port;
}

void hapi_listener_close(struct hapi_listener *l)
{
    if (l)
        l->fabric->ops->listener_close(l);
}

/* ---- a connection's life ---- */

static void complete_next(struct hapi_conn *c, int status)
{
    struct hapi_conn_op **at = &c->ops[c->completed++ % c->fabric->opt.max_ops], *op = *at;

    *at = NULL;
    if (op)
        op->on_done(c, op, status);
}

static void cancel_all(struct hapi_conn *c)
{
    /* on_done may not post any more: the state is CLOSED. */
    while (c->completed < c->posted)
        complete_next(c, HAPI_ECANCELED);
}

static void timer_fired(struct hapi_timer *t)
{
    struct hapi_conn *c = (struct hapi_conn *)((char *)t - offsetof(struct hapi_conn, timer));

    if (c->state == HAPI_CONN_CONNECTING) {
        hapi_conn_failf(c, HAPI_ETIMEDOUT, 0, "no data connection within %lld s",
                        (long long)(CONNECT_NS / HAPI_NS_PER_S));
        return;
    }
    cancel_all(c);
    c->handler.on_close(c, &c->why);
    free(c->ops);
    c->fabric->ops->conn->free(c);
}

int hapi_conn_init(struct hapi_conn *c, const struct hapi_conn *proto)
{
    *c = *proto;
    c->ops = calloc(proto->fabric->opt.max_ops, sizeof *c->ops);
    if (!c->ops)
        return HAPI_ENOMEM;
    c->timer.fire = timer_fired;
    hapi_loop_timer_set(c->fabric->loop, &c->timer, hapi_clock_ns() + CONNECT_NS);
    return 0;
}

void hapi_conn_fini(struct hapi_conn *c)
{
    hapi_loop_timer_clear(c->fabric->loop, &c->timer);
    free(c->ops);
}

bool hapi_conn_admit(struct hapi_conn *proto, struct hapi_listener *l, const uint8_t *nonce, size_t n)
{
    *proto = (struct hapi_conn){.fabric = l->fabric, .handler = l->handler.conn, .server = true};
    if (n < HAPI_NONCE_SIZE)
        return false;
    proto->user = l->handler.admit(l->user, nonce);
    return proto->user != NULL;
}

void hapi_conn_opened(struct hapi_conn *c)
{
    if (c->state != HAPI_CONN_CONNECTING)
        return;
    c->state = HAPI_CONN_OPEN;
    hapi_loop_timer_clear(c->fabric->loop, &c->timer);
    c->handler.on_open(c);
}

void hapi_conn_fail(struct hapi_conn *c, const struct hapi_err *why)
{
    if (c->state == HAPI_CONN_CLOSED)
        return;
    c->state = HAPI_CONN_CLOSED;
    c->why = *why;
    c->fabric->ops->conn->stop(c);
    hapi_loop_timer_set(c->fabric->loop, &c->timer, hapi_clock_ns());
}

void hapi_conn_failf(struct hapi_conn *c, int code, long sys, const char *fmt, ...)
{
    struct hapi_err why = {.code = code, .sys = sys};
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(why.text, sizeof why.text, fmt, ap);
    va_end(ap);
    hapi_conn_fail(c, &why);
}

int hapi_conn_connect(struct hapi_conn **out, struct hapi_fabric *f, const char *host, uint16_t port,
                      const uint8_t nonce[HAPI_NONCE_SIZE], const struct hapi_conn_handler *handler,
                      void *user, struct hapi_err *err)
{
    struct hapi_conn proto = {.fabric = f, .handler = *handler, .user = user};

    return f->ops->conn->connect(out, &proto, host, port, nonce, err);
}

void hapi_conn_close(struct hapi_conn *c)
{
    if (c)
        hapi_conn_failf(c, HAPI_ECANCELED, 0, "closed by this side");
}

void *hapi_conn_user(const struct hapi_conn *c)
{
    return c->user;
}

struct hapi_conn_stats hapi_conn_stats_get(const struct hapi_conn *c)
{
    struct hapi_conn_stats s = c->stats;

    if (c->fabric->ops->conn->rnr)
        s.rnr = c->fabric->ops->conn->rnr(c);
    return s;
}

/* ---- what the back end reports ---- */

void hapi_conn_recv_came(struct hapi_conn *c, const void *msg, size_t n)
{
    /* The first request can overtake the event that says that the connection is up. */
    hapi_conn_opened(c);
    if (c->state != HAPI_CONN_OPEN)
        return;
    c->stats.recvs++;
    c->handler.on_recv(c, msg, n);
}

void hapi_conn_imm_came(struct hapi_conn *c, uint32_t imm)
{
    if (c->granted == 0) {
        hapi_conn_failf(c, HAPI_EPROTO, 0, "the peer sent immediate 0x%08x without a grant", imm);
        return;
    }
    c->granted--;
    c->stats.imms++;
    c->handler.on_imm(c, imm);
}

void hapi_conn_done(struct hapi_conn *c, uint64_t number, int status)
{
    c->stats.completions++;
    while (c->completed < number && c->completed < c->posted)
        complete_next(c, 0);
    if (c->completed == number && number < c->posted)
        complete_next(c, status);
}

/* ---- operations ---- */

int hapi_conn_expose(struct hapi_conn *c, void *base, size_t n, uint64_t *key, uint64_t *remote_base,
                     struct hapi_err *err)
{
    if (c->state != HAPI_CONN_OPEN)
        return hapi_err_set(err, HAPI_ECLOSED, 0, "the data connection is not open");
    if (!base || n == 0 || c->server)
        return hapi_err_set(err, HAPI_EINVAL, 0, "cannot expose %zu bytes", n);
    if (c->n_exposed == HAPI_EXPOSE_MAX)
        return hapi_err_set(err, HAPI_EBUSY, 0, "at most %d pieces of memory per connection",
                            HAPI_EXPOSE_MAX);
    int rc = c->fabric->ops->conn->expose(c, base, n, key, remote_base, err);
    if (rc)
        return rc;
    c->exposed[c->n_exposed].base = base;
    c->exposed[c->n_exposed++].n = n;
    return 0;
}

static bool in_slab(const struct hapi_conn *c, const void *p, size_t n)
{
    const struct hapi_slab *s = c->fabric->slab;

    if (s && hapi_holds(s->base, s->size, p, n))
        return true;
    for (int i = 0; i < c->fabric->n_device_memory; i++)
        if (hapi_holds(c->fabric->device_memory[i].base, c->fabric->device_memory[i].n, p, n))
            return true;
    return false;
}

static bool sendable(const struct hapi_conn *c, const void *p, size_t n)
{
    if (n <= HAPI_SEND_INLINE || in_slab(c, p, n))
        return true;
    for (int i = 0; i < c->n_exposed; i++)
        if (hapi_holds(c->exposed[i].base, c->exposed[i].n, p, n))
            return true;
    return false;
}

static uint32_t outstanding(const struct hapi_conn *c)
{
    return (uint32_t)(c->posted - c->completed);
}

/* A completion costs more than the write of a small part: only those ask for one that somebody waits for,
 * and one in a quarter of the queue, so that there is room again. */
static int post(struct hapi_conn *c, struct hapi_wr *wr, struct hapi_conn_op *op)
{
    wr->number = c->posted;
    wr->signaled = op || c->unsignaled + 1 >= (c->fabric->opt.max_ops + 3) / 4;
    c->ops[c->posted % c->fabric->opt.max_ops] = op;
    int rc = c->fabric->ops->conn->post(c, wr);
    if (rc) {
        c->ops[c->posted % c->fabric->opt.max_ops] = NULL;
        return rc;
    }
    c->posted++;
    c->unsignaled = wr->signaled ? 0 : c->unsignaled + 1;
    return 0;
}

/* A write, in as many work requests as the device's largest message asks for; the last one counts. */
static int post_write(struct hapi_conn *c, struct hapi_wr wr, struct hapi_conn_op *op)
{
    size_t max = c->max_write, left = wr.n;
    enum hapi_wr_kind last = wr.kind;
    int rc = 0;

    if (c->state != HAPI_CONN_OPEN)
        return HAPI_ECLOSED;
    size_t pieces = left / max + (left % max != 0 || left == 0);
    if (wr.n && !in_slab(c, wr.local, wr.n))
        return HAPI_EINVAL;
    if (pieces > c->fabric->opt.max_ops)
        return HAPI_ETOOBIG;
    if (pieces > c->fabric->opt.max_ops - outstanding(c))
        return HAPI_EBUSY;
    for (size_t i = 0; i < pieces && rc == 0; i++) {
        bool end = i + 1 == pieces;
        wr.n = left < max ? left : max;
        wr.kind = end ? last : HAPI_WR_WRITE;
        rc = post(c, &wr, end ? op : NULL);
        if (rc && i > 0) {
            /* Half of it is on its way: it cannot be taken back, and must not be taken for done. */
            hapi_conn_failf(c, HAPI_ETRANSPORT, 0, "a write of %zu bytes could not be posted whole", left);
            return HAPI_ETRANSPORT;
        }
        left -= wr.n;
        wr.local = (const uint8_t *)wr.local + wr.n;
        wr.remote += wr.n;
    }
    return rc;
}

int hapi_conn_write(struct hapi_conn *c, const void *local, size_t n, uint64_t remote, uint64_t key,
                    struct hapi_conn_op *op)
{
    int rc = post_write(c, (struct hapi_wr){HAPI_WR_WRITE, local, n, remote, key, 0, 0, false}, op);

    if (rc == 0) {
        c->stats.writes++;
        c->stats.bytes += n;
    }
    return rc;
}

int hapi_conn_write_imm(struct hapi_conn *c, const void *local, size_t n, uint64_t remote, uint64_t key,
                        uint32_t imm, struct hapi_conn_op *op)
{
    int rc = post_write(c, (struct hapi_wr){HAPI_WR_WRITE_IMM, local, n, remote, key, imm, 0, false}, op);

    if (rc == 0) {
        c->stats.writes++;
        c->stats.bytes += n;
    }
    return rc;
}

int hapi_conn_send(struct hapi_conn *c, const void *msg, size_t n, struct hapi_conn_op *op)
{
    struct hapi_wr wr = {HAPI_WR_SEND, msg, n, 0, 0, 0, 0, false};

    if (c->state != HAPI_CONN_OPEN)
        return HAPI_ECLOSED;
    if (n > HAPI_REQUEST_MAX)
        return HAPI_ETOOBIG;
    if (n == 0 || c->server || !sendable(c, msg, n))
        return HAPI_EINVAL;
    if (outstanding(c) == c->fabric->opt.max_ops)
        return HAPI_EBUSY;
    int rc = post(c, &wr, op);
    if (rc == 0)
        c->stats.sends++;
    return rc;
}

int hapi_conn_grant(struct hapi_conn *c, uint32_t parts)
{
    int rc = 0;

    if (c->state != HAPI_CONN_OPEN)
        return HAPI_ECLOSED;
    if (c->server)
        return HAPI_EINVAL;
    if (parts > c->fabric->opt.max_imm - c->granted)
        return HAPI_EBUSY;
    if (c->fabric->ops->conn->grant)
        rc = c->fabric->ops->conn->grant(c, parts);
    if (rc == 0)
        c->granted += parts;
    return rc;
}
