/* Numbers with units, as people write them: 100Mbit, 4G. Any thread. */
#ifndef HAPI_CLIENT_QUANTITY_H
#define HAPI_CLIENT_QUANTITY_H

#include <stdbool.h>

/* Bytes a second: "100Mbit", "1Gbit", "10kbit" (bits a second), "12.5MB" (bytes a second; powers of
 * 1000), or a number of bytes. false:
 * it is none of these, or not above 0. */
bool quantity_rate(const char *text, double *out);
/* Bytes: a number, with K, M, G or T for powers of 1024. false: it is no such thing. */
bool quantity_bytes(const char *text, double *out);
/* A number, at least `min`, at most `max`. false: it is none. */
bool quantity_number(const char *text, double min, double max, double *out);

#endif
