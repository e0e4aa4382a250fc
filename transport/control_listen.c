#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "clock.h"
#include "control_int.h"

enum { BACKLOG = 512, ACCEPTS_MAX = 32 }; /* of one ready(): those accepted before want their turn */
#define ACCEPT_RETRY_NS (100 * HAPI_NS_PER_MS)
/* For so long after accept() nobody is dropped to make room: a good peer takes less to its hello, and says
 * its first word at once. While all are younger, the next ones wait in the kernel's queue. */
#define GRACE_NS (200 * HAPI_NS_PER_MS)
#define GRACE_SILENT_NS (20 * HAPI_NS_PER_MS)
#define FULL_RETRY_NS (5 * HAPI_NS_PER_MS)

/* ---- lists: pending (newest first) and open ---- */

static void unlink_control(struct hapi_control *c)
{
    struct hapi_control_listener *l = c->listener;

    if (c->prev)
        c->prev->next = c->next;
    else if (l->pending == c)
        l->pending = c->next;
    else
        l->open = c->next;
    if (c->next)
        c->next->prev = c->prev;
    else if (l->pending_last == c)
        l->pending_last = c->prev;
    c->prev = c->next = NULL;
    if (c->opened) {
        l->n_open--;
    } else {
        l->n_pending--;
        hapi_loop_watch_events(&l->watch, POLLIN); /* there is room for the next one */
    }
}

void hapi_control_listener_gone(struct hapi_control *c)
{
    if (!c->listener)
        return;
    unlink_control(c);
    c->listener = NULL;
}

void hapi_control_listener_opened(struct hapi_control *c)
{
    struct hapi_control_listener *l = c->listener;

    if (!l)
        return;
    c->opened = false; /* it is still on the list of pending ones */
    unlink_control(c);
    c->opened = true;
    c->next = l->open;
    if (l->open)
        l->open->prev = c;
    l->open = c;
    l->n_open++;
}

static bool ends(const struct hapi_control *c)
{
    return c->state == CONTROL_FLUSHING || c->state == CONTROL_LINGERING;
}

static bool silent(const struct hapi_control *c)
{
    int n = 0;

    return c->rx_used == 0 && !hapi_stream_heard(&c->stream) && (ioctl(c->stream.fd, FIONREAD, &n) || n == 0);
}

/* The oldest of the pending peers that may give way to others; NULL: all are fresh. */
static struct hapi_control *droppable(const struct hapi_control_listener *l)
{
    int64_t now = hapi_clock_ns();
    struct hapi_control *found = NULL;

    for (struct hapi_control *c = l->pending; c; c = c->next) {
        int64_t age = now - c->accepted_ns;
        if (ends(c) || age > GRACE_NS || (age > GRACE_SILENT_NS && silent(c)))
            found = c;
    }
    return found;
}

static void drop(struct hapi_control *c)
{
    struct hapi_err why;

    hapi_err_set(&why, HAPI_EBUSY, 0, "too many peers that have not said hello");
    hapi_control_fail(c, &why);
}

bool hapi_control_listener_full(struct hapi_control_listener *l)
{
    struct hapi_control *c = l->n_open < l->lim.max_open ? NULL : l->open;

    while (c && !ends(c))
        c = c->next;
    if (c)
        hapi_control_fail(c, &c->why);
    return l->n_open >= l->lim.max_open;
}

static void accept_later(struct hapi_control_listener *l, int64_t in_ns)
{
    hapi_loop_watch_events(&l->watch, 0);
    hapi_loop_timer_set(l->loop, &l->retry, hapi_clock_ns() + in_ns);
}

/* Room for one more peer; false: later. */
static bool make_room(struct hapi_control_listener *l)
{
    struct hapi_control *c = NULL;

    if (l->n_pending < l->lim.max_pending)
        return true;
    c = droppable(l);
    if (c)
        drop(c);
    else
        accept_later(l, FULL_RETRY_NS);
    return c != NULL;
}

/* ---- accepting ---- */

static void take(struct hapi_control_listener *l, int fd)
{
    struct hapi_control *c = hapi_control_new(l->loop, &l->handler, &l->lim);
    struct hapi_err err;

    if (!c) {
        close(fd);
        return;
    }
    c->server = true;
    c->listener = l;
    c->listener_user = l->user;
    c->stream.fd = fd;
    c->watch.fd = fd;
    c->watch.events = POLLIN;
    c->next = l->pending;
    if (l->pending)
        l->pending->prev = c;
    else
        l->pending_last = c;
    l->pending = c;
    l->n_pending++;
    c->accepted_ns = hapi_clock_ns();
    hapi_loop_timer_set(l->loop, &c->timer, c->accepted_ns + l->lim.handshake_ns);
    int rc = hapi_loop_watch(l->loop, &c->watch);
    if (rc)
        hapi_err_set(&err, rc, 0, "cannot watch a connection");
    else
        rc = hapi_control_started(c, &l->tls, &err);
    if (rc)
        hapi_control_fail(c, &err);
}

static void accept_ready(struct hapi_watch *w, uint32_t revents)
{
    struct hapi_control_listener *l = (struct hapi_control_listener *)w;

    (void)revents;
    for (int i = 0; i < ACCEPTS_MAX; i++) {
        if (!make_room(l))
            return;
        int fd = accept4(w->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            take(l, fd);
            continue;
        }
        if (errno != EMFILE && errno != ENFILE && errno != ENOBUFS && errno != ENOMEM)
            return; /* EAGAIN, or a peer that has gone already */
        /* Out of descriptors: peers that say nothing give way; without any, wait for better times. */
        if (l->pending_last) {
            drop(l->pending_last);
            continue;
        }
        accept_later(l, ACCEPT_RETRY_NS);
        return;
    }
}

static void retry_fired(struct hapi_timer *t)
{
    struct hapi_control_listener *l =
        (struct hapi_control_listener *)((char *)t - offsetof(struct hapi_control_listener, retry));

    hapi_loop_watch_events(&l->watch, POLLIN);
}

static int bind_one(int *out, union hapi_sockaddr *a, const char *host, struct hapi_err *err)
{
    char text[HAPI_ADDRESS_TEXT];
    int rc, one = 1, fd = socket(a->sa.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    socklen_t n = sizeof *a;

    hapi_sockaddr_text(a, text);
    if (fd < 0)
        return hapi_err_errno(err, errno, "cannot open a socket for %s", text);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, &a->sa, hapi_sockaddr_size(a)) || listen(fd, BACKLOG) || getsockname(fd, &a->sa, &n)) {
        if (errno == EADDRINUSE)
            rc =
                hapi_err_set(err, HAPI_EBUSY, EADDRINUSE,
                             "address %s is in use: another server runs there, or choose another port", text);
        else if (errno == EADDRNOTAVAIL)
            rc = hapi_err_set(err, HAPI_EINVAL, errno, "%s (%s) is no address of this machine", host, text);
        else
            rc = hapi_err_errno(err, errno, "cannot listen on %s", text);
        close(fd);
        return rc;
    }
    *out = fd;
    return 0;
}

int hapi_control_listen(struct hapi_control_listener **out, struct hapi_loop *loop, const char *host,
                        uint16_t port, const struct hapi_control_options *opt,
                        const struct hapi_control_handler *handler, void *user, struct hapi_err *err)
{
    struct hapi_control_listener *l = calloc(1, sizeof *l);
    struct hapi_addresses list;
    int fd = -1, rc;

    if (!l)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a listener");
    rc = hapi_control_limits_set(&l->lim, opt, err);
    if (rc)
        goto fail_alloc;
    rc = hapi_addresses_resolve(&list, host, port, true, false, err);
    if (rc)
        goto fail_alloc;
    rc = hapi_tls_init(&l->tls, opt->keys, true, err);
    if (rc)
        goto fail_alloc;
    rc = bind_one(&fd, &list.a[0], host, err);
    if (rc)
        goto fail_tls;
    l->loop = loop;
    l->handler = *handler;
    l->user = user;
    l->port = hapi_sockaddr_port(&list.a[0]);
    l->retry.fire = retry_fired;
    l->watch = (struct hapi_watch){.ready = accept_ready, .fd = fd, .events = POLLIN};
    rc = hapi_loop_watch(loop, &l->watch);
    if (rc) {
        hapi_err_set(err, rc, 0, "cannot watch the listening socket");
        goto fail_fd;
    }
    *out = l;
    return 0;
fail_fd:
    close(fd);
fail_tls:
    hapi_tls_fini(&l->tls);
fail_alloc:
    free(l);
    return rc;
}

int hapi_control_listener_hello(struct hapi_control_listener *l, const struct hapi_hello *hello,
                                struct hapi_err *err)
{
    return hapi_control_hello_set(&l->lim, hello, err);
}

void hapi_control_listener_keys(struct hapi_control_listener *l, const struct hapi_keys *keys)
{
    l->tls.keys = keys;
}

uint16_t hapi_control_listener_port(const struct hapi_control_listener *l)
{
    return l->port;
}

void hapi_control_listener_close(struct hapi_control_listener *l)
{
    if (!l)
        return;
    while (l->pending_last)
        drop(l->pending_last);
    while (l->open)
        hapi_control_listener_gone(l->open);
    hapi_loop_timer_clear(l->loop, &l->retry);
    hapi_loop_unwatch(&l->watch);
    close(l->watch.fd);
    hapi_tls_fini(&l->tls);
    free(l);
}
