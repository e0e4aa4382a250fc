/*
 * Names and addresses. Looking up a name may block, so that a thread of its own does it for the loop.
 * Private to transport/ (hapi_address_parse() and hapi_address_is_loopback() are in control.h).
 */
#ifndef HAPI_TRANSPORT_ADDRESS_H
#define HAPI_TRANSPORT_ADDRESS_H

#include <netinet/in.h>
#include <sys/socket.h>

#include "err.h"
#include "loop.h"

enum { HAPI_ADDRESSES_MAX = 8, HAPI_ADDRESS_TEXT = INET6_ADDRSTRLEN + 10 };

union hapi_sockaddr {
    struct sockaddr sa;
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
};
socklen_t hapi_sockaddr_size(const union hapi_sockaddr *a);
uint16_t hapi_sockaddr_port(const union hapi_sockaddr *a);
/* "127.0.0.1:80", "[::1]:80"; and the host alone. */
void hapi_sockaddr_text(const union hapi_sockaddr *a, char text[HAPI_ADDRESS_TEXT]);
void hapi_sockaddr_host(const union hapi_sockaddr *a, char text[HAPI_ADDRESS_TEXT]);

struct hapi_addresses {
    union hapi_sockaddr a[HAPI_ADDRESSES_MAX];
    int n;
};

/* May block. host "" with passive: every address of this machine. HAPI_EINVAL with the reason. */
int hapi_addresses_resolve(struct hapi_addresses *out, const char *host, uint16_t port, bool passive,
                           bool numeric_only, struct hapi_err *err);

/* A look-up in its own thread: done() comes once, from the loop, unless it is cancelled before. */
struct hapi_lookup;
int hapi_lookup_start(struct hapi_lookup **out, struct hapi_loop *loop, const char *host, uint16_t port,
                      void (*done)(void *arg, const struct hapi_addresses *a, const struct hapi_err *err),
                      void *arg, struct hapi_err *err);
/* NULL is allowed; after done() the lookup is gone. */
void hapi_lookup_cancel(struct hapi_lookup *l);

#endif
