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

int hapi_fabric_open(struct hapi_fabric **out, struct hapi_loop *loop, const char *kind,
                     const struct hapi_slab *slab, const struct hapi_fabric_options *opt,
                     struct hapi_err *err)
{
    struct hapi_fabric proto = {.ops = find(kind), .loop = loop, .slab = slab};
    int rc = hapi_fabric_probe(kind, err);

    if (rc || !proto.ops)
        return rc;
    if (opt)
        proto.opt = *opt;
    if (proto.opt.device &&
        snprintf(proto.device, sizeof proto.device, "%s", proto.opt.device) >= (int)sizeof proto.device)
        return hapi_err_set(err, HAPI_EINVAL, 0, "no device \"%.64s...\"", proto.opt.device);
    proto.opt.device = NULL; /* `device` is our copy */
    proto.opt.max_recv = proto.opt.max_recv ? proto.opt.max_recv : 16;
    proto.opt.max_ops = proto.opt.max_ops ? proto.opt.max_ops : 256;
    proto.opt.max_imm = proto.opt.max_imm ? proto.opt.max_imm : 1024;
    proto.opt.ack_timeout = proto.opt.ack_timeout ? proto.opt.ack_timeout : 14;
    if (proto.opt.max_recv > 4096 || proto.opt.max_ops > 16384 || proto.opt.max_imm > 65536 ||
        proto.opt.ack_timeout < 0 || proto.opt.ack_timeout > 31)
        return hapi_err_set(err, HAPI_EINVAL, 0,
                            "transport: at most 4096 receives, 16384 operations, 65536 immediates, and an "
                            "acknowledgement time-out of 1 to 31");
    return proto.ops->fabric_open(out, &proto, err);
}

void hapi_fabric_close(struct hapi_fabric *f)
{
    if (f)
        f->ops->fabric_close(f);
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

static void cancel_all(struct hapi_conn *c)
{
    /* In the order of their slots; on_done may not post any more: the state is CLOSED. */
    for (uint32_t i = 0; i < c->fabric->opt.max_ops; i++)
        if (c->slots[i].used)
            hapi_conn_done(c, &c->slots[i], HAPI_ECANCELED);
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
    free(c->slots);
    c->fabric->ops->conn_free(c);
}

int hapi_conn_init(struct hapi_conn *c, const struct hapi_conn *proto)
{
    uint32_t n = proto->fabric->opt.max_ops;

    *c = *proto;
    c->slots = calloc(n, sizeof *c->slots);
    if (!c->slots)
        return HAPI_ENOMEM;
    for (uint32_t i = 0; i < n; i++)
        c->slots[i].next = i + 1;
    c->timer.fire = timer_fired;
    hapi_loop_timer_set(c->fabric->loop, &c->timer, hapi_clock_ns() + CONNECT_NS);
    return 0;
}

void hapi_conn_fini(struct hapi_conn *c)
{
    hapi_loop_timer_clear(c->fabric->loop, &c->timer);
    free(c->slots);
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
    c->fabric->ops->conn_stop(c);
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

    return f->ops->connect(out, &proto, host, port, nonce, err);
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
    return c->stats;
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
        hapi_conn_failf(c, HAPI_EPROTO, 0, "the node sent immediate 0x%08x without a grant", imm);
        return;
    }
    c->granted--;
    c->stats.imms++;
    c->handler.on_imm(c, imm);
}

void hapi_conn_done(struct hapi_conn *c, struct hapi_conn_slot *slot, int status)
{
    struct hapi_conn_op *op = slot->op;

    slot->op = NULL;
    slot->used = false;
    slot->next = c->free_slot;
    c->free_slot = (uint32_t)(slot - c->slots);
    c->slots_used--;
    c->stats.completions++;
    if (op)
        op->on_done(c, op, status);
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
    int rc = c->fabric->ops->expose(c, base, n, key, remote_base, err);
    if (rc)
        return rc;
    c->exposed[c->n_exposed].base = base;
    c->exposed[c->n_exposed++].n = n;
    return 0;
}

static bool inside(const void *p, size_t n, const void *base, size_t size)
{
    uintptr_t at = (uintptr_t)p - (uintptr_t)base;

    return at <= size && n <= size - at;
}

static bool in_slab(const struct hapi_conn *c, const void *p, size_t n)
{
    const struct hapi_slab *s = c->fabric->slab;

    return s && inside(p, n, s->base, s->size);
}

static bool sendable(const struct hapi_conn *c, const void *p, size_t n)
{
    if (n <= HAPI_SEND_INLINE || in_slab(c, p, n))
        return true;
    for (int i = 0; i < c->n_exposed; i++)
        if (inside(p, n, c->exposed[i].base, c->exposed[i].n))
            return true;
    return false;
}

static int post(struct hapi_conn *c, const struct hapi_wr *wr, struct hapi_conn_op *op)
{
    struct hapi_conn_slot *s = &c->slots[c->free_slot];
    uint32_t next = s->next;

    s->op = op;
    s->used = true;
    int rc = c->fabric->ops->post(c, wr, s);
    if (rc) {
        s->op = NULL;
        s->used = false;
        return rc;
    }
    c->free_slot = next;
    c->slots_used++;
    return 0;
}

/* A write, in as many work requests as the device's largest message asks for; the last one counts. */
static int post_write(struct hapi_conn *c, struct hapi_wr wr, struct hapi_conn_op *op)
{
    size_t max = c->fabric->ops->max_write(c), left = wr.n;
    size_t pieces = left / max + (left % max != 0 || left == 0);
    enum hapi_wr_kind last = wr.kind;
    int rc = 0;

    if (c->state != HAPI_CONN_OPEN)
        return HAPI_ECLOSED;
    if (wr.n && !in_slab(c, wr.local, wr.n))
        return HAPI_EINVAL;
    if (pieces > c->fabric->opt.max_ops)
        return HAPI_ETOOBIG;
    if (pieces > c->fabric->opt.max_ops - c->slots_used)
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
    int rc = post_write(c, (struct hapi_wr){HAPI_WR_WRITE, local, n, remote, key, 0}, op);

    if (rc == 0) {
        c->stats.writes++;
        c->stats.bytes += n;
    }
    return rc;
}

int hapi_conn_write_imm(struct hapi_conn *c, const void *local, size_t n, uint64_t remote, uint64_t key,
                        uint32_t imm, struct hapi_conn_op *op)
{
    int rc = post_write(c, (struct hapi_wr){HAPI_WR_WRITE_IMM, local, n, remote, key, imm}, op);

    if (rc == 0) {
        c->stats.writes++;
        c->stats.bytes += n;
    }
    return rc;
}

int hapi_conn_send(struct hapi_conn *c, const void *msg, size_t n, struct hapi_conn_op *op)
{
    struct hapi_wr wr = {HAPI_WR_SEND, msg, n, 0, 0, 0};

    if (c->state != HAPI_CONN_OPEN)
        return HAPI_ECLOSED;
    if (n > HAPI_REQUEST_MAX)
        return HAPI_ETOOBIG;
    if (n == 0 || c->server || !sendable(c, msg, n))
        return HAPI_EINVAL;
    if (c->slots_used == c->fabric->opt.max_ops)
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
    if (c->fabric->ops->grant)
        rc = c->fabric->ops->grant(c, parts);
    if (rc == 0)
        c->granted += parts;
    return rc;
}
