/* Numbers with units, as people write them: 100Mbit, 4G. Any thread. */
#ifndef HAPI_CLIENT_QUANTITY_H
#define HAPI_CLIENT_QUANTITY_H

#include <stdbool.h>

/* Bytes a second: "100Mbit", "10Gbit" (bits a second; k, M, G, T are powers of 1000), "12.5MB" (bytes a
 * second), or a number of bytes: "12500000". false: none of these, not above 0, or 1e15 or more, which no
 * link is. *out is written only on success. */
bool quantity_rate(const char *text, double *out);
/* Bytes: a number, with K, M, G or T for powers of 1024. false: it is no such thing. */
bool quantity_bytes(const char *text, double *out);
/* A number, at least `min`, at most `max`. false: it is none. */
bool quantity_number(const char *text, double min, double max, double *out);

#endif
