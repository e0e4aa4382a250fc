#include "npy.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEADER_MAX = 4096 };

static enum hapi_dtype dtype_of(const char *s)
{
    static const struct {
        const char *text;
        enum hapi_dtype dtype;
    } known[] = {
        {"<f4", HAPI_F32}, {"<f2", HAPI_F16}, {"<f8", HAPI_F64}, {"|i1", HAPI_I8},
        {"|u1", HAPI_U8},  {"<i2", HAPI_I16}, {"<u2", HAPI_U16}, {"<i4", HAPI_I32},
        {"<u4", HAPI_U32}, {"<i8", HAPI_I64}, {"<u8", HAPI_U64}, {"|b1", HAPI_BOOL},
    };

    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(known[i].text, s))
            return known[i].dtype;
    return HAPI_DTYPE_NONE;
}

/* What follows 'key': in the header's dict, blanks skipped; NULL when it is not there. */
static const char *value_of(const char *header, const char *key)
{
    const char *p = strstr(header, key);

    if (!p)
        return NULL;
    p += strlen(key);
    while (*p == ' ' || *p == ':')
        p++;
    return *p ? p : NULL;
}

static int malformed(struct hapi_err *err, const char *what)
{
    return hapi_err_set(err, HAPI_EFORMAT, 0, "not a usable .npy file: %s", what);
}

static int shape_parse(const char *p, struct hapi_shape *s, struct hapi_err *err)
{
    memset(s, 0, sizeof *s);
    if (!p || *p != '(')
        return malformed(err, "no shape");
    for (p++;;) {
        while (*p == ' ' || *p == ',')
            p++;
        if (*p == ')')
            return HAPI_OK;
        char *end;
        errno = 0;
        long long v = isdigit((unsigned char)*p) ? strtoll(p, &end, 10) : -1;
        if (v < 0 || errno || s->rank == HAPI_MAX_RANK)
            return malformed(err, "bad shape");
        s->dim[s->rank++] = v;
        p = end;
    }
}

static int header_parse(const char *header, struct hapi_tensor_desc *desc, struct hapi_err *err)
{
    const char *d = value_of(header, "'descr'"), *order = value_of(header, "'fortran_order'");
    char text[4] = {0};

    if (!d || (*d != '\'' && *d != '"') || !order)
        return malformed(err, "no descr or fortran_order");
    for (size_t i = 0; i < 3 && d[1 + i] && d[1 + i] != *d; i++)
        text[i] = d[1 + i];
    desc->dtype = dtype_of(text);
    if (desc->dtype == HAPI_DTYPE_NONE || d[4] != *d)
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "dtype \"%.3s\" in a .npy file", text);
    if (strncmp(order, "False", 5))
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0,
                            "Fortran order in a .npy file (use numpy.ascontiguousarray)");
    return shape_parse(value_of(header, "'shape'"), &desc->shape, err);
}

int hapi_npy_read(const void *bytes, size_t size, struct hapi_tensor_desc *desc, void **data,
                  struct hapi_err *err)
{
    const unsigned char *p = bytes;
    struct hapi_tensor_desc d = {0};
    char header[HEADER_MAX];
    size_t at, length, need;

    if (size < 10 || memcmp(p, "\x93NUMPY", 6))
        return malformed(err, "no magic number");
    at = p[6] == 1 ? 10 : 12;
    length = (size_t)p[8] | (size_t)p[9] << 8;
    if (p[6] > 1)
        length |= size >= 12 ? (size_t)p[10] << 16 | (size_t)p[11] << 24 : SIZE_MAX;
    if (length >= HEADER_MAX || size < at || size - at < length)
        return malformed(err, "header too long");
    memcpy(header, p + at, length);
    header[length] = '\0';
    int rc = header_parse(header, &d, err);
    if (rc)
        return rc;
    if (hapi_tensor_bytes(&d.shape, d.dtype, &need) || size - at - length < need)
        return malformed(err, "shorter than its shape says");
    *data = malloc(need ? need : 1);
    if (!*data)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a tensor of %zu bytes", need);
    memcpy(*data, p + at + length, need);
    *desc = d;
    return HAPI_OK;
}

int hapi_npy_write(const char *path, const struct hapi_shape *shape, enum hapi_dtype dtype, const void *data,
                   struct hapi_err *err)
{
    char text[512], dims[256] = "";
    size_t bytes, used = 0;
    FILE *f;

    if ((dtype != HAPI_F32 && dtype != HAPI_I64) || hapi_tensor_bytes(shape, dtype, &bytes))
        return hapi_err_set(err, HAPI_EINVAL, 0, "%s: cannot write dtype %s", path, hapi_dtype_name(dtype));
    for (int i = 0; i < shape->rank; i++)
        used += (size_t)snprintf(dims + used, sizeof dims - used, "%lld,%s", (long long)shape->dim[i],
                                 i + 1 < shape->rank ? " " : "");
    int n = snprintf(text, sizeof text, "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }",
                     dtype == HAPI_F32 ? "<f4" : "<i8", dims);
    /* Magic, version and length take 10 bytes; data begin at a multiple of 64. */
    int length = (10 + n + 1 + 63) / 64 * 64 - 10;
    unsigned char head[10] = {
        0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0, (unsigned char)length, (unsigned char)(length >> 8)};
    f = fopen(path, "wb");
    if (!f)
        return hapi_err_errno(err, errno, "cannot create %s", path);
    bool ok = fwrite(head, sizeof head, 1, f) == 1 && fprintf(f, "%s%*s\n", text, length - n - 1, "") > 0 &&
              (!bytes || fwrite(data, bytes, 1, f) == 1);
    if (fclose(f) || !ok)
        return hapi_err_errno(err, errno, "cannot write %s", path);
    return HAPI_OK;
}
