#include "address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "control.h"

socklen_t hapi_sockaddr_size(const union hapi_sockaddr *a)
{
    return a->sa.sa_family == AF_INET6 ? sizeof a->in6 : sizeof a->in;
}

uint16_t hapi_sockaddr_port(const union hapi_sockaddr *a)
{
    return ntohs(a->sa.sa_family == AF_INET6 ? a->in6.sin6_port : a->in.sin_port);
}

void hapi_sockaddr_host(const union hapi_sockaddr *a, char text[HAPI_ADDRESS_TEXT])
{
    const void *p = a->sa.sa_family == AF_INET6 ? (const void *)&a->in6.sin6_addr : &a->in.sin_addr;

    if (!inet_ntop(a->sa.sa_family, p, text, HAPI_ADDRESS_TEXT))
        snprintf(text, HAPI_ADDRESS_TEXT, "?");
}

void hapi_sockaddr_text(const union hapi_sockaddr *a, char text[HAPI_ADDRESS_TEXT])
{
    char host[HAPI_ADDRESS_TEXT];
    bool v6 = a->sa.sa_family == AF_INET6;

    hapi_sockaddr_host(a, host);
    snprintf(text, HAPI_ADDRESS_TEXT, "%s%.*s%s:%u", v6 ? "[" : "", INET6_ADDRSTRLEN, host, v6 ? "]" : "",
             hapi_sockaddr_port(a));
}

int hapi_addresses_resolve(struct hapi_addresses *out, const char *host, uint16_t port, bool passive,
                           bool numeric_only, struct hapi_err *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_NUMERICSERV | (passive ? AI_PASSIVE : 0) |
                                         (numeric_only ? AI_NUMERICHOST : 0)};
    struct addrinfo *list;
    char service[8];

    snprintf(service, sizeof service, "%u", port);
    int rc = getaddrinfo(*host ? host : NULL, service, &hints, &list);
    if (rc)
        return hapi_err_set(err, HAPI_EINVAL, rc, "cannot resolve %s: %s", host, gai_strerror(rc));
    out->n = 0;
    for (struct addrinfo *i = list; i && out->n < HAPI_ADDRESSES_MAX; i = i->ai_next)
        if (i->ai_family == AF_INET || i->ai_family == AF_INET6)
            memcpy(&out->a[out->n++], i->ai_addr, i->ai_addrlen);
    freeaddrinfo(list);
    return out->n ? 0 : hapi_err_set(err, HAPI_EINVAL, 0, "%s has no IP address", host);
}

int hapi_address_parse(const char *s, char *host, uint16_t *port, struct hapi_err *err)
{
    const char *colon = strrchr(s, ':'), *from = s, *to = colon;
    unsigned long value = 0;

    if (!colon)
        return hapi_err_set(err, HAPI_EINVAL, 0, "\"%s\" is not HOST:PORT", s);
    for (const char *p = colon + 1; *p; p++) {
        if (*p < '0' || *p > '9' || (value = value * 10 + (unsigned long)(*p - '0')) > 65535)
            return hapi_err_set(err, HAPI_EINVAL, 0, "\"%s\": \"%s\" is not a port", s, colon + 1);
    }
    if (!colon[1])
        return hapi_err_set(err, HAPI_EINVAL, 0, "\"%s\" has no port", s);
    if (*s == '[') {
        from++;
        to--;
        if (to < from || *to != ']')
            return hapi_err_set(err, HAPI_EINVAL, 0, "\"%s\" is not [ADDRESS]:PORT", s);
    } else if (memchr(s, ':', (size_t)(colon - s))) {
        return hapi_err_set(err, HAPI_EINVAL, 0, "\"%s\": write an IPv6 address as [ADDRESS]:PORT", s);
    }
    if ((size_t)(to - from) > HAPI_NAME_MAX)
        return hapi_err_set(err, HAPI_EINVAL, 0, "the host of \"%.40s...\" is too long", s);
    memcpy(host, from, (size_t)(to - from));
    host[to - from] = '\0';
    *port = (uint16_t)value;
    return 0;
}

static bool is_loopback(const union hapi_sockaddr *a)
{
    if (a->sa.sa_family == AF_INET)
        return ntohl(a->in.sin_addr.s_addr) >> 24 == 127;
    const struct in6_addr *v6 = &a->in6.sin6_addr;
    return IN6_IS_ADDR_LOOPBACK(v6) || (IN6_IS_ADDR_V4MAPPED(v6) && v6->s6_addr[12] == 127);
}

bool hapi_address_is_loopback(const char *host)
{
    struct hapi_addresses list;

    if (!*host || hapi_addresses_resolve(&list, host, 0, false, false, NULL))
        return false;
    for (int i = 0; i < list.n; i++)
        if (!is_loopback(&list.a[i]))
            return false;
    return true;
}

/* ---- look-up in a thread ---- */

struct hapi_lookup {
    struct hapi_watch watch;
    struct hapi_loop *loop;
    void (*done)(void *arg, const struct hapi_addresses *a, const struct hapi_err *err);
    void *arg;
    char host[HAPI_NAME_MAX + 1];
    uint16_t port;
    struct hapi_addresses result;
    struct hapi_err err;
    int fd;
    _Atomic bool answered; /* publishes result and err: the eventfd orders nothing between threads */
    _Atomic int owners;    /* the loop and the thread; the last one frees */
};

static void lookup_unref(struct hapi_lookup *l)
{
    if (atomic_fetch_sub(&l->owners, 1) != 1)
        return;
    close(l->fd);
    free(l);
}

static void *lookup_main(void *arg)
{
    struct hapi_lookup *l = arg;
    uint64_t one = 1;

    hapi_addresses_resolve(&l->result, l->host, l->port, false, false, &l->err);
    atomic_store(&l->answered, true);
    /* An eventfd that nobody has written to cannot be full. */
    ssize_t put = write(l->fd, &one, sizeof one);
    (void)put;
    lookup_unref(l);
    return NULL;
}

static void lookup_ready(struct hapi_watch *w, uint32_t revents)
{
    struct hapi_lookup *l = (struct hapi_lookup *)w;

    (void)revents;
    if (!atomic_load(&l->answered))
        return;
    hapi_loop_unwatch(w);
    l->done(l->arg, &l->result, &l->err);
    lookup_unref(l);
}

static int lookup_thread(struct hapi_lookup *l)
{
    sigset_t all, old;
    pthread_t thread;

    /* Signals are for the program's own threads. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = pthread_create(&thread, NULL, lookup_main, l);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc == 0)
        pthread_detach(thread);
    return rc;
}

int hapi_lookup_start(struct hapi_lookup **out, struct hapi_loop *loop, const char *host, uint16_t port,
                      void (*done)(void *arg, const struct hapi_addresses *a, const struct hapi_err *err),
                      void *arg, struct hapi_err *err)
{
    struct hapi_lookup *l = calloc(1, sizeof *l);
    int rc;

    if (!l)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory to look up %s", host);
    l->loop = loop;
    l->done = done;
    l->arg = arg;
    l->port = port;
    snprintf(l->host, sizeof l->host, "%s", host);
    atomic_init(&l->owners, 2);
    l->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (l->fd < 0) {
        rc = hapi_err_errno(err, errno, "cannot look up %s", host);
        goto fail_alloc;
    }
    l->watch = (struct hapi_watch){.ready = lookup_ready, .fd = l->fd, .events = POLLIN};
    rc = hapi_loop_watch(loop, &l->watch);
    if (rc) {
        hapi_err_set(err, rc, 0, "cannot look up %s", host);
        goto fail_fd;
    }
    rc = lookup_thread(l);
    if (rc) {
        rc = hapi_err_errno(err, rc, "cannot look up %s", host);
        goto fail_watch;
    }
    *out = l;
    return 0;
fail_watch:
    hapi_loop_unwatch(&l->watch);
fail_fd:
    close(l->fd);
fail_alloc:
    free(l);
    return rc;
}

void hapi_lookup_cancel(struct hapi_lookup *l)
{
    if (!l)
        return;
    hapi_loop_unwatch(&l->watch);
    lookup_unref(l);
}
