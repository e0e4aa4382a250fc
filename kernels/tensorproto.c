#include <stdlib.h>
#include <string.h>

#include "onnx.h"

/* Field numbers of TensorProto. */
enum {
    T_DIMS = 1,
    T_TYPE = 2,
    T_SEGMENT = 3,
    T_FLOATS = 4,
    T_INT32S = 5,
    T_STRINGS = 6,
    T_INT64S = 7,
    T_NAME = 8,
    T_RAW = 9,
    T_DOUBLES = 10,
    T_UINT64S = 11,
    T_EXTERNAL = 13,
    T_LOCATION = 14
};

static const struct {
    unsigned onnx;
    enum hapi_dtype dtype;
    uint32_t field; /* where its elements are when not raw */
} types[] = {
    {1, HAPI_F32, T_FLOATS},   {2, HAPI_U8, T_INT32S},    {3, HAPI_I8, T_INT32S},
    {4, HAPI_U16, T_INT32S},   {5, HAPI_I16, T_INT32S},   {6, HAPI_I32, T_INT32S},
    {7, HAPI_I64, T_INT64S},   {9, HAPI_BOOL, T_INT32S},  {10, HAPI_F16, T_INT32S},
    {11, HAPI_F64, T_DOUBLES}, {12, HAPI_U32, T_UINT64S}, {13, HAPI_U64, T_UINT64S},
    {16, HAPI_BF16, T_INT32S},
};

enum { N_TYPES = sizeof types / sizeof *types };

enum hapi_dtype hapi_onnx_dtype(uint64_t elem_type)
{
    for (size_t i = 0; i < N_TYPES; i++)
        if (types[i].onnx == elem_type)
            return types[i].dtype;
    return HAPI_DTYPE_NONE;
}

unsigned hapi_onnx_elem_type(enum hapi_dtype dtype)
{
    for (size_t i = 0; i < N_TYPES; i++)
        if (types[i].dtype == dtype)
            return types[i].onnx;
    return 0;
}

static uint32_t field_of(enum hapi_dtype dtype)
{
    for (size_t i = 0; i < N_TYPES; i++)
        if (types[i].dtype == dtype)
            return types[i].field;
    return 0;
}

/* What one pass over the message finds. */
struct scan {
    struct hapi_view name, raw, location, single; /* single: the only packed chunk of fixed-size elements */
    bool has_raw, external, bad_external;
    uint64_t type, offset, length;
    int64_t count[T_UINT64S + 1]; /* elements in each typed field */
    int chunks;
};

static int scan_dims(struct hapi_onnx_tensor *t, struct hapi_pb_field *f, struct hapi_err *err)
{
    struct hapi_view v = f->bytes;
    bool packed = f->wire == HAPI_PB_LEN;

    do {
        uint64_t d = f->value;
        if (packed) {
            if (!v.n)
                return 0;
            if (!hapi_pb_varint(&v, &d))
                return hapi_err_set(err, HAPI_EFORMAT, 0, "malformed tensor dims");
        }
        if (d > INT64_MAX)
            return hapi_err_set(err, HAPI_EFORMAT, 0, "negative tensor dim");
        if (t->shape.rank == HAPI_MAX_RANK)
            return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "tensor of more than %d dims", HAPI_MAX_RANK);
        t->shape.dim[t->shape.rank++] = (int64_t)d;
    } while (packed);
    return 0;
}

static bool parse_u64(struct hapi_view v, uint64_t *out)
{
    uint64_t n = 0;

    if (!v.n)
        return false;
    for (size_t i = 0; i < v.n; i++) {
        if (v.p[i] < '0' || v.p[i] > '9')
            return false;
        if (__builtin_mul_overflow(n, (uint64_t)10, &n) || __builtin_add_overflow(n, v.p[i] - '0', &n))
            return false;
    }
    *out = n;
    return true;
}

static bool view_is(struct hapi_view v, const char *s)
{
    return v.n == strlen(s) && !memcmp(v.p, s, v.n);
}

/* One StringStringEntryProto of external_data. */
static void scan_external(struct scan *s, struct hapi_view entry)
{
    struct hapi_view key = {NULL, 0}, value = {NULL, 0};
    struct hapi_pb_field f;
    int more;

    while ((more = hapi_pb_next(&entry, &f)) > 0) {
        if (f.wire == HAPI_PB_LEN && f.number == 1)
            key = f.bytes;
        else if (f.wire == HAPI_PB_LEN && f.number == 2)
            value = f.bytes;
    }
    if (more < 0)
        s->bad_external = true;
    else if (key.n && view_is(key, "location"))
        s->location = value;
    else if (key.n && view_is(key, "offset"))
        s->bad_external |= !parse_u64(value, &s->offset);
    else if (key.n && view_is(key, "length"))
        s->bad_external |= !parse_u64(value, &s->length);
}

/* Elements of a typed field, packed or one by one. */
static int scan_elements(struct scan *s, const struct hapi_pb_field *f)
{
    size_t fixed = f->number == T_FLOATS ? 4 : f->number == T_DOUBLES ? 8 : 0;
    int64_t n = 1;

    if (f->wire == HAPI_PB_LEN) {
        n = fixed ? (int64_t)(f->bytes.n / fixed) : hapi_pb_count(f->bytes);
        if (n < 0 || (fixed && f->bytes.n % fixed))
            return HAPI_EFORMAT;
        s->single = f->bytes;
    } else if (f->wire != (fixed == 4 ? HAPI_PB_I32 : fixed ? HAPI_PB_I64 : HAPI_PB_VARINT)) {
        return HAPI_EFORMAT;
    } else {
        s->chunks++; /* never a single chunk */
    }
    s->chunks++;
    s->count[f->number] += n;
    return 0;
}

static int scan_field(struct hapi_onnx_tensor *t, struct scan *s, struct hapi_pb_field *f,
                      struct hapi_err *err)
{
    bool len = f->wire == HAPI_PB_LEN;
    int rc = 0;

    switch (f->number) {
    case T_DIMS:
        if (f->wire != HAPI_PB_LEN && f->wire != HAPI_PB_VARINT)
            rc = HAPI_EFORMAT;
        else
            return scan_dims(t, f, err);
        break;
    case T_TYPE:
        s->type = f->value;
        rc = f->wire == HAPI_PB_VARINT ? 0 : HAPI_EFORMAT;
        break;
    case T_FLOATS:
    case T_INT32S:
    case T_INT64S:
    case T_DOUBLES:
    case T_UINT64S:
        rc = scan_elements(s, f);
        break;
    case T_NAME:
        s->name = f->bytes;
        rc = len ? 0 : HAPI_EFORMAT;
        break;
    case T_RAW:
        s->raw = f->bytes;
        rc = len && !s->has_raw ? 0 : HAPI_EFORMAT;
        s->has_raw = true;
        break;
    case T_EXTERNAL:
        rc = len ? 0 : HAPI_EFORMAT;
        if (len)
            scan_external(s, f->bytes);
        break;
    case T_LOCATION:
        s->external = f->value == 1;
        break;
    case T_SEGMENT:
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "segmented tensors are not supported");
    case T_STRINGS:
        return hapi_err_set(err, HAPI_EUNSUPPORTED, 0, "string tensors are not supported");
    default:
        break;
    }
    return rc ? hapi_err_set(err, rc, 0, "malformed tensor (field %u)", f->number) : 0;
}

/* Where the elements are, and whether there are as many as the shape says. */
static int locate(struct hapi_onnx_tensor *t, const struct scan *s, struct hapi_externals *externals,
                  struct hapi_err *err)
{
    uint32_t field = field_of(t->dtype);
    struct hapi_view v = s->raw;
    int64_t n = 0;

    if (s->external) {
        if (s->bad_external || !s->location.n)
            return hapi_err_set(err, HAPI_EFORMAT, 0, "malformed external data entry");
        if (!externals)
            return hapi_err_set(err, HAPI_EUNSUPPORTED, 0,
                                "external data is not allowed here (only in models opened from a file)");
        int rc = hapi_externals_get(externals, s->location, s->offset, s->length, &v, err);
        if (rc)
            return rc;
        t->external = true;
    }
    if (s->external || s->has_raw) {
        if (v.n != t->bytes)
            return hapi_err_set(err, HAPI_EFORMAT, 0, "shape says %zu bytes, the data has %zu", t->bytes,
                                v.n);
        t->raw = v.n ? v.p : NULL;
        return 0;
    }
    hapi_shape_elements(&t->shape, &n);
    if (s->count[field] != n)
        return hapi_err_set(err, HAPI_EFORMAT, 0, "shape says %lld elements, the data has %lld", (long long)n,
                            (long long)s->count[field]);
    if (n && s->chunks == 1 && (field == T_FLOATS || field == T_DOUBLES))
        t->raw = s->single.p;
    return 0;
}

int hapi_onnx_tensor_parse(struct hapi_onnx_tensor *t, struct hapi_view proto,
                           struct hapi_externals *externals, struct hapi_view *name, struct hapi_err *err)
{
    struct scan s = {.length = UINT64_MAX};
    struct hapi_view rest = proto;
    struct hapi_pb_field f;
    int more, rc;

    memset(t, 0, sizeof *t);
    t->name = "";
    t->proto = proto;
    while ((more = hapi_pb_next(&rest, &f)) > 0) {
        rc = scan_field(t, &s, &f, err);
        if (rc)
            return rc;
    }
    *name = s.name;
    if (more < 0)
        return hapi_err_set(err, HAPI_EFORMAT, 0, "malformed tensor");
    t->dtype = hapi_onnx_dtype(s.type);
    if (t->dtype == HAPI_DTYPE_NONE)
        return hapi_err_set(err, s.type ? HAPI_EUNSUPPORTED : HAPI_EFORMAT, 0, "tensor element type %llu",
                            (unsigned long long)s.type);
    if (hapi_tensor_bytes(&t->shape, t->dtype, &t->bytes))
        return hapi_err_set(err, HAPI_ETOOBIG, 0, "the product of the tensor's dims overflows");
    return locate(t, &s, externals, err);
}

/* The low bytes of a varint are the element in two's complement, f16 and bf16 bits too. */
static size_t put_element(uint8_t *dst, size_t at, uint64_t v, size_t size)
{
    for (size_t i = 0; i < size; i++)
        dst[at + i] = (uint8_t)(v >> (8 * i));
    return at + size;
}

void hapi_onnx_tensor_decode(const struct hapi_onnx_tensor *t, void *dst)
{
    size_t size = hapi_dtype_size(t->dtype), at = 0;
    uint32_t field = field_of(t->dtype);
    struct hapi_view rest = t->proto;
    struct hapi_pb_field f;
    uint8_t *d = dst;

    if (t->raw)
        memcpy(d, t->raw, t->bytes);
    else
        memset(
            d, 0,
            t->bytes); /* counted before: all of it is written below, but nobody should have to trust that */
    while (!t->raw && at < t->bytes && hapi_pb_next(&rest, &f) > 0) {
        uint64_t v;
        if (f.number != field)
            continue;
        if (f.wire != HAPI_PB_LEN) {
            at = put_element(d, at, f.value, size);
        } else if (field == T_FLOATS || field == T_DOUBLES) {
            memcpy(d + at, f.bytes.p, f.bytes.n);
            at += f.bytes.n;
        } else {
            while (at < t->bytes && hapi_pb_varint(&f.bytes, &v))
                at = put_element(d, at, v, size);
        }
    }
    /* Any other byte than 0 and 1 would be a trap representation for who reads it as bool. */
    if (t->dtype == HAPI_BOOL)
        for (size_t i = 0; i < t->bytes; i++)
            d[i] = d[i] != 0;
}

const void *hapi_onnx_tensor_data(struct hapi_onnx_tensor *t)
{
    size_t align = hapi_dtype_size(t->dtype);

    if (t->copy)
        return t->copy;
    if (t->raw && (uintptr_t)t->raw % align == 0 && t->dtype != HAPI_BOOL)
        return t->raw;
    t->copy = malloc(t->bytes ? t->bytes : 1);
    if (t->copy)
        hapi_onnx_tensor_decode(t, t->copy);
    return t->copy;
}

int hapi_tensorproto_read(const void *bytes, size_t size, struct hapi_tensor_desc *desc, void **data,
                          struct hapi_err *err)
{
    struct hapi_onnx_tensor t;
    struct hapi_view name;
    void *copy;
    int rc = hapi_onnx_tensor_parse(&t, (struct hapi_view){bytes, size}, NULL, &name, err);

    if (rc)
        return rc;
    copy = malloc(t.bytes ? t.bytes : 1);
    if (!copy)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a tensor of %zu bytes", t.bytes);
    hapi_onnx_tensor_decode(&t, copy);
    *desc = (struct hapi_tensor_desc){
        .name = "", .dtype = t.dtype, .layout = HAPI_LAYOUT_PLAIN, .shape = t.shape};
    *data = copy;
    return 0;
}
