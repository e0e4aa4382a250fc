#include <openssl/evp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include "convert.h"

void hapi_sha256(uint8_t out[32], const void *data, size_t n)
{
    unsigned size = 0;

    /* Only a process without memory for a context, or an OpenSSL without SHA-256, comes here: no digest is
     * better than a wrong one, and the callers have no error to give. */
    if (!EVP_Digest(data, n, out, &size, EVP_sha256(), NULL) || size != 32) {
        fputs("OpenSSL cannot compute SHA-256\n", stderr);
        abort();
    }
}

void hapi_sha256_text(char out[65], const uint8_t digest[32])
{
    for (int i = 0; i < 32; i++)
        snprintf(out + (ptrdiff_t)2 * i, 3, "%02x", digest[i]);
}
